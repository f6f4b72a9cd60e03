package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/abacusdb/abacus/node"
)

// parse fills a configuration as main does: flags, then the environment, then
// the YAML file.
func parse(t *testing.T, file string, args ...string) (node.Config, error) {
	t.Helper()
	cfg, opts := node.DefaultConfig(), options{}
	f := pflag.NewFlagSet("abacusd", pflag.ContinueOnError)
	bindFlags(f, &cfg, &opts)
	if file != "" {
		path := filepath.Join(t.TempDir(), "abacus.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	return cfg, layer(f)
}

// A flag wins over the environment, the environment over the file, the file
// over the default.
func TestPrecedence(t *testing.T) {
	t.Setenv("ABACUS_ID", "from-env")
	t.Setenv("ABACUS_SHARDS", "7")
	file := "id: from-file\nshards: 5\nreplicas: 2\njoin: [127.0.0.1:1, 127.0.0.1:2]\ncommand-timeout: 9s\ninsecure: true\n"
	cfg, err := parse(t, file, "--id", "from-flag")
	if err != nil {
		t.Fatal(err)
	}
	if cfg.ID != "from-flag" || cfg.Shards != 7 || cfg.Replicas != 2 || cfg.CommandTimeout.String() != "9s" || !cfg.Insecure {
		t.Errorf("got %+v", cfg)
	}
	if !slices.Equal(cfg.Join, []string{"127.0.0.1:1", "127.0.0.1:2"}) {
		t.Errorf("join %q", cfg.Join)
	}
	if cfg.ClientAddr != node.DefaultConfig().ClientAddr {
		t.Errorf("what nobody names is %q", cfg.ClientAddr)
	}
	// A flag given with its default's value was given all the same.
	if cfg, err := parse(t, file, "--shards", "8"); err != nil || cfg.Shards != 8 {
		t.Errorf("shards %d, %v", cfg.Shards, err)
	}
}

// What means nothing without --bootstrap is not passed over in silence.
func TestIgnored(t *testing.T) {
	for want, args := range map[string][]string{"": {"--bootstrap", "--shards", "4"}, "--shards, --replicas": {"--join", "127.0.0.1:1", "--shards", "4", "--replicas", "3"}} {
		cfg, opts := node.DefaultConfig(), options{}
		f := pflag.NewFlagSet("abacusd", pflag.ContinueOnError)
		bindFlags(f, &cfg, &opts)
		if err := f.Parse(args); err != nil {
			t.Fatal(err)
		}
		if got := ignored(f, cfg); got != want {
			t.Errorf("%q: ignored are %q, want %q", args, got, want)
		}
	}
}

// Every fault of the environment and the file is named, with where it stands.
func TestLayerFaults(t *testing.T) {
	t.Setenv("ABACUS_REPLICAS", "many")
	_, err := parse(t, "shards: some\nshard: 8\n")
	for _, want := range []string{"ABACUS_REPLICAS", `there is no setting "shard"`, "some"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	if _, err := parse(t, "id: [unclosed"); err == nil {
		t.Error("a file that is no YAML was accepted")
	}
	if _, err := parse(t, "", "--config", "/no/such/file"); err == nil || !strings.Contains(err.Error(), "/no/such/file") {
		t.Errorf("a missing file: %v", err)
	}
}

// What is written in the file counts, not what YAML makes of it; a setting
// without a value is a mistake, and not the directory "<nil>".
func TestFileValues(t *testing.T) {
	cfg, err := parse(t, "id: 007\ndata-dir: 1_000\ncommand-timeout: &t 2s\nstop-timeout: *t\njoin: 127.0.0.1:1,127.0.0.1:2\ninsecure: true\n")
	if err != nil || cfg.ID != "007" || cfg.DataDir != "1_000" || cfg.StopTimeout != 2*time.Second || len(cfg.Join) != 2 || !cfg.Insecure {
		t.Errorf("got %+v, %v", cfg, err)
	}
	for _, file := range []string{"data-dir:\n", "data-dir: ~\n", "join: [~]\n", "join: [[a]]\n", "id: {a: b}\n", "version: true\n", "help: true\n"} {
		if _, err := parse(t, file); err == nil {
			t.Errorf("%q was accepted", file)
		}
	}
}

// Flags that only print something are no settings: others' variables are called so too.
func TestVersionIsNoSetting(t *testing.T) {
	t.Setenv("ABACUS_VERSION", "1.2.3")
	t.Setenv("ABACUS_HELP", "please")
	var out, errs strings.Builder
	if code := run([]string{"--log-level", "loud"}, &out, &errs); code != exitUsage || !strings.Contains(errs.String(), "log-level") || strings.Contains(errs.String(), "1.2.3") {
		t.Errorf("exit code %d: %s", code, errs.String())
	}
	if code := run([]string{"version", "now"}, &out, &errs); code != exitUsage {
		t.Errorf("an argument to version: exit code %d", code)
	}
}

// The file's name may come from the environment too.
func TestConfigFromEnvironment(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte("id: n7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ABACUS_CONFIG", path)
	if cfg, err := parse(t, ""); err != nil || cfg.ID != "n7" {
		t.Errorf("id %q, %v", cfg.ID, err)
	}
}
