package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/chaos/load"
	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/compute/job"
)

// newDemoCommand is `abacus dev demo`: real nodes, real data, real jobs and a
// kill, with the command lines that do the same by hand. It fails if anything
// that it shows is not so.
func newDemoCommand() *cobra.Command {
	var data, abacusd string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "A guided tour: three nodes, real data, jobs, and a SIGKILL in the middle",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			out, ctx := watchOutput(ctx, cmd.OutOrStdout())
			err := runDemo(ctx, out, data, abacusd)
			if ctx.Err() != nil {
				return &exitError{code: exitInterrupted, err: errors.New("interrupted; the nodes are stopped and their data is removed")}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&data, "data", "", "directory of words.txt.gz and cities.csv.gz (default: docs/data of the source)")
	cmd.Flags().StringVar(&abacusd, "abacusd", "", "path of abacusd (default: beside abacus, then in PATH)")
	return cmd
}

// demo is one run of the tour.
type demo struct {
	ctx    context.Context // all of it; ends with Ctrl-C
	out    io.Writer
	colour bool
	self   string // this program, which the tour runs as a user would
	words  string // the two data files
	cities string
	c      *proc.Cluster
	client *client.Client
	checks int
}

func runDemo(ctx context.Context, out io.Writer, data, abacusd string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute) // a demo that hangs shall say so
	defer cancel()
	began := time.Now()
	d := &demo{ctx: ctx, out: out, colour: devColour(out)}
	if d.self, err = os.Executable(); err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	if err := d.findData(data); err != nil {
		return err
	}
	if abacusd, err = findAbacusd(abacusd); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "abacus-demo-")
	if err != nil {
		return fmt.Errorf("make a directory for the demo: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	d.c, err = proc.Create(proc.Config{Dir: dir, Abacusd: abacusd, Nodes: 3, Shards: 8, DieWithParent: true})
	if err != nil {
		return err
	}
	defer d.c.Release()
	defer func() {
		if err != nil && ctx.Err() == nil {
			for _, n := range d.c.Nodes() {
				d.say("the end of the log of %s:\n%s", n.ID(), n.LogTail(12))
			}
		}
		err = errors.Join(err, d.c.Kill())
	}()
	for _, step := range []func() error{d.start, d.putAndGet, d.article, d.realData, d.survive, d.end} {
		if err := step(); err != nil {
			return err
		}
	}
	d.title("That was it")
	d.say("%d checks, all good, in %v. The nodes are stopped and their data is removed.", d.checks, time.Since(began).Round(time.Second))
	d.say("For a cluster to play with:  %s dev up", self)
	return nil
}

// findData looks where it was told, else in the source tree around the working
// directory or around the program.
func (d *demo) findData(dir string) error {
	candidates := []string{"docs/data", filepath.Join(filepath.Dir(d.self), "..", "docs", "data")}
	if dir != "" {
		candidates = []string{dir}
	}
	for _, c := range candidates {
		d.words, d.cities = filepath.Join(c, "words.txt.gz"), filepath.Join(c, "cities.csv.gz")
		if _, err := os.Stat(d.words); err != nil {
			continue
		}
		if _, err := os.Stat(d.cities); err == nil {
			return nil
		}
	}
	return fmt.Errorf("words.txt.gz and cities.csv.gz are not in %s: run the demo in the source tree (make demo), or say where they are with --data", strings.Join(candidates, " or "))
}

func (d *demo) start() error {
	d.title("Three nodes")
	d.say("Each node is a process of its own: abacusd, with its own data directory. Keys are spread over")
	d.say("8 shards; each shard is kept by all three nodes, and one of them leads it (a Raft group).")
	d.command("abacus dev up --dir " + d.c.Dir() + "   (which runs, for each node, this:)")
	d.command(proc.Shell(trimPaths(d.c.Node(1).CommandLine())))
	began := time.Now()
	if err := d.c.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(d.ctx, 60*time.Second)
	defer cancel()
	if err := d.c.WaitReady(ctx, nil); err != nil {
		return err
	}
	d.check("all three nodes are up and every shard has three voters and a leader, after %v", time.Since(began).Round(100*time.Millisecond))
	var err error
	d.client, err = client.Open(client.Config{Addrs: d.c.ClientAddrs(), Timeout: 20 * time.Second, Token: os.Getenv("ABACUS_TOKEN")})
	return err
}

// trimPaths shortens the program's path, for reading.
func trimPaths(line []string) []string {
	return append([]string{filepath.Base(line[0])}, line[1:]...)
}

func (d *demo) putAndGet() error {
	d.title("Put and get, at any node")
	if _, err := d.abacus(1, "put", "greeting", "hello"); err != nil {
		return err
	}
	got, err := d.abacus(3, "get", "greeting")
	if err != nil {
		return err
	}
	return d.expect("what one node acknowledged, another answers", strings.TrimSpace(got), "hello")
}

func (d *demo) article() error {
	d.title("A job: the sum of squares")
	d.say("Ten keys, num/0 to num/9, hold 0 to 9. The job squares each value and adds them up. The leader")
	d.say("of each shard cuts its part into tasks and hands them to its followers: X1 + X2 + ... = Y.")
	var lines strings.Builder
	for i := range 10 {
		fmt.Fprintf(&lines, "%d\t%d\n", i, i)
	}
	if _, err := d.abacusWith(lines.String(), 1, "import", "--format", "kv", "--prefix", "num/", "-"); err != nil {
		return err
	}
	got, err := d.abacus(2, "job", "run", "--prefix", "num/", "--as", "int", "--map", "square", "--reduce", "sum")
	if err != nil {
		return err
	}
	return d.expect("0 + 1 + 4 + ... + 81", got, "285\n")
}

func (d *demo) realData() error {
	d.title("Real data")
	d.say("A word list of a hundred thousand words, and a table of the world's towns (docs/data/README.md).")
	if _, err := d.abacus(1, "import", "--format", "lines", "--prefix", "word/", d.words); err != nil {
		return err
	}
	if _, err := d.abacus(2, "import", "--format", "csv", "--prefix", "city/", d.cities); err != nil {
		return err
	}
	facts, err := readFacts(d.words, d.cities)
	if err != nil {
		return err
	}
	for _, q := range []struct {
		what, want string
		args       []string
	}{
		{"words", strconv.FormatInt(facts.words, 10), []string{"--prefix", "word/", "--reduce", "count"}},
		{"bytes in all words", strconv.FormatInt(facts.wordBytes, 10), []string{"--prefix", "word/", "--map", "len", "--reduce", "sum"}},
		{"bytes in the longest word", strconv.FormatInt(facts.longest, 10), []string{"--prefix", "word/", "--map", "len", "--reduce", "max"}},
		{"people in all towns", strconv.FormatInt(facts.people, 10), []string{"--prefix", "city/", "--as", "json", "--map", "json:population", "--reduce", "sum"}},
		{"people in the largest", strconv.FormatInt(facts.largest, 10), []string{"--prefix", "city/", "--as", "json", "--map", "json:population", "--reduce", "max"}},
	} {
		got, err := d.abacus(3, append([]string{"job", "run"}, q.args...)...)
		if err != nil {
			return err
		}
		if err := d.expect(q.what+", as counted from the file itself", strings.TrimSpace(got), q.want); err != nil {
			return err
		}
	}
	return d.describeLastJob()
}

// describeLastJob says where the tasks of the latest job ran.
func (d *demo) describeLastJob() error {
	jobs, err := d.client.Jobs(d.ctx)
	if err != nil {
		return err
	}
	if len(jobs) == 0 {
		return errors.New("the cluster remembers no job")
	}
	last := jobs[0]
	for _, j := range jobs {
		if j.SubmittedMillis > last.SubmittedMillis {
			last = j
		}
	}
	rec, err := d.client.JobStatus(d.ctx, last.ID)
	if err != nil {
		return err
	}
	d.say("Who did the work is in:  abacus job status %s", rec.ID)
	d.describeTasks(rec)
	return nil
}

// facts are what the jobs must answer, found without the database.
type facts struct{ words, wordBytes, longest, people, largest int64 }

func readFacts(words, cities string) (facts, error) {
	var f facts
	err := readGzip(words, func(r io.Reader) error {
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			n := int64(len(lines.Bytes()))
			f.words++
			f.wordBytes += n
			f.longest = max(f.longest, n)
		}
		return lines.Err()
	})
	if err != nil {
		return f, err
	}
	return f, readGzip(cities, func(r io.Reader) error {
		rows, err := csv.NewReader(r).ReadAll()
		if err != nil {
			return err
		}
		for _, row := range rows[1:] {
			n, err := strconv.ParseInt(row[1], 10, 64)
			if err != nil {
				return err
			}
			f.people += n
			f.largest = max(f.largest, n)
		}
		return nil
	})
}

func readGzip(path string, read func(io.Reader) error) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read the data: %w", err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if err := read(z); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// survive kills the leader of a shard while writers write and jobs run.
func (d *demo) survive() error {
	d.title("SIGKILL in the middle")
	d.say("Eight writers put keys and add to one counter, and jobs add up the bytes of all words, one after the other.")
	d.say("Each writer remembers what was acknowledged. Then the leader of the counter's shard is killed.")
	writers := load.Start(d.client, load.Config{Prefix: "demo/", Writers: 8, Timeout: 20 * time.Second})
	defer writers.Stop()
	victim, err := d.kill(writers)
	if err != nil {
		return err
	}
	return d.reckon(writers, victim)
}

// kill ends the leader of the counter's shard, and shows that writes, reads and
// jobs go on.
func (d *demo) kill(writers *load.Load) (*proc.Node, error) {
	if err := d.until("the writers are at work", 10*time.Second, func() bool { return writers.Tally(true).Acked >= 500 }); err != nil {
		return nil, err
	}
	facts, err := readFacts(d.words, d.cities)
	if err != nil {
		return nil, err
	}
	reply, err := d.client.Do(d.ctx, "CLUSTER", "KEYSLOT", writers.Counter())
	if err != nil {
		return nil, err
	}
	victim, shard, err := d.leaderOfSlot(reply.Int)
	if err != nil {
		return nil, err
	}
	d.command("while true; do abacus job run --prefix word/ --map len --reduce sum --tasks-per-replica 8 --cache off; done   (in two terminals)")
	ctx, cancel := context.WithCancel(d.ctx)
	loops := startJobLoops(ctx, d.client, job.Spec{Name: "bytes", Prefix: "word/", Map: job.MapLen, Reduce: job.ReduceSum, TasksPerReplica: 8, Cache: job.CacheOff}, 2)
	defer loops.stop()
	defer cancel() // when something failed, jobs that may never end are not waited for
	// A job takes a fraction of a second: the kill comes right after one was seen to run.
	id, err := loops.awaitRunning(10 * time.Second)
	if err != nil {
		return nil, err
	}
	before := writers.Tally(true)
	began := time.Now()
	if err := victim.Kill(); err != nil {
		return nil, err
	}
	gone := time.Now()
	d.command(fmt.Sprintf("abacus dev kill %d", victim.N))
	d.say("%s led shard %d, which holds the counter. %d writes were acknowledged before; job %s was running.", victim.ID(), shard, before.Acked, id)

	if err := d.until("writes go on", 30*time.Second, func() bool { return writers.Tally(false).Acked >= before.Acked+1000 }); err != nil {
		return nil, err
	}
	after := writers.Tally(false)
	d.check("writes go on: %d more were acknowledged; the longest that a writer waited was %v", after.Acked-before.Acked, after.Slowest.Round(10*time.Millisecond))
	alive := 1
	if victim.N == 1 {
		alive = 2
	}
	if err := d.judgeJobs(loops, began, gone, strconv.FormatInt(facts.wordBytes, 10)); err != nil {
		return nil, err
	}
	got, err := d.abacus(alive, "get", "greeting")
	if err != nil {
		return nil, err
	}
	if err := d.expect("an old key, from the two nodes that are left", strings.TrimSpace(got), "hello"); err != nil {
		return nil, err
	}
	got, err = d.abacus(alive, "job", "run", "--prefix", "word/", "--reduce", "count")
	if err != nil {
		return nil, err
	}
	if err := d.expect("a new job, on two nodes", strings.TrimSpace(got), strconv.FormatInt(facts.words, 10)); err != nil {
		return nil, err
	}

	return victim, nil
}

// judgeJobs ends the loops: every job of theirs must have the right result, and
// at least one must have been running when the node was killed.
func (d *demo) judgeJobs(loops *jobLoops, began, gone time.Time, want string) error {
	ended, err := loops.stop()
	if err != nil {
		return fmt.Errorf("the jobs around the kill: %w", err)
	}
	for _, rec := range ended {
		if err := rec.Err(); err != nil {
			return fmt.Errorf("job %s, around the kill: %w", rec.ID, err)
		}
		if rec.Result == nil || rec.Result.String() != want {
			return fmt.Errorf("job %s, around the kill: got %v, want %s", rec.ID, rec.Result, want)
		}
	}
	across := spanning(ended, began, gone)
	if len(across) == 0 {
		return fmt.Errorf("none of %d jobs was running when the node was killed: run the demo again", len(ended))
	}
	d.check("all %s, before, across and after the kill, say %s", plural(int64(len(ended)), "job"), want)
	for _, rec := range across {
		d.check("job %s began %v before the kill and finished %v after it: %s", rec.ID,
			began.Sub(time.UnixMilli(rec.StartedMillis)).Round(time.Millisecond), time.UnixMilli(rec.FinishedMillis).Sub(gone).Round(time.Millisecond), rec.Result)
		d.describeTasks(rec)
	}
	return nil
}

// reckon brings the node back and counts what was acknowledged.
func (d *demo) reckon(writers *load.Load, victim *proc.Node) error {
	d.title("Back again, and the reckoning")
	d.command(fmt.Sprintf("abacus dev restart %d", victim.N))
	began := time.Now()
	if err := victim.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(d.ctx, 60*time.Second)
	defer cancel()
	if err := d.c.WaitReady(ctx, nil); err != nil {
		return err
	}
	d.check("%s is back with its data, and every shard has three voters again, after %v", victim.ID(), time.Since(began).Round(100*time.Millisecond))
	writers.Stop()
	t := writers.Tally(false)
	d.say("The writers stop: %d writes were acknowledged, %d are of unknown fate, %d were refused.", t.Acked, t.Uncertain, t.Refused)
	if err := d.c.WaitCaughtUp(ctx); err != nil {
		return err
	}
	d.check("%s has caught up on all that it missed", victim.ID())
	report, err := writers.Check(d.ctx, d.client)
	if err != nil {
		return err
	}
	if len(report.Faults) > 0 {
		return fmt.Errorf("writes were lost:\n  %s", strings.Join(report.Faults, "\n  "))
	}
	d.check("every acknowledged write is there: %d keys and %d registers were read back", report.Keys, report.Registers)
	d.check("the counter says %d: %d increments were acknowledged, at most %d are possible", report.Counter, report.CounterMin, report.CounterMax)
	return nil
}

// describeTasks says where the tasks of the job ran.
func (d *demo) describeTasks(rec job.Record) {
	tasks, again, followers := 0, 0, 0
	byNode := map[string]int{}
	for _, s := range rec.Shards {
		for _, t := range s.Tasks {
			tasks++
			byNode[t.Node]++
			if t.Role == job.RoleFollower {
				followers++
			}
			if len(t.FailedOn) > 0 || s.Attempts > 1 {
				again++
			}
		}
	}
	var parts []string
	for _, n := range d.c.Nodes() {
		if k := byNode[n.ID()]; k > 0 {
			parts = append(parts, fmt.Sprintf("%s ran %d", n.ID(), k))
		}
	}
	text := fmt.Sprintf("Of its %d tasks, %s; %d ran on followers", tasks, strings.Join(parts, ", "), followers)
	if again > 0 {
		text += fmt.Sprintf("; %d had to be done again after the kill", again)
	}
	d.say("%s.", text)
}

// end asks the cluster how it is.
func (d *demo) end() error {
	_, err := d.abacus(1, "status")
	if err != nil {
		return err
	}
	d.check("the cluster says that it is well")
	return d.client.Close()
}

func (d *demo) leaderOfSlot(slot int64) (*proc.Node, uint32, error) {
	s, err := d.c.Status(d.ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, sh := range s.Shards {
		for run := range strings.SplitSeq(sh.Slots, ",") {
			from, to, ok := strings.Cut(run, "-")
			if !ok {
				to = from
			}
			lo, errLo := strconv.ParseInt(strings.TrimSpace(from), 10, 64)
			hi, errHi := strconv.ParseInt(strings.TrimSpace(to), 10, 64)
			if errLo == nil && errHi == nil && lo <= slot && slot <= hi {
				if n := d.c.ByID(sh.Leader); n != nil {
					return n, sh.ID, nil
				}
			}
		}
	}
	return nil, 0, fmt.Errorf("find the leader of slot %d: the cluster names none", slot)
}

// abacus runs this program against node n, shows the command line and what it
// printed, and returns its standard output.
func (d *demo) abacus(n int, args ...string) (string, error) { return d.abacusWith("", n, args...) }

func (d *demo) abacusWith(stdin string, n int, args ...string) (string, error) {
	addr := d.c.Node(n).Addrs().Client
	shown := proc.Shell(append([]string{"abacus", "--addr", addr}, args...))
	if stdin != "" {
		shown = "... | " + shown
	}
	d.command(shown)
	cmd := exec.CommandContext(d.ctx, d.self, append([]string{"--addr", addr, "--timeout", "20s"}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	for _, text := range []string{stderr.String(), stdout.String()} {
		for line := range strings.Lines(text) {
			if line = strings.TrimRight(line, "\r\n "); line != "" {
				d.say("  %s", line)
			}
		}
	}
	if err != nil {
		return stdout.String(), fmt.Errorf("%s: %w", shown, err)
	}
	return stdout.String(), nil
}

// until waits for a condition, and fails when it does not come.
func (d *demo) until(what string, limit time.Duration, cond func() bool) error {
	deadline := time.Now().Add(limit)
	for !cond() {
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %v in vain: %s", limit, what)
		}
		select {
		case <-d.ctx.Done():
			return d.ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

func (d *demo) expect(what, got, want string) error {
	if got != want {
		return fmt.Errorf("%s: got %q, want %q", what, got, want)
	}
	d.check("%s: %s", what, strings.TrimSpace(want))
	return nil
}

func (d *demo) title(text string) {
	if d.colour {
		text = "\x1b[1m" + text + "\x1b[0m"
	}
	fmt.Fprintf(d.out, "\n== %s\n", text)
}

func (d *demo) command(line string) {
	line = "$ " + line
	if d.colour {
		line = "\x1b[36m" + line + "\x1b[0m"
	}
	fmt.Fprintf(d.out, "   %s\n", line)
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "   %s\n", fmt.Sprintf(format, args...))
}

func (d *demo) check(format string, args ...any) {
	d.checks++
	mark := "ok"
	if d.colour {
		mark = "\x1b[32mok\x1b[0m"
	}
	fmt.Fprintf(d.out, "   %s %s\n", mark, fmt.Sprintf(format, args...))
}
