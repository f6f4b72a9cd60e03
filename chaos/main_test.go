// Package chaos_test runs real abacusd processes and real commands against
// them, breaks them, and checks that nothing acknowledged is lost.
//
// TestMain builds both programs once. Every cluster has free ports, a temporary
// directory, and processes that the kernel ends with this one. Tests that need
// tools of the machine are in files with the build tag "tools", those that
// need root in files with the tag "system" (see the Makefile).
package chaos_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/client"
)

var abacusd, abacus string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "abacus-chaos-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	defer stopShared()
	if err := os.Chmod(dir, 0o755); err != nil { // a test runs abacusd as another user
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	build := exec.Command("go", "build", "-trimpath", "-o", dir+string(filepath.Separator), "../cmd/abacusd", "../cmd/abacus")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the programs: %v\n%s", err, out)
		return 1
	}
	abacusd, abacus = filepath.Join(dir, "abacusd"), filepath.Join(dir, "abacus")
	return m.Run()
}

// startCluster starts a cluster of the test's own and waits until it is ready.
// When the test fails, the end of each node's log is shown.
func startCluster(t *testing.T, cfg proc.Config) *proc.Cluster {
	t.Helper()
	c := createCluster(t, cfg)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, c)
	return c
}

// createCluster is startCluster that starts nothing yet; the program is ours, unless the test has another.
func createCluster(t *testing.T, cfg proc.Config) *proc.Cluster {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.Abacusd == "" {
		cfg.Abacusd = abacusd
	}
	if cfg.Nodes == 0 {
		cfg.Nodes = 3
	}
	cfg.DieWithParent = true
	c, err := proc.Create(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			logTails(t, c)
		}
		if err := c.Kill(); err != nil {
			t.Error(err)
		}
		c.Release()
	})
	return c
}

func logTails(t *testing.T, c *proc.Cluster) {
	for _, n := range c.Nodes() {
		t.Logf("the end of the log of %s:\n%s", n.ID(), n.LogTail(30))
	}
}

func waitReady(t *testing.T, c *proc.Cluster) {
	t.Helper()
	if err := c.WaitReady(timeout(t, 90*time.Second), nil); err != nil {
		t.Fatal(err)
	}
}

var shared struct {
	sync.Mutex
	c   *proc.Cluster
	dir string
}

// sharedCluster is one cluster of three nodes for all tests that leave it well.
// Each keeps to keys with a prefix of its own.
func sharedCluster(t *testing.T) *proc.Cluster {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.c == nil {
		dir, err := os.MkdirTemp("", "abacus-chaos-shared-")
		if err != nil {
			t.Fatal(err)
		}
		shared.dir = dir
		c, err := proc.Create(proc.Config{Dir: dir, Abacusd: abacusd, Nodes: 3, Shards: 8, DieWithParent: true})
		if err != nil {
			t.Fatal(err)
		}
		shared.c = c
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			logTails(t, shared.c)
		}
	})
	// A test before this one may have left a node that is coming back.
	waitReady(t, shared.c)
	return shared.c
}

func stopShared() {
	if shared.c != nil {
		if err := shared.c.Kill(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		shared.c.Release()
		_ = os.RemoveAll(shared.dir)
	}
}

// open returns a client of all nodes of the cluster.
func open(t *testing.T, c *proc.Cluster) *client.Client {
	t.Helper()
	cfg := client.Config{Addrs: c.ClientAddrs(), Timeout: 20 * time.Second}
	if c.TLS() {
		cfg.TLSFiles = &client.TLSFiles{CA: c.CA()}
	}
	cl, err := client.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cl.Close() })
	return cl
}

// timeout is a context that ends with the test, or after d.
func timeout(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits for a condition.
func eventually(t *testing.T, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain: %s", limit, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// result of a command.
type result struct {
	stdout, stderr string
	code           int
}

// command runs a program to its end, at most for two minutes.
func command(t *testing.T, stdin string, name string, args ...string) result {
	t.Helper()
	cmd := exec.CommandContext(timeout(t, 2*time.Minute), name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", proc.Shell(append([]string{name}, args...)), err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// cli runs abacus against a node.
func cli(t *testing.T, n *proc.Node, args ...string) result {
	t.Helper()
	return command(t, "", abacus, append([]string{"--addr", n.Addrs().Client}, args...)...)
}

// must returns the standard output of a command that must succeed.
func (r result) must(t *testing.T) string {
	t.Helper()
	if r.code != 0 {
		t.Fatalf("exit code %d\nstdout: %.2000s\nstderr: %.2000s", r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// record is what `abacus -o json job …` prints, as far as tests look.
type record struct {
	ID       string      `json:"id"`
	State    string      `json:"state"`
	Result   json.Number `json:"result"`
	Error    string      `json:"error"`
	Records  int64       `json:"records"`
	Bad      int64       `json:"bad"`
	BadKeys  []string    `json:"bad_keys"`
	Progress struct {
		Tasks     int   `json:"tasks"`
		TasksDone int   `json:"tasks_done"`
		Records   int64 `json:"records"`
	} `json:"progress"`
	Shards []struct {
		Shard    uint32 `json:"shard"`
		Master   string `json:"master"`
		Attempts int    `json:"attempts"`
		Tasks    []struct {
			Node     string   `json:"node"`
			Role     string   `json:"role"`
			Attempts int      `json:"attempts"`
			FailedOn []string `json:"failed_on"`
			Records  int64    `json:"records"`
		} `json:"tasks"`
	} `json:"shards"`
}

func parseRecord(t *testing.T, text string) record {
	t.Helper()
	var r record
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatalf("parse a job's record: %v\n%.2000s", err, text)
	}
	return r
}

// writeFile writes a file of lines for an import, in the test's directory.
func writeFile(t *testing.T, name string, write func(w io.Writer)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	var b bytes.Buffer
	write(&b)
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
