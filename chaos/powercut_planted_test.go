//go:build system && planted

package chaos_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestPlantedPowerCuts shows that the power cuts would find a log, or a state, that
// is not synced: each is planted in a build of abacusd, and must be found in time.
func TestPlantedPowerCuts(t *testing.T) {
	const limit = 30 * time.Second
	bin := filepath.Join(t.TempDir(), "abacusd")
	build := exec.Command("go", "build", "-tags", "planted", "-o", bin, "../cmd/abacusd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	for _, bug := range []string{"no-sync-log", "no-sync-state"} {
		t.Run(bug, func(t *testing.T) {
			t.Setenv("ABACUS_PLANTED", bug)
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			cfg := powerCuts{Abacusd: bin, Nodes: 1, Shards: 2, Lanes: 8, Cuts: 1000, Seed: rand.Uint64(), Log: t.Logf,
				// What lost its log may never answer, in every cluster: that is a finding too, and must be one before the limit.
				Patience: 12 * time.Second}
			cfg.Dir = imageDir(t, int64(cfg.Lanes)*diskBytes)
			began := time.Now()
			report, err := runPowerCuts(ctx, cfg)
			var f *finding
			if !errors.As(err, &f) {
				t.Fatalf("not found in %v: %v, %v", limit, report, err)
			}
			t.Logf("found after %v and %d cuts: %s", time.Since(began).Round(100*time.Millisecond), f.cuts, f.what)
			if err := os.RemoveAll(f.kept); err != nil { // it is no news
				t.Error(err)
			}
		})
	}
}
