//go:build system && planted

package chaos_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/campaign"
	"github.com/abacusdb/abacus/fsm/planted"
)

// TestPlantedChaos shows that a campaign would find what it is for: bugs are planted in a build of abacusd, or in the client, one at a time, and a run
// with the faults that bring each out must end with a violation. It is what `make chaos-planted` runs. What the campaign does not find in such
// a time, though the simulation or the power cuts do, is in chaos/README.md.
//
//	ABACUS_CHAOS_DURATION   how long things break in each run (45s)
//	ABACUS_CHAOS_PLANTED    which bugs, with commas between (those of the table)
func TestPlantedChaos(t *testing.T) {
	const limit = 4 * time.Minute // for each, with what comes before and after the faults
	bin := filepath.Join(t.TempDir(), "abacusd")
	build := exec.Command("go", "build", "-tags", "planted", "-o", bin, "../cmd/abacusd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	bugs := []plantedBug{
		{planted.AckBeforeCommit, []string{"isolate a leader", "kill one", "split"}},
		{planted.SkipSessionCheck, []string{"kill one", "isolate a leader", "flapping"}},
		{planted.DropAppliedSkip, []string{"kill one", "kill all", "power cut of all"}},
		{planted.NoSyncLog, []string{"power cut of all"}},
	}
	if wanted := os.Getenv("ABACUS_CHAOS_PLANTED"); wanted != "" {
		bugs = nil
		for name := range strings.SplitSeq(wanted, ",") {
			bugs = append(bugs, plantedBug{planted.Bug(name), []string{"isolate a leader", "kill one", "kill all", "split", "power cut of all", "replicas on the move"}})
		}
	}
	for _, bug := range bugs {
		t.Run(string(bug.name), func(t *testing.T) {
			cfg := chaosConfig(t)
			cfg.Abacusd, cfg.Kinds, cfg.Dir = bin, bug.kinds, t.TempDir() // a finding is no news
			if bug.name == planted.RetryUnknown {
				planted.Plant(bug.name) // the client is in this process
				defer planted.Plant("")
			} else {
				cfg.Env = []string{"ABACUS_PLANTED=" + string(bug.name)}
			}
			if os.Getenv("ABACUS_CHAOS_DURATION") == "" {
				cfg.Duration = 45 * time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			began := time.Now()
			r, err := campaign.Run(ctx, cfg)
			if r == nil {
				t.Fatal(err)
			}
			took := time.Since(began).Round(time.Second)
			i := slices.IndexFunc(r.Violations, func(v string) bool { return bug.shownBy(v) })
			if i < 0 {
				t.Fatalf("not found in %v (%v): %v", took, err, r)
			}
			t.Logf("found in %v, with %d violations, as: %s", took, len(r.Violations), r.Violations[i])
		})
	}
}

type plantedBug struct {
	name  planted.Bug
	kinds []string
}

// shownBy says whether a violation shows the bug: that a cluster does not come back is a finding where its log was lost, and nowhere else.
func (b plantedBug) shownBy(violation string) bool {
	slow := func(text string) bool { return strings.Contains(violation, text) }
	return b.name == planted.NoSyncLog || !slow("is not whole") && !slow("takes no write") && !slow("were not answered")
}
