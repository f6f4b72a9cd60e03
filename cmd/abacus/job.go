package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/compute/job"
)

func newJobCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "job",
		Short: "Compute over many keys where they live: map, then reduce",
		Long: `A job reads every key with a prefix, maps each record to a value and reduces the values to
one, or to one for each group. The leader of each shard cuts its part into tasks and hands
them to the shard's replicas. A job sees every write that was acknowledged before it was
submitted, and it is answered completely or it fails.`,
		Example: `  abacus job run --prefix num/ --as int --map square --reduce sum
  abacus job run --prefix city/ --as json --map json:population --group-by json:country --reduce max -o csv
  abacus job run -f job.yaml --explain
  abacus job submit -f job.yaml && abacus job list`,
	}
	cmd.AddCommand(newJobRunCommand(a), newJobSubmitCommand(a), newJobWaitCommand(a), newJobResultCommand(a), newJobStatusCommand(a), newJobTasksCommand(a),
		newJobCountersCommand(a), newJobLogsCommand(a), newJobListCommand(a), newJobCancelCommand(a), newJobRetryCommand(a), newJobDeleteCommand(a))
	return cmd
}

func newJobRunCommand(a *app) *cobra.Command {
	var explain bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Submit a job, follow it and print its result alone",
		Long: `Submit a job, follow it and print its result, alone, on stdout: one value as it is, groups and
other results of many parts as a table or, with -o csv, as CSV; with -o json or yaml the whole
record of the job. Over no keys, sum and count are 0, and min, max and mean fail with
"no records".

Ctrl-C stops following, not the job, and prints its id. On a terminal a second Ctrl-C within
two seconds cancels the job, too.

Exit codes: 0 done, 1 failed or no records, 2 wrong usage, 3 cancelled, 5 cluster
unavailable, 6 not known whether it was submitted, 124 time-out, 130 interrupted.`,
		Example: `  abacus job run --prefix num/ --as int --map square --reduce sum
  abacus job run --prefix city/ --as json --map json:population --reduce max --on-error skip
  abacus job run --prefix word/                # how many keys there are
  abacus job run --prefix word/ --map len --reduce mean -o json
  abacus job run -f job.yaml                   # fields as the flags, with _ for -: group_by: key`,
		Args: noArgsButPrefix,
	}
	writes(cmd, formatYAML, formatCSV)
	src := specFlags(cmd)
	cmd.Flags().BoolVar(&explain, "explain", false, "say what the job would do, which shards and nodes would read about how much, and do not run it")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		spec, err := src.spec(cmd)
		if err != nil {
			return err
		}
		return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
			if explain {
				return a.explain(ctx, cmd, c, spec)
			}
			id, err := a.submit(ctx, c, spec)
			if err != nil {
				return err
			}
			rec, err := a.followJob(ctx, c, id, cmd.ErrOrStderr())
			if errors.Is(err, errInterrupted) && terminal(cmd.ErrOrStderr()) {
				return a.offerCancel(c, id, cmd.ErrOrStderr())
			}
			if err != nil {
				return err
			}
			return a.printResult(cmd, rec)
		})
	}
	return cmd
}

func (a *app) explain(ctx context.Context, cmd *cobra.Command, c *client.Client, spec job.Spec) error {
	e, err := c.ExplainJob(ctx, spec)
	if err != nil {
		return err
	}
	return a.printExplanation(cmd, e)
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
	var explain bool
	cmd := &cobra.Command{
		Use:   "submit",
		Short: "Submit a job and print its id",
		Long: `Submit a job and print its id, without waiting for it. With --file, the job's
specification is read from a file, YAML or JSON, or from stdin (-), and is the whole of it:
the flags that describe a job do not go with it.`,
		Example: `  abacus job submit --prefix num/ --as int --reduce sum
  abacus job submit -f job.yaml`,
		Args: noArgsButPrefix,
	}
	writes(cmd, formatYAML, formatName)
	src := specFlags(cmd)
	cmd.Flags().BoolVar(&explain, "explain", false, "say what the job would do, and do not submit it")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		spec, err := src.spec(cmd)
		if err != nil {
			return err
		}
		return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
			if explain {
				return a.explain(ctx, cmd, c, spec)
			}
			id, err := a.submit(ctx, c, spec)
			if err != nil {
				return err
			}
			return a.printID(cmd, id)
		})
	}
	return cmd
}

func (a *app) printID(cmd *cobra.Command, id string) error {
	switch a.output {
	case formatJSON, formatYAML:
		return a.print(cmd.OutOrStdout(), map[string]string{"id": id}, grid{})
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), id)
	return err
}

// finished is what job wait --for takes beside succeeded.
const finished = "finished"

func newJobWaitCommand(a *app) *cobra.Command {
	var (
		timeout time.Duration
		until   string
	)
	cmd := &cobra.Command{
		Use:   "wait ID",
		Short: "Follow a job until it ends and print its result alone",
		Long: `Follow a job until it ends and print its result, as abacus job run does. The exit code is
that of the job's end: 0 succeeded, 1 failed, 3 cancelled, 124 timed out. With
--for finished any end is as good as another: exit code 0, and the result if there is one.
Ctrl-C stops waiting, never the job.`,
		Args:              takes(1, 1),
		ValidArgsFunction: completeJobs(a, false, anyJob),
		RunE: func(cmd *cobra.Command, args []string) error {
			if until != string(job.Succeeded) && until != finished {
				return usagef("--for %s: it must be succeeded or finished", until)
			}
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
				err = a.printResult(cmd, rec)
				if until == finished && rec.Err() != nil {
					fmt.Fprintf(cmd.ErrOrStderr(), "job %s has %s\n", rec.ID, endOf(rec))
					return nil
				}
				return err
			})
		},
	}
	writes(cmd, formatYAML, formatCSV)
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "stop waiting after this time, exit code 124 (0: never); the job goes on")
	cmd.Flags().StringVar(&until, "for", string(job.Succeeded), "what to wait for: succeeded (any other end fails), or finished")
	return cmd
}

// endOf says how a job that has no result ended, behind "has".
func endOf(rec job.Record) string {
	if rec.State == job.Cancelled {
		return "been cancelled"
	}
	return "failed: " + rec.Error
}

var errWaitOver = errors.New("the job has not ended")

func newJobResultCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "result ID",
		Short:             "Print the result of a job that has ended",
		Args:              takes(1, 1),
		ValidArgsFunction: completeJobs(a, false, endedJob),
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
	writes(cmd, formatYAML, formatCSV)
	return cmd
}

// followJob waits for the job's end and shows its progress: a bar on a terminal,
// else a line now and then. When it is interrupted, the job goes on.
func (a *app) followJob(ctx context.Context, c *client.Client, id string, info io.Writer) (job.Record, error) {
	p := newJobProgress(info, id)
	rec, err := c.JobWait(ctx, id, p.to)
	p.clear()
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

// secondCtrlC is how long who has interrupted a job of his may do so again, to cancel it.
const secondCtrlC = 2 * time.Second

// offerCancel lets who has let go of the job that he runs cancel it. Only run offers that: who waits for a job may not be who
// submitted it, and a script's SIGTERM ends the script.
func (a *app) offerCancel(c *client.Client, id string, info io.Writer) error {
	again := make(chan os.Signal, 1)
	signal.Notify(again, os.Interrupt)
	defer signal.Stop(again)
	fmt.Fprintf(info, "Ctrl-C again within %v cancels it\n", secondCtrlC)
	return cancelAgain(again, secondCtrlC, info, id, func() error {
		signal.Stop(again) // a third one ends this process as usual
		ctx, cancel := context.WithTimeout(context.Background(), a.timeout)
		defer cancel()
		return c.CancelJob(ctx, id)
	})
}

// cancelAgain cancels if again comes in time. Its error is of what became of the command: interrupted, or the job cancelled.
func cancelAgain(again <-chan os.Signal, within time.Duration, info io.Writer, id string, cancel func() error) error {
	select {
	case <-again:
	case <-time.After(within):
		return errInterrupted
	}
	if err := cancel(); err != nil {
		return fmt.Errorf("cancel job %s: %w", id, err)
	}
	fmt.Fprintf(info, "job %s is cancelled\n", id)
	return &exitError{exitCancelled, errQuiet}
}

func newJobCancelCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "cancel ID",
		Short:             "End a job without a result",
		Long:              `End a job without a result. Its record stays: see it with abacus job status.`,
		Args:              takes(1, 1),
		ValidArgsFunction: completeJobs(a, false, unfinishedJob),
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

func newJobRetryCommand(a *app) *cobra.Command {
	var newID string
	cmd := &cobra.Command{
		Use:   "retry ID",
		Short: "Submit the specification of a job that has ended once more",
		Long: `Submit the specification of a job that has ended once more, as a new job, and print its id.
The old job and its result stay.`,
		Example: `  abacus job retry j-a3cdr6dpvkqsyxzi5ax2
  abacus job wait $(abacus job retry nightly-1 --id nightly-2)`,
		Args:              takes(1, 1),
		ValidArgsFunction: completeJobs(a, false, endedJob),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("id") {
				if err := job.CheckID(newID); err != nil {
					return usagef("--%w", err)
				}
			}
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				id, err := c.RetryJob(ctx, args[0], newID)
				if errors.Is(err, client.ErrUncertain) {
					return fmt.Errorf("%w; look with: %s; to try again, give it this id: --id %s", err, a.try("job status "+id), id)
				}
				if err != nil {
					return err
				}
				return a.printID(cmd, id)
			})
		},
	}
	writes(cmd, formatYAML, formatName)
	cmd.Flags().StringVar(&newID, "id", "", "the new job's id (default: made up)")
	return cmd
}

func newJobDeleteCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "delete ID...",
		Short: "Forget jobs that have ended, and their results",
		Long: `Forget jobs that have ended, and their results. One that has not is refused: cancel it first.
The cluster forgets the oldest of many by itself.`,
		Example: `  abacus job delete j-a3cdr6dpvkqsyxzi5ax2
  abacus job list --state failed -o name | xargs abacus job delete`,
		Args:              takesSome,
		ValidArgsFunction: completeJobs(a, true, endedJob),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				for i, id := range args {
					if err := c.DeleteJob(ctx, id); err != nil {
						if i > 0 {
							return fmt.Errorf("delete job %s, after %s: %w", id, plural(int64(i), "other"), err)
						}
						return fmt.Errorf("delete job %s: %w", id, err)
					}
				}
				return a.done(cmd)
			})
		},
	}
}
