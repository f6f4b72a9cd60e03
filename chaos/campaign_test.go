//go:build system

package chaos_test

import (
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/campaign"
)

// TestChaos breaks a cluster in all ways that there are, for as long as is asked for, and judges what its clients saw. It is
// what `make chaos` runs:
//
//	ABACUS_CHAOS_DURATION   how long (5m); longer, if not every kind of fault has come once
//	ABACUS_CHAOS_SEED       of an earlier run
//	ABACUS_CHAOS_WITHIN     in how long a shard is to serve again, in 99 of 100 cases (5s)
//	ABACUS_CHAOS_NODES      how many (5)
//	ABACUS_CHAOS_NEMESES    kinds of faults, with commas between (all)
//	ABACUS_CHAOS_WORKLOADS  the same (all)
//	ABACUS_CHAOS_TLS        off: in plain text (on)
//	ABACUS_CHAOS_DIR        where report and logs go
func TestChaos(t *testing.T) {
	cfg := chaosConfig(t)
	// Interrupted, it still takes down what it has put up.
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	t.Logf("seed %d, report in %s", cfg.Seed, cfg.Dir)
	r, err := campaign.Run(ctx, cfg)
	if r != nil {
		if e := r.Save(cfg.Dir); e != nil {
			t.Error(e)
		}
		t.Log(r)
		t.Logf("the report: %s", filepath.Join(cfg.Dir, "report.html"))
	}
	if err != nil {
		t.Error(err)
	} else if !r.OK() {
		t.Error("the run found a fault, was too late, or shows too little")
	}
	if t.Failed() {
		t.Logf("again: %s", cfg.Again())
	}
}

func chaosConfig(t *testing.T) campaign.Config {
	t.Helper()
	setting := func(name, def string) string {
		if s := os.Getenv("ABACUS_CHAOS_" + name); s != "" {
			return s
		}
		return def
	}
	cfg := campaign.Config{Abacusd: abacusd, Log: t.Logf, Seed: rand.Uint64N(1e9)}
	var err error
	if cfg.Duration, err = time.ParseDuration(setting("DURATION", "5m")); err != nil {
		t.Fatalf("ABACUS_CHAOS_DURATION: %v", err)
	}
	if cfg.Within, err = time.ParseDuration(setting("WITHIN", "5s")); err != nil {
		t.Fatalf("ABACUS_CHAOS_WITHIN: %v", err)
	}
	if cfg.Nodes, err = strconv.Atoi(setting("NODES", "5")); err != nil {
		t.Fatalf("ABACUS_CHAOS_NODES: %v", err)
	}
	if cfg.Seed, err = strconv.ParseUint(setting("SEED", strconv.FormatUint(cfg.Seed, 10)), 10, 64); err != nil {
		t.Fatalf("ABACUS_CHAOS_SEED: %v", err)
	}
	list := func(name string) []string {
		return strings.FieldsFunc(setting(name, ""), func(r rune) bool { return r == ',' })
	}
	cfg.Kinds, cfg.Workloads = list("NEMESES"), list("WORKLOADS")
	cfg.Plaintext = setting("TLS", "on") == "off"
	if cfg.Dir = setting("DIR", ""); cfg.Dir == "" {
		if cfg.Dir, err = os.MkdirTemp("", "abacus-chaos-run-"); err != nil {
			t.Fatal(err)
		}
	}
	if cfg.Rootless = os.Geteuid() != 0; cfg.Rootless {
		t.Log("NOT ROOT: nodes have no network and no disk of their own. Links are cut inside the nodes, and power cuts, failing, full and hung disks, loss and one-way cuts are LEFT OUT.")
		return cfg
	}
	const imageBytes = 5 << 30
	cfg.Images = imageDir(t, imageBytes)
	return cfg
}
