//go:build planted

package sim

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/abacusdb/abacus/fsm/planted"
	"github.com/abacusdb/abacus/store"
)

// plantedLimit is how long the simulation may take to find a planted bug.
const plantedLimit = 30 * time.Second

// TestPlanted shows that the simulation finds bugs: each of these is planted, and must be
// found in time. And it finds none where none is planted.
func TestPlanted(t *testing.T) {
	for _, c := range []struct {
		bug planted.Bug
		opt Options // chosen for the bug
	}{
		{planted.AckBeforeCommit, Options{Duration: 25 * time.Second, Think: 20 * time.Millisecond, Faults: Faults{Cut: 200 * time.Millisecond, Slow: -1, Members: -1}}},
		// A restart then finds many entries after the snapshot that the state has already.
		{planted.DropAppliedSkip, Options{Duration: 15 * time.Second, CheckpointBytes: 512, Snapshots: store.Snapshots{Entries: 300}}},
		{planted.EarlyCommit, Options{Nodes: 3, Shards: 6, Replicas: 3, Think: 10 * time.Millisecond, Faults: Faults{Crash: 600 * time.Millisecond, Slow: 300 * time.Millisecond, Cut: 2 * time.Second, Late: -1, Members: -1}}},
		{planted.LogNotMonotonic, Options{}},
		{planted.EarlyCompaction, Options{}},
		{planted.SkipSessionCheck, Options{}},
		// Slots are on the move all the time, and clients write all the time.
		{planted.FreezeLate, Options{Clients: 12, Think: 5 * time.Millisecond, Duration: 20 * time.Second, Faults: Faults{Slots: 100 * time.Millisecond, Crash: 5 * time.Second, Cut: 3 * time.Second, Late: -1, Members: -1, Wishes: -1}}},
		{planted.LoseChanges, Options{Clients: 12, Think: 5 * time.Millisecond, Duration: 20 * time.Second, Faults: Faults{Slots: 100 * time.Millisecond, Crash: 5 * time.Second, Cut: 3 * time.Second, Late: -1, Members: -1, Wishes: -1}}},
		// Answers are lost, too, and what had none is sent again to the new owner.
		{planted.ForgetAnswers, Options{Clients: 16, Think: 5 * time.Millisecond, Faults: Faults{Slots: 100 * time.Millisecond, Cut: 200 * time.Millisecond, Crash: 2 * time.Second, Late: -1, Members: -1, Wishes: -1}}},
	} {
		t.Run(string(c.bug), func(t *testing.T) {
			options := filepath.Join(t.TempDir(), "options.json")
			raw, err := json.Marshal(c.opt)
			if err == nil {
				err = os.WriteFile(options, raw, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Setenv("ABACUS_SIM_DIR", t.TempDir()) // what is found here is no news
			ctx, cancel := context.WithTimeout(t.Context(), plantedLimit)
			defer cancel()
			began := time.Now()
			var (
				seeds atomic.Uint64
				mu    sync.Mutex
				sum   Report
				found string
				all   sync.WaitGroup
			)
			for range runtime.NumCPU() { // each scenario is a process of one thread
				all.Go(func() {
					for ctx.Err() == nil {
						seed := seeds.Add(1)
						r, _, err := scenarioProcess(ctx, seed, options, string(c.bug))
						mu.Lock()
						switch {
						case ctx.Err() != nil:
						case err == nil:
							sum.Add(r)
						case strings.Contains(err.Error(), "the scenario shows too little"): // which may be so without the bug
						default:
							first, _, _ := strings.Cut(strings.TrimSpace(err.Error()), "\n")
							found = fmt.Sprintf("in scenario %d: %s", seed, first)
							cancel()
						}
						mu.Unlock()
					}
				})
			}
			if all.Wait(); found == "" {
				t.Fatalf("not found in %v: %s", plantedLimit, sum)
			}
			t.Logf("found after %v, %s", time.Since(began).Round(10*time.Millisecond), found)
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
