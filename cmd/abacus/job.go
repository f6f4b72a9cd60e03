package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/compute/job"
)

func newJobCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "job",
		Short: "Compute over many keys where they live: map, then reduce",
		Long: `A job reads every key with a prefix, maps each record to a value and reduces the values to
one. The leader of each shard cuts its part into tasks and hands them to the shard's
followers. A job sees every write that was acknowledged before it was submitted, and
it is answered completely or it fails.`,
		Example: `  abacus job run --prefix num/ --as int --map square --reduce sum
  abacus job run --prefix city/ --as json --map json:population --reduce max
  abacus job run --prefix word/ --map len --reduce mean`,
	}
	cmd.AddCommand(newJobRunCommand(a), newJobSubmitCommand(a), newJobWaitCommand(a), newJobResultCommand(a), newJobStatusCommand(a), newJobListCommand(a), newJobCancelCommand(a))
	return cmd
}

// specFlags are the flags that describe a job.
func specFlags(cmd *cobra.Command, s *job.Spec) (finish func() error) {
	var timeout time.Duration
	f := cmd.Flags()
	f.StringVar(&s.Prefix, "prefix", "", "only keys that begin with this; default: all keys")
	f.StringVar(&s.As, "as", job.AsString, "what values are: string, int, float or json")
	f.StringVar(&s.Map, "map", job.MapValue, "what to take of each record: value, key, len, square, or json:PATH")
	f.StringVar(&s.Reduce, "reduce", job.ReduceCount, "how to combine: sum, count, min, max or mean")
	f.StringVar(&s.OnError, "on-error", job.OnErrorFail, "what a record does that does not parse: fail the job, or skip (counted and reported)")
	f.StringVar(&s.Name, "name", "", "a name for people")
	f.StringVar(&s.ID, "id", "", "the job's id; submitting twice with one id is one job (default: made up)")
	f.IntVar(&s.TasksPerReplica, "tasks-per-replica", 0, "into how many tasks to cut for each replica (default: by the number of records)")
	f.DurationVar(&timeout, "timeout", job.DefaultTimeout, "how long the job may take (here it is not the time of one request)")
	return func() error {
		if timeout < time.Millisecond || timeout > job.MaxTimeout {
			return usagef("--timeout %v: the time of the job must be within 1ms..%v", timeout, job.MaxTimeout)
		}
		s.TimeoutMillis = timeout.Milliseconds()
		if err := s.Validate(); err != nil {
			var wrong *job.SpecError
			if errors.As(err, &wrong) { // the field has the flag's name, but for the dashes
				return usagef("--%s%s", strings.ReplaceAll(wrong.Field, "_", "-"), strings.TrimPrefix(err.Error(), wrong.Field))
			}
			return err
		}
		return nil
	}
}

func newJobRunCommand(a *app) *cobra.Command {
	var spec job.Spec
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Submit a job, follow it and print its result alone",
		Long: `Submit a job, follow it and print its result, alone, on stdout (with -o json, its whole
record). Ctrl-C stops following, not the job. Over no keys, sum and count are 0, and
min, max and mean fail with "no records".

Exit codes: 0 done, 1 failed or no records, 2 wrong usage, 3 cancelled, 5 cluster
unavailable, 6 not known whether it was submitted, 124 time-out.`,
		Example: `  abacus job run --prefix num/ --as int --map square --reduce sum
  abacus job run --prefix city/ --as json --map json:population --reduce max --on-error skip
  abacus job run --prefix word/                # how many keys there are
  abacus job run --prefix word/ --map len --reduce mean -o json`,
		Args: noArgsButPrefix,
	}
	finish := specFlags(cmd, &spec)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := finish(); err != nil {
			return err
		}
		return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
			id, err := a.submit(ctx, c, spec)
			if err != nil {
				return err
			}
			rec, err := a.followJob(ctx, c, id, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return a.printResult(cmd, rec)
		})
	}
	return cmd
}

// submit submits and, where the outcome is unknown, says how to find out.
func (a *app) submit(ctx context.Context, c *client.Client, spec job.Spec) (string, error) {
	id, err := c.SubmitJob(ctx, spec)
	if errors.Is(err, client.ErrUncertain) {
		return "", fmt.Errorf("%w; look with: %s; to submit it again, give it this id (--id, or \"id\" in the file)", err, a.try("job status "+id))
	}
	return id, err
}

func newJobSubmitCommand(a *app) *cobra.Command {
	var (
		spec job.Spec
		file string
	)
	cmd := &cobra.Command{
		Use:   "submit",
		Short: "Submit a job and print its id",
		Long: `Submit a job and print its id, without waiting for it. With --file, the job's
specification is read as JSON from a file, or from stdin (-), and is the whole of it:
the flags that describe a job do not go with it.`,
		Args: noArgsButPrefix,
	}
	finish := specFlags(cmd, &spec)
	cmd.Flags().StringVar(&file, "file", "", "read the specification as JSON from this file (- for stdin)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if cmd.Flags().Changed("file") {
			var err error
			cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
				if f.Changed && f.Name != "file" {
					err = usagef("--file and --%s exclude each other: the file is the whole specification", f.Name)
				}
			})
			if err != nil {
				return err
			}
			if spec, err = readSpec(file, cmd.InOrStdin()); err != nil {
				return err
			}
		} else if err := finish(); err != nil {
			return err
		}
		return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
			id, err := a.submit(ctx, c, spec)
			if err != nil {
				return err
			}
			if a.json() {
				return writeJSON(cmd.OutOrStdout(), map[string]string{"id": id})
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), id)
			return err
		})
	}
	return cmd
}

func readSpec(name string, stdin io.Reader) (job.Spec, error) {
	in, _, err := openInput(name, stdin)
	if err != nil {
		return job.Spec{}, err
	}
	defer in.Close()
	text, err := io.ReadAll(io.LimitReader(in, job.MaxSpecBytes+1))
	if err != nil {
		return job.Spec{}, fmt.Errorf("read %s: %w", name, err)
	}
	spec, err := job.ParseSpec(text)
	if err != nil {
		return job.Spec{}, usagef("%s: %w", name, err)
	}
	return spec, nil
}

func newJobWaitCommand(a *app) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:               "wait ID",
		Short:             "Follow a job until it ends and print its result alone",
		Args:              takes(1, 1),
		ValidArgsFunction: completeJobs(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				if timeout > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeoutCause(ctx, timeout, errWaitOver)
					defer cancel()
				}
				rec, err := a.followJob(ctx, c, args[0], cmd.ErrOrStderr())
				if err != nil {
					return err
				}
				return a.printResult(cmd, rec)
			})
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "stop waiting after this time, exit code 124 (0: never); the job goes on")
	return cmd
}

var errWaitOver = errors.New("the job has not ended")

func newJobResultCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "result ID",
		Short:             "Print the result of a job that has ended",
		Args:              takes(1, 1),
		ValidArgsFunction: completeJobs(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				rec, err := c.JobStatus(ctx, args[0])
				if err != nil {
					return err
				}
				if !rec.State.Finished() {
					return &exitError{exitFailed, fmt.Errorf("job %s has not ended, it is %s; wait for it with: %s", rec.ID, rec.State, a.try("job wait "+rec.ID))}
				}
				return a.printResult(cmd, rec)
			})
		},
	}
}

// followJob waits for the job's end and shows its progress: a bar on a terminal,
// else a line now and then. When it is interrupted, the job goes on.
func (a *app) followJob(ctx context.Context, c *client.Client, id string, info io.Writer) (job.Record, error) {
	bar := newBar(info, "job "+id, 1, false)
	lastLine := time.Now()
	rec, err := c.JobWait(ctx, id, func(r job.Record) {
		p := r.Progress
		if terminal(info) {
			bar.set(p.TasksDone, p.Tasks)
			return
		}
		if time.Since(lastLine) >= 5*time.Second {
			lastLine = time.Now()
			fmt.Fprintf(info, "job %s is %s: %d of %d tasks, %d of %d shards, %s records\n", id, r.State, p.TasksDone, p.Tasks, p.ShardsDone, p.Shards, count(p.Records))
		}
	})
	bar.clear()
	goesOn := fmt.Sprintf("job %s goes on; wait for it with: %s", id, a.try("job wait "+id))
	switch {
	case err == nil:
		return rec, nil
	case context.Cause(ctx) == errInterrupted:
		fmt.Fprintln(info, goesOn)
		return rec, errInterrupted
	case context.Cause(ctx) == errWaitOver:
		return rec, &exitError{exitTimeout, fmt.Errorf("%w; %s", errWaitOver, goesOn)}
	case errors.Is(err, client.ErrNotFound):
		return rec, err
	}
	return rec, fmt.Errorf("follow job %s: %w; ask again with: %s", id, err, a.try("job wait "+id))
}

// printResult writes the result of a job that has ended, alone, and what a
// person should know to stderr. A job without a result is an error.
func (a *app) printResult(cmd *cobra.Command, rec job.Record) error {
	out, info := cmd.OutOrStdout(), cmd.ErrOrStderr()
	if a.json() {
		if err := writeJSON(out, rec); err != nil {
			return err
		}
	}
	err := rec.Err()
	note := rec.Note
	if errors.Is(err, job.ErrNoRecords) && rec.Records == 0 {
		note = "" // the error says the same
	}
	if rec.Bad > 0 && rec.State == job.Succeeded {
		if note == "" {
			note = fmt.Sprintf("%s of %s did not parse and were left out", plural(rec.Bad, "record"), count(rec.Records))
		}
		note += ", for example " + sample(rec.BadKeys)
	}
	if note != "" {
		fmt.Fprintln(info, "note:", note)
	}
	switch {
	case errors.Is(err, job.ErrNoRecords) && rec.Records > 0:
		return &exitError{exitFailed, fmt.Errorf("no records: all %s were left out, so there is no %s", count(rec.Records), rec.Spec.Reduce)}
	case errors.Is(err, job.ErrNoRecords):
		return &exitError{exitFailed, fmt.Errorf("no records: no key begins with %q, so there is no %s", rec.Spec.Prefix, rec.Spec.Reduce)}
	case err != nil:
		return err
	}
	if a.json() {
		return nil
	}
	if rec.Result == nil {
		return fmt.Errorf("job %s succeeded without a result", rec.ID)
	}
	if _, err := fmt.Fprintln(out, rec.Result); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

func sample(keys []string) string {
	out := make([]string, 0, 3)
	for _, k := range keys[:min(len(keys), 3)] {
		out = append(out, shown(k))
	}
	return strings.Join(out, ", ")
}

func newJobStatusCommand(a *app) *cobra.Command {
	var tasks bool
	cmd := &cobra.Command{
		Use:   "status ID",
		Short: "Show how a job stands and what each node did for it",
		Long: `Show how a job stands and what each node did for it; with --tasks, which node ran which
task, where it was tried before, and at which index of its log each shard was read. With
-o json, the whole record.`,
		Args:              takes(1, 1),
		ValidArgsFunction: completeJobs(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				rec, err := c.JobStatus(ctx, args[0])
				if err != nil {
					return err
				}
				if a.json() {
					return writeJSON(cmd.OutOrStdout(), rec)
				}
				return printJob(cmd.OutOrStdout(), rec, tasks)
			})
		},
	}
	cmd.Flags().BoolVar(&tasks, "tasks", false, "a line for each task instead of each node")
	return cmd
}

func printJob(w io.Writer, r job.Record, tasks bool) error {
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%-10s %s\n", name, value)
		}
	}
	line("job", r.ID)
	line("name", shown(r.Spec.Name))
	line("spec", specLine(r.Spec))
	state := string(r.State)
	if r.Coordinator != "" {
		state += fmt.Sprintf(", coordinated by %s (run %d)", r.Coordinator, r.Epoch)
	}
	line("state", state)
	line("submitted", clock(r.SubmittedMillis))
	if r.FinishedMillis > 0 {
		line("took", (time.Duration(r.FinishedMillis-r.SubmittedMillis) * time.Millisecond).String())
	}
	if r.Result != nil {
		line("result", shown(r.Result.String()))
	}
	line("error", r.Error)
	line("note", r.Note)
	records := count(r.Records)
	if !r.State.Finished() {
		records = fmt.Sprintf("%s so far; %d of %d tasks, %d of %d shards", count(r.Progress.Records), r.Progress.TasksDone, r.Progress.Tasks, r.Progress.ShardsDone, r.Progress.Shards)
	}
	line("records", records)
	if r.Bad > 0 {
		line("bad", fmt.Sprintf("%s, for example %s", count(r.Bad), sample(r.BadKeys)))
	}
	if r.TasksOmitted > 0 {
		line("omitted", plural(int64(r.TasksOmitted), "task")+" not shown, there were too many")
	}
	if len(r.Shards) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	if !tasks {
		return printWork(w, r)
	}
	t := newTable(w, "SHARD", "MASTER", "INDEX", "TASK", "SLOTS", "NODE", "ROLE", "RECORDS", "BAD", "MS", "ATTEMPTS", "FAILED ON")
	for _, s := range r.Shards {
		for _, k := range s.Tasks {
			node := orDash(k.Node)
			if !k.Done && k.Node != "" {
				node += " (running)"
			}
			t.row(s.Shard, orDash(s.Master), s.Index, k.ID, fmt.Sprintf("%d-%d", k.From, k.To), node, orDash(k.Role), k.Records, k.Bad, k.Millis, k.Attempts, orDash(strings.Join(k.FailedOn, " ")))
		}
		if len(s.Tasks) == 0 {
			t.row(s.Shard, orDash(s.Master), s.Index, "-", "-", "-", "-", "-", "-", "-", s.Attempts, "-")
		}
	}
	return t.flush()
}

// work is what one node did for a job.
type work struct {
	shards                     map[uint32]bool
	leader, follower           int // tasks done in that role
	running, retried           int
	records, bad, milliseconds int64
}

// printWork adds up the tasks by node.
func printWork(w io.Writer, r job.Record) error {
	nodes := map[string]*work{}
	waiting := 0
	for _, s := range r.Shards {
		for _, k := range s.Tasks {
			if k.Node == "" {
				waiting++
				continue
			}
			n := nodes[k.Node]
			if n == nil {
				n = &work{shards: map[uint32]bool{}}
				nodes[k.Node] = n
			}
			n.shards[s.Shard] = true
			switch {
			case !k.Done:
				n.running++
				continue
			case k.Role == job.RoleFollower:
				n.follower++
			default:
				n.leader++
			}
			if len(k.FailedOn) > 0 {
				n.retried++
			}
			n.records += k.Records
			n.bad += k.Bad
			n.milliseconds += k.Millis
		}
	}
	t := newTable(w, "NODE", "SHARDS", "TASKS AS LEADER", "AS FOLLOWER", "RUNNING", "TAKEN OVER", "RECORDS", "BAD", "MS")
	for _, id := range slices.Sorted(maps.Keys(nodes)) {
		n := nodes[id]
		t.row(id, len(n.shards), n.leader, n.follower, n.running, n.retried, count(n.records), count(n.bad), count(n.milliseconds))
	}
	if err := t.flush(); err != nil {
		return err
	}
	if waiting > 0 {
		fmt.Fprintf(w, "%s wait for a node\n", plural(int64(waiting), "task"))
	}
	return nil
}

// specLine is a job's specification as its flags.
func specLine(s job.Spec) string {
	prefix := shown(s.Prefix)
	if prefix == "" {
		prefix = "''"
	}
	out := fmt.Sprintf("--prefix %s --as %s --map %s --reduce %s", prefix, s.As, shown(s.Map), s.Reduce)
	if s.OnError == job.OnErrorSkip {
		out += " --on-error skip"
	}
	return out
}

func clock(ms int64) string {
	if ms == 0 {
		return ""
	}
	return time.UnixMilli(ms).Format(time.DateTime)
}

func newJobListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the jobs that the cluster remembers",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				recs, err := c.Jobs(ctx)
				if err != nil {
					return err
				}
				if a.json() {
					if recs == nil {
						recs = []job.Record{}
					}
					return writeJSON(cmd.OutOrStdout(), recs)
				}
				t := newTable(cmd.OutOrStdout(), "ID", "NAME", "STATE", "RESULT", "RECORDS", "SUBMITTED", "SPEC")
				for _, r := range recs {
					result := r.Error
					if r.Result != nil {
						result = r.Result.String()
					}
					t.row(r.ID, orDash(r.Spec.Name), r.State, orDash(short(result, 40)), count(r.Records), orDash(clock(r.SubmittedMillis)), specLine(r.Spec))
				}
				return t.flush()
			})
		},
	}
}

// short cuts long text.
func short(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most-3]) + "..."
	}
	return s
}

func newJobCancelCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "cancel ID",
		Short:             "End a job without a result",
		Args:              takes(1, 1),
		ValidArgsFunction: completeJobs(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				if err := c.CancelJob(ctx, args[0]); err != nil {
					return err
				}
				return a.done(cmd)
			})
		},
	}
}
