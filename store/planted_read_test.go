//go:build planted

package store

import (
	"errors"
	"testing"

	"github.com/abacusdb/abacus/fsm/planted"
)

// Each protection of reads is taken out in turn: the scenario that it is there for
// must then find a read that misses an acknowledged write. Without that, the
// scenarios prove nothing.
func TestPlantedReads(t *testing.T) {
	for bug, scenario := range map[planted.Bug]func(*testing.T) error{
		planted.LocalRead:         deposedLeader,
		planted.VerifyLeaderRead:  oldAcknowledgement,
		planted.CountNonVoters:    learnersConfirm,
		planted.NoTermBarrier:     freshLeader,
		planted.AppliedIndexWait:  slowState,
		planted.WrongQuorumOfFour: twoOfFour,
	} {
		t.Run(string(bug), func(t *testing.T) {
			planted.Plant(bug)
			defer planted.Plant("")
			err := scenario(t)
			if !errors.Is(err, errMissed) {
				t.Fatalf("%s is planted, and what was noticed is %v", bug, err)
			}
			t.Log(err)
		})
	}
}
