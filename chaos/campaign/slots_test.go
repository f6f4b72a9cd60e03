//go:build linux

package campaign

import (
	"strings"
	"testing"

	"github.com/abacusdb/abacus/chaos/proc"
)

// A slot that two shards have, or none, is found, and so is a status that cannot be read.
func TestOwnedOnce(t *testing.T) {
	for _, tc := range []struct {
		slots []string
		want  string // "": nothing is wrong
	}{
		{[]string{"0-8191", "8192-16383"}, ""},
		{[]string{"0-99,200-16383", "", "100-199"}, ""},
		{[]string{"0-8191", "8191-16383"}, "slot 8191 is shard 0's and shard 1's"},
		{[]string{"0-8191", "8193-16383"}, "slot 8192 is nobody's"},
		{[]string{"0-8191", "8192-16382"}, "slot 16383 is nobody's"},
		{[]string{"0-16384"}, "want ranges within 0-16383"},
		{[]string{"0-16383", "9-"}, "want ranges"},
	} {
		s := &proc.Status{}
		for i, slots := range tc.slots {
			s.Shards = append(s.Shards, proc.ShardStatus{ID: uint32(i), Slots: slots})
		}
		if got := ownedOnce(s); tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
			t.Errorf("%q: %q, want %q", tc.slots, got, tc.want)
		}
	}
}
