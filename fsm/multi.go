package fsm

import (
	"fmt"

	"github.com/abacusdb/abacus/fsm/command"
)

// doMulti carries out a MULTI's commands, unless a watched key has changed. It
// has been validated.
func (a *applier) doMulti(c *command.Command, index uint64) command.Result {
	watched, err := command.DecodeIndexes(c.Values[1], len(c.Keys))
	if err != nil {
		panic(fmt.Errorf("fsm: entry %d: %w", index, err))
	}
	for i, key := range c.Keys {
		if a.changedSince(c.Slot, key, watched[i]) {
			return command.Nil()
		}
	}
	cmds, err := command.DecodeCommands(c.Values[0])
	if err != nil {
		panic(fmt.Errorf("fsm: entry %d: %w", index, err))
	}
	results := make([]command.Result, len(cmds))
	for i := range cmds {
		results[i] = a.run(&cmds[i], index)
	}
	return command.Array(results)
}

// changedSince says whether a key may have been set or removed by an entry above
// index. A value that is the same again is a change all the same: somebody who read in
// between saw another one.
func (a *applier) changedSince(slot uint16, key []byte, index uint64) bool {
	switch e := a.load(slot, key); {
	case e.visible:
		return e.changed > index
	case e.stored:
		return true // it ended, nobody noted when
	}
	return a.counts.get(slot).removed > index
}
