//go:build planted

package sim

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/abacusdb/abacus/fsm/planted"
)

// plantedLimit is how long the simulation may take to find a planted bug.
const plantedLimit = 30 * time.Second

// TestPlanted shows that the simulation finds bugs: each of these is planted, and must be
// found in time. And it finds none where none is planted.
func TestPlanted(t *testing.T) {
	for _, bug := range []planted.Bug{planted.AckBeforeCommit, planted.DropAppliedSkip, planted.LogNotMonotonic, planted.EarlyCompaction} {
		t.Run(string(bug), func(t *testing.T) {
			t.Setenv("ABACUS_SIM_DIR", t.TempDir()) // what is found here is no news
			ctx, cancel := context.WithTimeout(t.Context(), plantedLimit)
			defer cancel()
			began := time.Now()
			var sum Report
			for seed := uint64(1); ; seed++ {
				r, _, err := scenarioProcess(ctx, seed, "", string(bug))
				if ctx.Err() != nil {
					t.Fatalf("not found in %v: %s", plantedLimit, sum)
				}
				if err != nil {
					first, _, _ := strings.Cut(strings.TrimSpace(err.Error()), "\n")
					t.Logf("found after %v, in scenario %d: %s", time.Since(began).Round(10*time.Millisecond), seed, first)
					return
				}
				sum.Add(r)
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		for seed := uint64(1); seed <= 3; seed++ {
			if r, _, err := scenarioProcess(t.Context(), seed, "", ""); err != nil {
				t.Errorf("%v\n%s", err, r)
			}
		}
	})
}
