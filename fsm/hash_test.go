package fsm

import (
	"fmt"
	"math"
	"testing"

	"github.com/abacusdb/abacus/fsm/command"
)

// TestHashOn: in pieces of any size, each read from a view opened anew and by turns on two replicas, one with all in memory and one with most in
// its file, the hash comes to that of the whole; and it counts the keys.
func TestHashOn(t *testing.T) {
	filed := testConfig()
	filed.CheckpointBytes = 500
	a, b := newMachine(t, testConfig()), newMachine(t, filed)
	for _, m := range []*machine{a, b} {
		for i := range 60 {
			m.apply(1, set(fmt.Sprintf("key %d", i), fmt.Sprintf("value %d", i*i)), setTTL(fmt.Sprintf("ends %d", i), "v", int64(1+i)), cmd(command.OpDel, k(fmt.Sprintf("key %d", i-5))))
		}
		for i := range 9 {
			m.apply(0, num(cmd(command.OpRecordSet, k(fmt.Sprintf("record %d", i)), "r"), 0))
		}
	}
	b.reopen(0)
	whole := a.view()
	want := whole.Hash()
	records, _ := whole.Counts()
	if b.hash() != want {
		t.Fatalf("the replicas differ: %x and %x", want, b.hash())
	}
	for _, bytes := range []int{1, 150, 1000, 7000, math.MaxInt} {
		var s HashState
		pieces := 0
		for !s.Done {
			m := []*machine{a, b}[pieces%2]
			v := m.view()
			next, read, err := v.HashOn(s, bytes)
			v.Close()
			if err != nil || read == 0 && !next.Done || bytes < 7000 && read > bytes+hashRow+100 {
				t.Fatalf("pieces of %d: %d read, %v", bytes, read, err)
			}
			s, pieces = next, pieces+1
		}
		if s.Sum != want || s.Records != records {
			t.Errorf("pieces of %d: hash %x of %d keys, want %x of %d", bytes, s.Sum, s.Records, want, records)
		}
		if bytes == 1 && pieces < int(records)+9 || bytes == math.MaxInt && pieces != 1 {
			t.Errorf("pieces of %d: %d of them", bytes, pieces)
		}
	}
	for _, tree := range []int{-1, 3} {
		if _, _, err := whole.HashOn(HashState{Tree: tree}, 1); err == nil {
			t.Errorf("tree %d is taken", tree)
		}
	}
}
