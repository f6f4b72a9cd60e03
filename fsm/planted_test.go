//go:build planted

package fsm

import (
	"testing"

	"github.com/abacusdb/abacus/fsm/planted"
)

// A state machine that carries out a repeated number again is caught: the second
// answer is not the first one. (go test -tags planted)
func TestPlantedSkipSessionCheck(t *testing.T) {
	m := newMachine(t, testConfig())
	s := m.opens()
	m.wants(numbered(incr("n"), s, 1, 0), "1")
	planted.Plant(planted.SkipSessionCheck)
	defer planted.Plant("")
	if got := m.one(numbered(incr("n"), s, 1, 0)); got == "1" {
		t.Error("the bug is not caught")
	}
}
