package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/compute/job"
)

// printResult writes the result of a job that has ended, alone, and what a
// person should know to stderr. A job without a result is an error.
func (a *app) printResult(cmd *cobra.Command, rec job.Record) error {
	out, info := cmd.OutOrStdout(), cmd.ErrOrStderr()
	whole := a.output == formatJSON || a.output == formatYAML
	if whole {
		if err := a.print(out, rec, grid{}); err != nil {
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
	if whole {
		return nil
	}
	if rec.Result == nil {
		return fmt.Errorf("job %s succeeded without a result", rec.ID)
	}
	return a.printValue(out, *rec.Result)
}

// printValue writes one value as it is, and what has several parts as a table or CSV.
func (a *app) printValue(out io.Writer, v job.Value) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	g, several, err := gridOf(raw)
	switch {
	case err != nil:
		return err
	case several:
		return a.print(out, nil, g)
	case a.output == formatCSV:
		return grid{head: []string{"VALUE"}, rows: [][]string{{v.String()}}}.writeCSV(out)
	}
	if _, err := fmt.Fprintln(out, v); err != nil {
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
	var tasks, watch bool
	cmd := &cobra.Command{
		Use:   "status ID",
		Short: "Show how a job stands and what each node did for it",
		Long: `Show how a job stands and what each node did for it; with --tasks, as abacus job tasks does,
which node ran which task. With --watch, show it again when it has changed, until the job has
ended: on a terminal in one place, else a line for each change. With -o json or yaml, the
whole record. The exit code says that the record was shown, not how the job ended.`,
		Args:              takes(1, 1),
		ValidArgsFunction: completeJobs(a, false, anyJob),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				rec, err := c.JobStatus(ctx, args[0])
				if err == nil && watch {
					rec, err = a.watchJob(ctx, cmd, c, rec, tasks)
				}
				if err != nil {
					return err
				}
				if a.output != formatTable && a.output != formatWide {
					return a.print(cmd.OutOrStdout(), rec, grid{})
				}
				return a.printJob(cmd.OutOrStdout(), rec, tasks)
			})
		},
	}
	writes(cmd, formatWide, formatYAML)
	cmd.Flags().BoolVar(&tasks, "tasks", false, "a line for each task instead of each node")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on until the job has ended")
	return cmd
}

// watchJob shows a job's record whenever it has changed; the last one, with which the job has ended, is the caller's to show.
func (a *app) watchJob(ctx context.Context, cmd *cobra.Command, c *client.Client, rec job.Record, tasks bool) (job.Record, error) {
	out, info := cmd.OutOrStdout(), cmd.ErrOrStderr()
	last, inPlace := "", terminal(out) && a.output != formatJSON && a.output != formatYAML
	var failed error
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	show := func(r job.Record) {
		line := progressOf(r)
		if line == last || failed != nil {
			return
		}
		last = line
		if inPlace {
			if _, failed = io.WriteString(out, clearScreen); failed == nil {
				failed = a.printJob(out, r, tasks)
			}
		} else {
			_, failed = fmt.Fprintln(info, line)
		}
		if failed != nil {
			cancel(failed)
		}
	}
	if !rec.State.Finished() {
		show(rec)
		var err error
		if rec, err = c.JobWait(ctx, rec.ID, show); failed != nil || err != nil {
			if context.Cause(ctx) == errInterrupted {
				err = errInterrupted
			}
			return rec, errors.Join(failed, err)
		}
		if inPlace {
			_, failed = io.WriteString(out, clearScreen)
		}
	}
	return rec, failed
}

// clearScreen moves the cursor to the top of a terminal and clears what is below.
const clearScreen = "\x1b[H\x1b[J"

func (a *app) printJob(w io.Writer, r job.Record, tasks bool) error {
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
		line("took", tookOf(r).String())
	}
	if r.Result != nil {
		line("result", short(shown(r.Result.String()), 120))
	}
	line("error", r.Error)
	line("note", r.Note)
	if r.Rounds > 1 {
		line("rounds", fmt.Sprintf("%d: slots changed hands while it ran, so it asked all shards again", r.Rounds))
	}
	records := count(r.Records)
	if !r.State.Finished() {
		records = fmt.Sprintf("%s so far; %d of %d tasks, %d of %d shards", count(r.Progress.Records), r.Progress.TasksDone, r.Progress.Tasks, r.Progress.ShardsDone, r.Progress.Shards)
	}
	line("records", records)
	if r.Filtered > 0 {
		line("filtered", count(r.Filtered)+" of them left out by the filter")
	}
	if r.Bytes > 0 {
		line("read", byteCount(r.Bytes))
	}
	if r.Cached {
		line("cached", "nothing was read: no shard had changed since it answered the same question")
	}
	if r.Bad > 0 {
		line("bad", fmt.Sprintf("%s, for example %s", count(r.Bad), sample(r.BadKeys)))
	}
	if r.TasksOmitted > 0 {
		line("omitted", plural(int64(r.TasksOmitted), "task")+" not shown, there were too many")
	}
	if n := len(r.Events); n > 0 {
		line("last", r.Events[n-1].Text)
	}
	if len(r.Shards) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	if tasks {
		return tasksOf(r, a.output == formatWide).writeTable(w)
	}
	return printWork(w, r)
}

// tookOf is how long a job took, waiting for its turn included.
func tookOf(r job.Record) time.Duration {
	return time.Duration(r.FinishedMillis-r.SubmittedMillis) * time.Millisecond
}

func clock(ms int64) string {
	if ms == 0 {
		return ""
	}
	return time.UnixMilli(ms).Format(time.DateTime)
}

func newJobListCommand(a *app) *cobra.Command {
	var (
		all    bool
		states []string
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the jobs that the cluster remembers, the newest first",
		Long: fmt.Sprintf(`List the jobs that the cluster remembers, the newest first. A table has all jobs that have not
ended and the newest %d that have, with --all or --state all of them; the other formats always
have all. The cluster remembers the last 1,000 that have ended.`, fewEnded),
		Example: `  abacus job list --state queued,running
  abacus job list -a -o wide
  abacus job list --state failed -o name`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, s := range states {
				if !slices.Contains(flagValues["state"], s) {
					return usagef("--state %s: it must be one of %s", s, strings.Join(flagValues["state"], ", "))
				}
			}
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				recs, err := c.Jobs(ctx)
				if err != nil {
					return err
				}
				if len(states) > 0 {
					recs = slices.DeleteFunc(recs, func(r job.Record) bool { return !slices.Contains(states, string(r.State)) })
				}
				hidden := 0
				if (a.output == formatTable || a.output == formatWide) && !all && len(states) == 0 {
					recs, hidden = newest(recs, fewEnded)
				}
				if recs == nil {
					recs = []job.Record{} // [], not null
				}
				if err := a.print(cmd.OutOrStdout(), recs, jobGrid(recs, a.output)); err != nil {
					return err
				}
				if hidden > 0 {
					fmt.Fprintf(cmd.ErrOrStderr(), "and %s that have ended: see them with --all\n", plural(int64(hidden), "older job"))
				}
				return nil
			})
		},
	}
	writes(cmd, formatWide, formatYAML, formatCSV, formatName)
	cmd.Flags().BoolVarP(&all, "all", "a", false, "those that ended long ago, too")
	cmd.Flags().StringSliceVar(&states, "state", nil, "only jobs in this state, or in one of several with commas")
	return cmd
}

// fewEnded is how many jobs that have ended a person wants to see.
const fewEnded = 20

// newest leaves of the records, which are sorted, those that have not ended and so many that have.
func newest(recs []job.Record, ended int) (kept []job.Record, hidden int) {
	for _, r := range recs {
		if r.State.Finished() {
			if ended--; ended < 0 {
				hidden++
				continue
			}
		}
		kept = append(kept, r)
	}
	return kept, hidden
}

// jobGrid has a row for each job: numbers for programs in CSV, for people elsewhere.
func jobGrid(recs []job.Record, format string) (g grid) {
	switch format {
	case formatCSV:
		g.head = []string{"ID", "NAME", "STATE", "RESULT", "ERROR", "RECORDS", "BAD", "SUBMITTED MS", "STARTED MS", "FINISHED MS"}
	case formatWide:
		g.head = []string{"ID", "NAME", "STATE", "RESULT", "TASKS", "RECORDS", "BAD", "SUBMITTED", "TOOK", "COORDINATOR", "RUN", "SPEC"}
	default:
		g.head = []string{"ID", "NAME", "STATE", "RESULT", "RECORDS", "SUBMITTED", "SPEC"}
	}
	for _, r := range recs {
		value, records, took := "", r.Records, ""
		if r.Result != nil {
			value = r.Result.String()
		}
		if !r.State.Finished() {
			records = r.Progress.Records
		} else if r.FinishedMillis > 0 {
			took = tookOf(r).String()
		}
		result := value
		if r.Error != "" {
			result = r.Error
		}
		switch format {
		case formatCSV:
			g.add(r.ID, r.Spec.Name, r.State, value, r.Error, records, r.Bad, r.SubmittedMillis, r.StartedMillis, r.FinishedMillis)
		case formatWide:
			g.add(r.ID, orDash(r.Spec.Name), r.State, orDash(short(result, 80)), fmt.Sprintf("%d/%d", r.Progress.TasksDone, r.Progress.Tasks), count(records), count(r.Bad),
				orDash(clock(r.SubmittedMillis)), orDash(took), orDash(r.Coordinator), r.Epoch, specLine(r.Spec))
		default:
			g.add(r.ID, orDash(r.Spec.Name), r.State, orDash(short(result, 40)), count(records), orDash(clock(r.SubmittedMillis)), specLine(r.Spec))
		}
	}
	return g
}

// short cuts long text.
func short(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most-3]) + "..."
	}
	return s
}

func newJobLogsCommand(a *app) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "logs ID",
		Short: "Show what happened to a job",
		Long: `Show what happened to a job: who submitted it, which nodes ran it, what failed where and
how it ended; a line each, or with -o json a document each. The last 100 are kept.
With --follow, go on until the job has ended. The exit code says that they were shown, not how
the job ended.`,
		Args:              takes(1, 1),
		ValidArgsFunction: completeJobs(a, false, anyJob),
		RunE: func(cmd *cobra.Command, args []string) error {
			out := cmd.OutOrStdout()
			each := func(e job.Event) error {
				if a.json() {
					return writeLine(out, e)
				}
				_, err := fmt.Fprintf(out, "%s  %s\n", clock(e.AtMillis), shown(e.Text))
				return err
			}
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				if follow {
					_, err := c.JobEvents(ctx, args[0], each)
					if context.Cause(ctx) == errInterrupted {
						return errInterrupted
					}
					return err
				}
				rec, err := c.JobStatus(ctx, args[0])
				if err != nil {
					return err
				}
				if rec.EventsOmitted > 0 {
					fmt.Fprintf(cmd.ErrOrStderr(), "%s before these are not kept\n", plural(int64(rec.EventsOmitted), "event"))
				}
				for _, e := range rec.Events {
					if err := each(e); err != nil {
						return err
					}
				}
				if len(rec.Events) == 0 {
					fmt.Fprintf(cmd.ErrOrStderr(), "job %s has no events; nodes of v0.4 kept none\n", rec.ID)
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the job has ended")
	return cmd
}
