//go:build system && planted

package chaos_test

import (
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

// TestPlantedChaos shows that a campaign would find what it is for: bugs are planted in a build of abacusd, one at a time, and a run
// with the faults that bring each out must end with a violation.
//
//	ABACUS_CHAOS_DURATION   how long each run (90s)
func TestPlantedChaos(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "abacusd")
	build := exec.Command("go", "build", "-tags", "planted", "-o", bin, "../cmd/abacusd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	for _, c := range []struct {
		bug   planted.Bug
		kinds []string
	}{
		{planted.LocalRead, []string{"late answers and then alone"}},
		{planted.AckBeforeCommit, []string{"isolate a leader", "kill one", "split"}},
		{planted.SkipSessionCheck, []string{"kill one", "isolate a leader", "flapping"}},
		{planted.NoSyncLog, []string{"power cut of all"}},
	} {
		t.Run(string(c.bug), func(t *testing.T) {
			cfg := chaosConfig(t)
			cfg.Abacusd, cfg.Env, cfg.Kinds = bin, []string{"ABACUS_PLANTED=" + string(c.bug)}, c.kinds
			if os.Getenv("ABACUS_CHAOS_DURATION") == "" {
				cfg.Duration = 90 * time.Second
			}
			r, err := campaign.Run(t.Context(), cfg)
			if r == nil {
				t.Fatal(err)
			}
			t.Log(r)
			// A cluster that does not come back is a finding where its log was lost, and nowhere else.
			found := slices.ContainsFunc(r.Violations, func(v string) bool {
				return c.bug == planted.NoSyncLog || !strings.Contains(v, "is not whole") && !strings.Contains(v, "takes no write")
			})
			if !found {
				t.Errorf("not found in %v (%v)", r.Took, err)
			}
		})
	}
}
