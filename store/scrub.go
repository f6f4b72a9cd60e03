package store

import "context"

// Scrub reads the whole state file and checks every row: see fsm.FSM.Scrub. Damage
// goes to Config.Fatal.
func (s *Store) Scrub(ctx context.Context, pause func(bytes int) error) error {
	return s.fsm.Scrub(ctx, pause)
}
