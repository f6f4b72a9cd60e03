package sim

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/workload"
)

// TestSim runs scenarios of new seeds until it has done what was asked for: by
// default a little, with `make sim` what docs/testing.md promises. Each scenario runs in a
// process with one processor: virtual time moves when all goroutines wait, which several
// threads only find out more slowly; and a panic in one loses one.
//
//	ABACUS_SIM_OPS, ABACUS_SIM_CRASHES, ABACUS_SIM_CUTS   go on until there were so many
//	ABACUS_SIM_LIMIT   fail if they were not reached in this time (10m)
//	ABACUS_SIM_SEED    the first seed (by the clock)
//	ABACUS_SIM_PROCS   processes at once (2)
//	ABACUS_SIM_OPTIONS a file of Options, as a failure leaves behind
//	ABACUS_SIM_DIR     where failures are described (the directory for temporary files)
func TestSim(t *testing.T) {
	seed := uint64(number(t, "ABACUS_SIM_SEED", int(time.Now().Unix()%1e9)))
	ops, crashes, cuts := number(t, "ABACUS_SIM_OPS", 40_000), number(t, "ABACUS_SIM_CRASHES", 200), number(t, "ABACUS_SIM_CUTS", 200)
	if testing.Short() {
		ops, crashes, cuts = 1, 1, 1
	}
	limit, err := time.ParseDuration(setting("ABACUS_SIM_LIMIT", "10m"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("first seed: %d", seed)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	began := time.Now()
	var mu sync.Mutex
	var sum Report
	var faults []string
	next := func() (uint64, bool) {
		mu.Lock()
		defer mu.Unlock()
		if len(faults) > 0 || ctx.Err() != nil || sum.OK >= ops && sum.Crashes >= crashes && sum.Cuts >= cuts {
			return 0, false
		}
		seed++
		return seed - 1, true
	}
	var procs sync.WaitGroup
	for range number(t, "ABACUS_SIM_PROCS", 2) {
		procs.Go(func() {
			for {
				seed, more := next()
				if !more {
					return
				}
				r, _, err := scenarioProcess(ctx, seed, setting("ABACUS_SIM_OPTIONS", ""), "")
				mu.Lock()
				sum.Add(r)
				if err != nil && ctx.Err() == nil {
					faults = append(faults, err.Error())
				} else if err == nil {
					t.Logf("seed %d: %s", seed, r)
				}
				mu.Unlock()
			}
		})
	}
	procs.Wait()
	t.Logf("%d scenarios in %v: %s", sum.Scenarios, time.Since(began).Round(time.Second), sum)
	for _, f := range faults {
		t.Error(f)
	}
	if len(faults) == 0 && sum.Scenarios >= 4 && sum.Looks < 4*sum.Scenarios {
		t.Errorf("%d looks at who serves which slots in %d scenarios: this shows too little", sum.Looks, sum.Scenarios)
	}
	// Not of a few: there are scenarios with ten moves of replicas, and most have none.
	if len(faults) == 0 && sum.Scenarios >= 40 && (sum.Members < sum.Scenarios || sum.Installs < sum.Scenarios || sum.Moves < sum.Scenarios || sum.Moved < sum.Scenarios) {
		t.Error("too few member changes, installs, transfers or moves: this shows too little")
	}
	if len(faults) == 0 && sum.Scenarios >= 40 && (sum.SlotMoves < 3*sum.Scenarios || sum.SlotsStay < sum.Scenarios/4 || sum.Splits < sum.Scenarios/4 || sum.Freeze == 0) {
		t.Error("too few moves of slots, moves that were given up, or splits: this shows too little")
	}
	if len(faults) == 0 && sum.Scenarios >= 40 && sum.Looks < 10*sum.Scenarios {
		t.Errorf("%d looks in %d scenarios: usual is twice the floor of ten each", sum.Looks, sum.Scenarios)
	}
	if len(faults) == 0 && ctx.Err() != nil {
		t.Errorf("after %v there were %d operations, %d crashes and %d cuts, want %d, %d and %d", limit, sum.OK, sum.Crashes, sum.Cuts, ops, crashes, cuts)
	}
}

// TestSeed runs one scenario in this process: what a failure says how to repeat.
func TestSeed(t *testing.T) {
	seed, err := strconv.ParseUint(os.Getenv("ABACUS_SIM_SEED"), 10, 64)
	if err != nil {
		t.Skip("ABACUS_SIM_SEED names no seed")
	}
	opt, err := readOptions(os.Getenv("ABACUS_SIM_OPTIONS"))
	if err != nil {
		t.Fatal(err)
	}
	r, fault := Run(t, seed, opt, memory(), failures())
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("%s%s\n", reportMark, raw)
	if fault != nil {
		t.Fatal(fault)
	}
	t.Log(r)
}

const reportMark = "sim report: "

// scenarioProcess runs TestSeed in a process of its own. bug is what to plant in it.
func scenarioProcess(ctx context.Context, seed uint64, options, bug string) (r Report, output []byte, err error) {
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestSeed$", "-test.timeout=8m")
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", fmt.Sprintf("ABACUS_SIM_SEED=%d", seed), "ABACUS_SIM_OPTIONS="+options, "ABACUS_PLANTED="+bug)
	output, err = cmd.CombinedOutput()
	reported := false
	for lines := bufio.NewScanner(bytes.NewReader(output)); lines.Scan(); {
		if raw, ok := strings.CutPrefix(lines.Text(), reportMark); ok {
			reported = json.Unmarshal([]byte(raw), &r) == nil
		}
	}
	switch {
	case err == nil && !reported:
		return r, output, fmt.Errorf("seed %d: no report in %q", seed, output)
	case err != nil && !reported && ctx.Err() == nil: // it did not get so far as to describe itself
		f := &workload.Findings{Dir: filepath.Join(failures(), fmt.Sprintf("seed-%d", seed))}
		f.Save("output.txt", output)
		return r, output, fmt.Errorf("seed %d: %w: %s\nall of it: %s\nagain: ABACUS_SIM_SEED=%d ABACUS_SIM_OPTIONS=%s go test ./node/sim -run '^TestSeed$' -v -count=20",
			seed, err, head(output, 2000), filepath.Join(f.Dir, "output.txt"), seed, options)
	case err != nil:
		_, told, _ := bytes.Cut(output, []byte("sim_test.go:")) // after the report and testing's own lines
		return r, output, errors.New(head(told, 8000))
	}
	return r, output, nil
}

func head(b []byte, n int) string { return string(b[:min(n, len(b))]) }

func setting(name, def string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return def
}

func number(t *testing.T, name string, def int) int {
	t.Helper()
	n, err := strconv.Atoi(setting(name, strconv.Itoa(def)))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// memory is a directory in memory, if there is one: files that are synced to a
// disk cost real time.
func memory() string {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return "/dev/shm"
	}
	return os.TempDir()
}

func failures() string {
	return setting("ABACUS_SIM_DIR", filepath.Join(os.TempDir(), "abacus-sim-failures"))
}

func readOptions(path string) (opt Options, err error) {
	if path == "" {
		return opt, nil
	}
	raw, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(raw, &opt)
	}
	return opt, err
}
