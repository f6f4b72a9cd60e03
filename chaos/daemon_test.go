package chaos_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/load"
	"github.com/abacusdb/abacus/chaos/proc"
)

// daemon runs abacusd with the arguments and expects it to give up by itself.
func daemon(t *testing.T, env []string, attr *syscall.SysProcAttr, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, abacusd, args...)
	cmd.Env, cmd.SysProcAttr = append(os.Environ(), env...), attr
	if cmd.Dir = t.TempDir(); attr != nil { // not here: a default path must not end up in the source
		cmd.Dir = os.TempDir() // another user may not enter the test's own
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run abacusd: %v", err)
	}
	if ctx.Err() != nil {
		t.Errorf("abacusd %s goes on running:\n%s", strings.Join(args, " "), stderr.String())
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// refusal checks that a program gave up with the exit code and said why, without a stack trace.
func (r result) refusal(t *testing.T, code int, parts ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d, want %d", r.code, code)
	}
	for _, p := range parts {
		if !strings.Contains(r.stderr, p) {
			t.Errorf("it does not say %q", p)
		}
	}
	if strings.Contains(r.stderr, "goroutine ") || strings.Contains(r.stderr, "panic") {
		t.Error("it panics")
	}
	if t.Failed() {
		t.Logf("stderr: %.3000s", r.stderr)
	}
}

// elsewhere are flags that put all ports where nothing else is.
var elsewhere = []string{"--client-addr", "127.0.0.1:0", "--cluster-addr", "127.0.0.1:0", "--peer-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0"}

func TestBadFlags(t *testing.T) {
	dir := t.TempDir()
	good := append([]string{"--id", "x", "--data-dir", filepath.Join(dir, "data"), "--bootstrap"}, elsewhere...)
	badYAML := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(badYAML, []byte("shards: 4\ncolour: red\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		args []string
		env  []string
		want []string
	}{
		{"a flag that there is not", append(good, "--colour", "red"), nil, []string{"colour"}},
		{"an empty data directory", append(good, "--data-dir", ""), nil, []string{"--data-dir"}},
		{"an empty id", append(good, "--id", ""), nil, []string{"--id"}},
		{"an id that is none", append(good, "--id", "a b/../c"), nil, []string{"id"}},
		{"an address that is none", append(good, "--client-addr", "nowhere"), nil, []string{"client-addr", "nowhere"}},
		{"an address for all the world", append(good, "--http-addr", "0.0.0.0:7601"), nil, []string{"--insecure", "0.0.0.0:7601"}},
		{"no shards", append(good, "--shards", "0"), nil, []string{"--shards"}},
		{"too many shards", append(good, "--shards", "100000"), nil, []string{"--shards"}},
		{"words for a number", append(good, "--shards", "many"), nil, []string{"shards", "many"}},
		{"no replicas", append(good, "--replicas", "-1"), nil, []string{"--replicas"}},
		{"first and not first", append(good, "--join", "127.0.0.1:1"), nil, []string{"--bootstrap", "--join"}},
		{"a level that there is not", append(good, "--log-level", "loud"), nil, []string{"log-level", "loud"}},
		{"an argument", append(good, "now"), nil, []string{"now"}},
		{"a bad environment", good, []string{"ABACUS_SHARDS=many"}, []string{"ABACUS_SHARDS", "many"}},
		{"a setting that there is not", append(good, "--config", badYAML), nil, []string{"colour", "bad.yaml"}},
		{"no such file", append(good, "--config", filepath.Join(dir, "none.yaml")), nil, []string{"none.yaml"}},
	} {
		t.Run(tc.name, func(t *testing.T) { daemon(t, tc.env, nil, tc.args...).refusal(t, 2, tc.want...) })
	}
	if _, err := os.Stat(filepath.Join(dir, "data")); err == nil {
		t.Error("a refused command line left a data directory")
	}
}

// TestRefusedStarts gives abacusd directories, ports and ids that it must not take.
func TestRefusedStarts(t *testing.T) {
	c := sharedCluster(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	n1 := c.Node(1)
	flags := func(id, data string, more ...string) []string {
		return append(append([]string{"--id", id, "--data-dir", data}, elsewhere...), more...)
	}
	t.Run("a file for a directory", func(t *testing.T) {
		daemon(t, nil, nil, flags("x", file, "--bootstrap")...).refusal(t, 1, file)
	})
	t.Run("a directory that may not be read", func(t *testing.T) {
		locked := filepath.Join(dir, "locked")
		if err := os.Mkdir(locked, 0o700); err != nil {
			t.Fatal(err)
		}
		var attr *syscall.SysProcAttr
		if os.Getuid() == 0 { // root may read everything: so somebody else tries
			attr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		} else if err := os.Chmod(locked, 0); err != nil {
			t.Fatal(err)
		}
		daemon(t, nil, attr, flags("x", locked, "--bootstrap")...).refusal(t, 1, locked, "permission denied")
	})
	t.Run("a directory in use", func(t *testing.T) {
		daemon(t, nil, nil, flags("n1", n1.DataDir())...).refusal(t, 1, n1.DataDir(), "in use")
	})
	t.Run("a port in use", func(t *testing.T) {
		daemon(t, nil, nil, append(flags("x", filepath.Join(dir, "port"), "--bootstrap"), "--http-addr", n1.Addrs().HTTP)...).refusal(t, 1, n1.Addrs().HTTP, "in use")
	})
	t.Run("an id in use", func(t *testing.T) {
		daemon(t, nil, nil, flags("n2", filepath.Join(dir, "id"), "--join", n1.Addrs().Peer)...).refusal(t, 1, `"n2"`, "--id")
	})
	healthy(t, c)
}

// TestAnotherClustersData starts a node on the data of a cluster that is gone,
// at the addresses of another: it must not mix them.
func TestAnotherClustersData(t *testing.T) {
	old := startCluster(t, proc.Config{Nodes: 2, Shards: 2})
	cli(t, old.Node(1), "put", "whose", "the old cluster's").must(t)
	if err := old.Stop(15 * time.Second); err != nil {
		t.Fatal(err)
	}
	stranger := old.Node(2)

	young := startCluster(t, proc.Config{Nodes: 1, Shards: 2, BasePort: old.BasePort()})
	cli(t, young.Node(1), "put", "whose", "the young cluster's").must(t)

	line := stranger.CommandLine()
	daemon(t, nil, nil, line[1:]...).refusal(t, 1, "cluster")
	if got := cli(t, young.Node(1), "get", "whose").must(t); got != "the young cluster's" {
		t.Errorf("the young cluster holds %q", got)
	}
	if s, err := young.Status(timeout(t, 5*time.Second)); err != nil || len(s.Nodes) != 1 {
		t.Errorf("the young cluster: %+v, %v", s, err)
	}
	t.Run("the id of another node", func(t *testing.T) {
		other := append([]string{"--id", "n7"}, line[3:]...)
		daemon(t, nil, nil, other...).refusal(t, 1, `"n7"`, stranger.DataDir())
	})
}

// TestStop shows that SIGTERM ends a node within ten seconds, in order, and that
// its shards have new leaders at once rather than after an election time-out.
func TestStop(t *testing.T) {
	c := startCluster(t, proc.Config{Shards: 8})
	l := load.Start(open(t, c), load.Config{Prefix: "stop/", Writers: 6})
	t.Cleanup(l.Stop)
	var stops, led []time.Duration
	for _, n := range c.Nodes() {
		progress(t, l, "before the stop of "+n.ID(), 200, 30*time.Second)
		l.Tally(true)
		began := time.Now()
		if err := n.Stop(30 * time.Second); err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		if code := n.ExitCode(); code != 0 {
			t.Errorf("%s ended with exit code %d:\n%s", n.ID(), code, n.LogTail(20))
		}
		stopped := time.Now()
		eventually(t, 15*time.Second, "every shard is led by another node", func() bool {
			s, err := c.Status(timeout(t, time.Second))
			if err != nil {
				return false
			}
			for _, sh := range s.Shards {
				if sh.Leader == "" || sh.Leader == n.ID() {
					return false
				}
			}
			return true
		})
		stops, led = append(stops, took), append(led, time.Since(stopped))
		progress(t, l, "without "+n.ID(), 100, 30*time.Second)
		t.Logf("%s stopped in %v; a writer waited at most %v", n.ID(), took.Round(time.Millisecond), l.Tally(false).Slowest.Round(time.Millisecond))
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		waitReady(t, c)
	}
	// Two of three: a single hand-over that its disk held up costs an election.
	slices.Sort(stops)
	slices.Sort(led)
	if stops[1] > 10*time.Second || led[1] > time.Second {
		t.Errorf("the nodes stopped in %v, and their shards had other leaders %v later", stops, led)
	}
	check(t, c, l)
}

// TestDev drives `abacus dev` as a user does.
func TestDev(t *testing.T) {
	reserve, err := proc.Create(proc.Config{Dir: t.TempDir(), Nodes: 3})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reserve.Release)
	dir := filepath.Join(t.TempDir(), "dev")
	port := func(n int) string { return reserve.Node(n).Addrs().Client }
	base := strings.TrimPrefix(reserve.Node(1).Addrs().Client, "127.0.0.1:")
	base = base[:len(base)-2] + "00" // bases are hundreds; node 1 has base+1
	t.Cleanup(func() {
		if c, err := proc.Open(dir); err == nil {
			if t.Failed() {
				logTails(t, c)
			}
			_ = c.Kill()
		}
	})
	dev := func(args ...string) result {
		t.Helper()
		return command(t, "", abacus, append([]string{"dev", args[0], "--dir", dir}, args[1:]...)...) // before a --
	}

	dev("status").refusal(t, 1, "abacus dev up")
	dev("down").refusal(t, 1, "abacus dev up")

	// Nothing of a first start that fails is kept: neither ports that are in use nor flags that are wrong.
	taken, err := net.Listen("tcp", reserve.Node(3).Addrs().HTTP)
	if err != nil {
		t.Fatal(err)
	}
	dev("up", "--detach", "--base-port", base).refusal(t, 1, "HTTP port of n3", "--base-port")
	if _, err := os.Stat(dir); err == nil {
		t.Error("a cluster whose ports are in use left a directory")
	}
	_ = taken.Close()
	dev("up", "--detach", "--nodes", "1", "--base-port", base, "--", "--colour", "red").refusal(t, 1, "unknown flag: --colour", dir)
	up := dev("up", "--detach", "--shards", "4", "--base-port", base)
	up.must(t)
	if !strings.Contains(up.stderr, "export ABACUS_ADDR="+port(1)+","+port(2)+","+port(3)) {
		t.Errorf("up does not say where all nodes are: %q", up.stderr)
	}
	if !strings.Contains(up.stdout, port(1)) || !strings.Contains(up.stderr, "ready after") {
		t.Errorf("up says %q and %q", up.stdout, up.stderr)
	}
	dev("up", "--detach").refusal(t, 1, "running already")
	dev("status").must(t)
	command(t, "", abacus, "--addr", port(1), "put", "k", "v").must(t)

	dev("kill", "9").refusal(t, 2, "numbered 1 to 3")
	dev("kill").refusal(t, 2)
	dev("kill", "2").must(t)
	for _, n := range []int{1, 3} { // at once: whoever looks next sees it
		if got := command(t, "", abacus, "--addr", port(n), "status"); got.code != 1 || !strings.Contains(got.stdout, "node n2 does not answer") {
			t.Errorf("right after the kill n%d says, with exit code %d:\n%s", n, got.code, got.stdout)
		}
	}
	dev("kill", "2").refusal(t, 1, "not running")
	dev("up", "--detach", "--abacusd", "/bin/sh").refusal(t, 1, "stop it first")
	if got := dev("status", "-o", "json"); got.code != 1 || !strings.Contains(got.stdout, `"state": "down"`) {
		t.Errorf("status with a dead node, exit code %d: %s", got.code, got.stdout)
	}
	eventually(t, 20*time.Second, "the two that are left answer", func() bool {
		return command(t, "", abacus, "--addr", port(1)+","+port(3), "get", "k").stdout == "v"
	})
	dev("restart", "2").must(t)
	if got := dev("status"); got.code != 0 { // restart waited for that
		t.Errorf("after the restart: exit code %d, %s", got.code, got.stderr)
	}
	dev("pause", "3").must(t)
	if got := dev("status"); got.code != 1 || !strings.Contains(got.stdout, "paused") || !strings.Contains(got.stderr, "n3 is paused") {
		t.Errorf("status with a paused node, exit code %d: %s%s", got.code, got.stdout, got.stderr)
	}
	dev("resume", "n3").must(t)
	eventually(t, 30*time.Second, "all is well again", func() bool { return dev("status").code == 0 })
	dev("down").must(t)
	dev("down").must(t)
	dev("up", "--nodes", "5").refusal(t, 2, "--nodes 3")
	dev("up", "--tls").refusal(t, 2, "--tls=false")
	dev("up", "--abacusd", filepath.Join(dir, "none")).refusal(t, 2, "--abacusd")
	if none, err := exec.LookPath("false"); err != nil {
		t.Fatal(err)
	} else { // it does not come up, and the next start is without
		dev("up", "--abacusd", none, "--wait", "2s").refusal(t, 1)
	}

	// In the foreground, with the data of before, on a port that is taken and then not.
	taken, err = net.Listen("tcp", reserve.Node(2).Addrs().Peer)
	if err != nil {
		t.Fatal(err)
	}
	dev("up").refusal(t, 1, reserve.Node(2).Addrs().Peer, "peer port of n2", "--base-port")
	_ = taken.Close()
	dev("up", "--", "--colour", "red").refusal(t, 1, "unknown flag: --colour", dir) // and the next start is without

	newer := filepath.Join(t.TempDir(), "abacusd") // as after an upgrade
	if err := os.Symlink(abacusd, newer); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(abacus, "dev", "up", "--dir", dir, "--abacusd", newer)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	var said strings.Builder
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		said.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), "the nodes run until Ctrl-C") {
			break
		}
	}
	if got := command(t, "", abacus, "--addr", port(3), "get", "k"); got.stdout != "v" {
		t.Errorf("the value of before: %q", got.stdout)
	}
	if got := command(t, "", abacus, "dev", "status", "--dir", dir); got.code != 0 {
		t.Errorf("status on the other program: exit code %d, %s", got.code, got.stderr)
	}
	c, err := proc.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if c.Abacusd() != newer { // the next start is with it, too
		t.Errorf("%s was asked for, and %s kept", newer, c.Abacusd())
	}
	for n := 1; n <= 3; n++ {
		if args, err := os.ReadFile("/proc/" + strconv.Itoa(c.Node(n).Pid()) + "/cmdline"); err != nil || !strings.HasPrefix(string(args), newer+"\x00") {
			t.Errorf("n%d runs %q, %v", n, args, err)
		}
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
		said.WriteString(lines.Text() + "\n")
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after Ctrl-C: %v", err)
	}
	for _, want := range []string{"n1 | ", "n3 | ", "all nodes have stopped"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("up in the foreground does not say %q:\n%.3000s", want, said.String())
		}
	}
	if got := dev("status"); got.code == 0 || strings.Count(got.stdout, "down") < 3 {
		t.Errorf("after Ctrl-C: exit code %d\n%s", got.code, got.stdout)
	}
}

// TestCommandLine takes keys and values through the command line, and looks at
// the exit codes that scripts see.
func TestCommandLine(t *testing.T) {
	c := sharedCluster(t)
	n := c.Node(1)
	cli(t, n, "put", "cl/a", "1").must(t)
	if got := cli(t, c.Node(2), "get", "cl/a"); got.stdout != "1" {
		t.Errorf("get prints %q", got.stdout)
	}
	if got := strings.TrimSpace(cli(t, n, "incr", "cl/a").must(t)); got != "2" {
		t.Errorf("incr prints %q", got)
	}
	cli(t, n, "cas", "cl/a", "2", "3").must(t)
	cli(t, n, "cas", "cl/a", "2", "4").refusal(t, 1)
	if got := cli(t, n, "scan", "--prefix", "cl/").must(t); got != "cl/a\n" {
		t.Errorf("scan prints %q", got)
	}
	cli(t, n, "del", "cl/a").must(t)
	cli(t, n, "get", "cl/a").refusal(t, 1)
	cli(t, n, "put", "cl/large", strings.Repeat("k", 100)).must(t)
	cli(t, n, "put", strings.Repeat("k", 2000), "v").refusal(t, 1, "1024")
	cli(t, n, "nosuch").refusal(t, 2)
	cli(t, n, "get").refusal(t, 2)
	command(t, "", abacus, "--addr", "127.0.0.1:1", "--timeout", "2s", "get", "x").refusal(t, 5, "abacus dev up")
	cli(t, n, "status").must(t)
}
