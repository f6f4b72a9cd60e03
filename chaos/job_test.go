package chaos_test

import (
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/compute/job"
)

// TestArticle is the example that the project began with: ten keys, squared
// and added up, printed alone.
func TestArticle(t *testing.T) {
	c := sharedCluster(t)
	for i := range 10 {
		cli(t, c.Node(1+i%3), "put", fmt.Sprintf("num/%d", i), fmt.Sprint(i)).must(t)
	}
	for _, n := range c.Nodes() {
		got := cli(t, n, "job", "run", "--prefix", "num/", "--as", "int", "--map", "square", "--reduce", "sum")
		if got.code != 0 || got.stdout != "285\n" {
			t.Errorf("by way of %s: exit code %d, %q, %s", n.ID(), got.code, got.stdout, got.stderr)
		}
	}
}

// TestJobOverMillionRecords imports a million numbers, and shows that followers
// run tasks in every shard; and that when a follower is killed in the
// middle, the answer is right and its tasks ran elsewhere.
func TestJobOverMillionRecords(t *testing.T) {
	const records = 1_000_000
	c := startCluster(t, proc.Config{Shards: 8})
	path := writeFile(t, "numbers", func(w io.Writer) {
		for i := range records {
			fmt.Fprintln(w, i)
		}
	})
	began := time.Now()
	cli(t, c.Node(1), "import", "--format", "lines", "--prefix", "m/", path).must(t)
	t.Logf("imported %d records in %v", records, time.Since(began).Round(time.Millisecond))

	// 0² + 1² + … + (n-1)² = (n-1)n(2n-1)/6
	want := big.NewInt(records - 1)
	want.Mul(want, big.NewInt(records)).Mul(want, big.NewInt(2*records-1)).Div(want, big.NewInt(6))

	began = time.Now()
	rec := parseRecord(t, cli(t, c.Node(2), "-o", "json", "job", "run", "--prefix", "m/", "--as", "int", "--map", "square", "--reduce", "sum").must(t))
	t.Logf("the job took %v with %d tasks", time.Since(began).Round(time.Millisecond), rec.Progress.Tasks)
	if rec.Result.String() != want.String() || rec.Records != records {
		t.Errorf("got %s over %d records, want %s over %d", rec.Result, rec.Records, want, records)
	}
	if len(rec.Shards) != 8 {
		t.Errorf("%d shards reported", len(rec.Shards))
	}
	for _, s := range rec.Shards {
		byRole := map[string]int{}
		for _, task := range s.Tasks {
			byRole[task.Role]++
			if task.Role == job.RoleFollower && task.Node == s.Master {
				t.Errorf("shard %d: a task of follower %s ran on the master", s.Shard, task.Node)
			}
		}
		if byRole[job.RoleFollower] == 0 {
			t.Errorf("shard %d, mastered by %s: no task ran on a follower: %v", s.Shard, s.Master, byRole)
		}
	}

	// A job takes a fraction of a second, so where it is when the kill comes is
	// chance. The answer must be right every time, and some kill must hit a follower
	// that has tasks in hand.
	hits := 0
	for attempt := 1; attempt <= 2 || hits == 0; attempt++ {
		if attempt > 8 {
			t.Fatal("no kill hit a follower with tasks in hand")
		}
		rec, moved := killDuringJob(t, c, false, time.Duration(attempt)*25*time.Millisecond)
		if rec.Result.String() != want.String() || rec.Records != records {
			t.Errorf("attempt %d: got %s over %d records, want %s over %d", attempt, rec.Result, rec.Records, want, records)
		}
		if moved > 0 {
			hits++
		}
	}
	// A node that takes tasks and does not answer is not waited for.
	rec2, moved := killDuringJob(t, c, true, 100*time.Millisecond)
	if rec2.Result.String() != want.String() || rec2.Records != records {
		t.Errorf("with a paused node: got %s over %d records, want %s over %d", rec2.Result, rec2.Records, want, records)
	}
	t.Logf("a paused node: %d tasks ran elsewhere", moved)
}

// killDuringJob submits the job, kills a node that does not lead shard 0 after
// the delay, waits for the answer and brings the node back. With paused, the
// node is stopped (SIGSTOP) before the submit. It counts the tasks that the
// node had as a follower and that ran elsewhere.
func killDuringJob(t *testing.T, c *proc.Cluster, paused bool, delay time.Duration) (rec job.Record, moved int) {
	t.Helper()
	ctx := timeout(t, time.Minute)
	leader := c.Leader(ctx, 0)
	if leader == nil {
		t.Fatal("shard 0 has no leader")
	}
	victim := c.Node(1)
	if victim == leader {
		victim = c.Node(2)
	}
	cl, err := client.Open(client.Config{Addrs: []string{leader.Addrs().Client}, NoRouting: true, Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if paused {
		if err := victim.Pause(); err != nil {
			t.Fatal(err)
		}
	}
	id, err := cl.SubmitJob(ctx, job.Spec{Prefix: "m/", As: job.AsInt, Map: job.MapSquare, Reduce: job.ReduceSum, TasksPerReplica: 8, Cache: job.CacheOff})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(delay) // not for something to happen: to kill at that moment
	if err := victim.Kill(); err != nil {
		t.Fatal(err)
	}
	if rec, err = cl.JobWait(ctx, id, nil); err == nil {
		err = rec.Err()
	}
	if err != nil {
		t.Fatalf("the job during which %s was killed: %v", victim.ID(), err)
	}
	for _, s := range rec.Shards {
		for _, task := range s.Tasks {
			if s.Master != victim.ID() && task.Node != victim.ID() && slices.Contains(task.FailedOn, victim.ID()) {
				moved++
			}
			if paused && task.Node == victim.ID() {
				t.Errorf("shard %d: a task is said to have run on %s, which was stopped", s.Shard, victim.ID())
			}
		}
	}
	t.Logf("%s killed: %d tasks that it had as a follower ran elsewhere", victim.ID(), moved)
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	waitReady(t, c)
	return rec, moved
}

// TestJobSeesAcknowledgedWrites submits jobs through one node right after
// writes were acknowledged by another: none may be missed.
func TestJobSeesAcknowledgedWrites(t *testing.T) {
	c := sharedCluster(t)
	ctx := timeout(t, time.Minute)
	one, err := client.Open(client.Config{Addrs: []string{c.Node(1).Addrs().Client}, NoRouting: true})
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	two, err := client.Open(client.Config{Addrs: []string{c.Node(2).Addrs().Client}, NoRouting: true})
	if err != nil {
		t.Fatal(err)
	}
	defer two.Close()
	for i := 1; i <= 30; i++ {
		if err := one.Put(ctx, fmt.Sprintf("sees/%d", i), []byte("1")); err != nil {
			t.Fatal(err)
		}
		id, err := two.SubmitJob(ctx, job.Spec{Prefix: "sees/", As: job.AsInt, Map: job.MapValue, Reduce: job.ReduceSum})
		if err != nil {
			t.Fatal(err)
		}
		rec, err := two.JobWait(ctx, id, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := rec.Err(); err != nil {
			t.Fatal(err)
		}
		if rec.Result.String() != fmt.Sprint(i) {
			t.Fatalf("after %d acknowledged writes a job counts %s", i, rec.Result)
		}
	}
}

// TestJobOutcomes walks through the ways in which a job ends other than well,
// and the exit codes that scripts see.
func TestJobOutcomes(t *testing.T) {
	c := sharedCluster(t)
	n := c.Node(3)
	cli(t, n, "put", "mixed/1", "4").must(t)
	cli(t, n, "put", "mixed/2", "no number").must(t)
	cli(t, n, "put", "mixed/3", "5").must(t)
	cli(t, n, "put", "bytes/1", "\xff\xfe\xfd").must(t)
	cli(t, n, "put", "big/1", "9223372036854775807").must(t)
	cli(t, n, "put", "big/2", "9223372036854775807").must(t)
	for _, tc := range []struct {
		name                   string
		args                   []string
		code                   int
		stdout, stderrContains string
	}{
		{"a value that is no number", []string{"run", "--prefix", "mixed/", "--as", "int", "--reduce", "sum"}, 1, "", "mixed/2"},
		{"the same, skipped", []string{"run", "--prefix", "mixed/", "--as", "int", "--reduce", "sum", "--on-error", "skip"}, 0, "9\n", "1 "},
		{"bytes that are no text", []string{"run", "--prefix", "bytes/", "--as", "int", "--reduce", "sum"}, 1, "", "bytes/1"},
		{"bytes that are no JSON", []string{"run", "--prefix", "bytes/", "--as", "json", "--map", "json:a", "--reduce", "sum"}, 1, "", "bytes/1"},
		{"no integer wraps", []string{"run", "--prefix", "big/", "--as", "int", "--reduce", "sum"}, 0, "18446744073709551614\n", ""},
		{"squares neither", []string{"run", "--prefix", "big/", "--as", "int", "--map", "square", "--reduce", "max"}, 0, "85070591730234615847396907784232501249\n", ""},
		{"sum over nothing", []string{"run", "--prefix", "none/", "--as", "int", "--reduce", "sum"}, 0, "0\n", "no key"},
		{"count over nothing", []string{"run", "--prefix", "none/", "--reduce", "count"}, 0, "0\n", "no key"},
		{"min over nothing", []string{"run", "--prefix", "none/", "--as", "int", "--reduce", "min"}, 1, "", "no records"},
		{"mean over nothing", []string{"run", "--prefix", "none/", "--as", "int", "--reduce", "mean"}, 1, "", "no records"},
		{"a reduce that there is not", []string{"run", "--prefix", "num/", "--reduce", "product"}, 2, "", "reduce"},
		{"the sum of strings", []string{"run", "--prefix", "num/", "--reduce", "sum"}, 2, "", "sum"},
		{"a flag that there is not", []string{"run", "--prefiks", "num/"}, 2, "", "prefiks"},
		{"a job that there is not", []string{"status", "nosuchjob"}, 4, "", "nosuchjob"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := cli(t, n, append([]string{"job"}, tc.args...)...)
			if got.code != tc.code || got.stdout != tc.stdout || !strings.Contains(strings.ToLower(got.stderr), tc.stderrContains) {
				t.Errorf("exit code %d, want %d\nstdout %q, want %q\nstderr %q, want it to say %q", got.code, tc.code, got.stdout, tc.stdout, got.stderr, tc.stderrContains)
			}
		})
	}
}
