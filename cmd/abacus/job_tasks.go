package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/compute/job"
)

func newJobTasksCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tasks ID",
		Short: "Show which node ran which task of a job",
		Long: `Show a job's tasks: which slots of which shard, at which index of the shard's log, on which
node, and where it was tried before. A shard's master hands its tasks out.`,
		Args:              takes(1, 1),
		ValidArgsFunction: completeJobs(a, false, anyJob),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				rec, err := c.JobStatus(ctx, args[0])
				if err != nil {
					return err
				}
				shards := rec.Shards
				if shards == nil {
					shards = []job.ShardReport{}
				}
				if err := a.print(cmd.OutOrStdout(), shards, tasksOf(rec, a.output == formatWide || a.output == formatCSV)); err != nil {
					return err
				}
				if rec.TasksOmitted > 0 {
					fmt.Fprintf(cmd.ErrOrStderr(), "%s are not in the record, there were too many\n", plural(int64(rec.TasksOmitted), "task"))
				}
				return nil
			})
		},
	}
	writes(cmd, formatWide, formatYAML, formatCSV)
	return cmd
}

// tasksOf has a row for each task, and one for each shard that has none yet.
func tasksOf(r job.Record, wide bool) grid {
	g := grid{head: []string{"SHARD", "MASTER", "INDEX", "TASK", "SLOTS", "NODE", "ROLE", "RECORDS", "BAD", "MS", "ATTEMPTS", "FAILED ON"}}
	if wide {
		g.head = append(g.head, "STATE", "BYTES", "TASK INDEX")
	}
	for _, s := range r.Shards {
		for _, k := range s.Tasks {
			node, state := orDash(k.Node), "waiting"
			if r.State.Finished() {
				state = "not done"
			}
			switch {
			case k.Done:
				state = "done"
			case k.Node != "":
				state = "running"
				if !wide {
					node += " (running)"
				}
			}
			cells := []any{s.Shard, orDash(s.Master), s.Index, k.ID, fmt.Sprintf("%d-%d", k.From, k.To), node, orDash(k.Role), k.Records, k.Bad, k.Millis, k.Attempts, orDash(strings.Join(k.FailedOn, " "))}
			if wide {
				cells = append(cells, state, k.Bytes, k.Index)
			}
			g.add(cells...)
		}
		if len(s.Tasks) == 0 {
			cells := []any{s.Shard, orDash(s.Master), s.Index, "-", "-", "-", "-", "-", "-", "-", s.Attempts, "-"}
			if wide {
				cells = append(cells, "-", "-", "-")
			}
			g.add(cells...)
		}
	}
	return g
}

// work is what a node, or all for a shard, did for a job.
type work struct {
	Records  int64 `json:"records"`
	Bytes    int64 `json:"bytes,omitempty"`
	Bad      int64 `json:"bad"`
	Tasks    int   `json:"tasks"`
	Done     int   `json:"tasks_done"`
	Attempts int   `json:"attempts"`
	Failed   int   `json:"failed"` // attempts that failed there; of a shard, anywhere
	Millis   int64 `json:"ms"`     // of the attempts that counted, or that have not ended

	shards                  map[uint32]bool
	leader, follower, taken int // tasks done in that role, and after another node had failed them
	running                 int
}

func (w *work) add(k job.TaskReport, shard uint32) {
	w.Tasks++
	if w.shards == nil {
		w.shards = map[uint32]bool{}
	}
	w.shards[shard] = true
	w.Records, w.Bytes, w.Bad, w.Millis = w.Records+k.Records, w.Bytes+k.Bytes, w.Bad+k.Bad, w.Millis+k.Millis
	if !k.Done {
		w.running++
		return
	}
	w.Done++
	if k.Role == job.RoleFollower {
		w.follower++
	} else {
		w.leader++
	}
	if len(k.FailedOn) > 0 {
		w.taken++
	}
}

// counters are a job's, as a whole, by shard and by node.
type counters struct {
	Total  work             `json:"total"`
	Shards map[uint32]*work `json:"shards"`
	Nodes  map[string]*work `json:"nodes"`

	waiting int // tasks that no node has
}

func countersOf(r job.Record) counters {
	c := counters{Shards: map[uint32]*work{}, Nodes: map[string]*work{}}
	node := func(id string) *work {
		if c.Nodes[id] == nil {
			c.Nodes[id] = &work{}
		}
		return c.Nodes[id]
	}
	for _, s := range r.Shards {
		shard := &work{}
		c.Shards[s.Shard] = shard
		for _, k := range s.Tasks {
			for _, w := range []*work{&c.Total, shard} {
				w.add(k, s.Shard)
				w.Attempts += k.Attempts
				w.Failed += len(k.FailedOn)
			}
			for _, id := range k.FailedOn {
				node(id).Attempts++
				node(id).Failed++
			}
			if k.Node == "" {
				c.waiting++
				continue
			}
			n := node(k.Node)
			n.add(k, s.Shard)
			n.Attempts++
		}
	}
	if r.State.Finished() { // also of a record without its tasks
		c.Total.Records, c.Total.Bad, c.Total.Bytes = r.Records, r.Bad, max(r.Bytes, c.Total.Bytes)
	}
	return c
}

func newJobCountersCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "counters ID",
		Short: "Count a job's records, bytes, tasks and attempts, by shard and by node",
		Long: `Count what was read for a job, as a whole, by shard and by node: records, bytes, bad
records, tasks, attempts at them, attempts that failed, and milliseconds of work. What was
read by attempts that failed is not counted.`,
		Args:              takes(1, 1),
		ValidArgsFunction: completeJobs(a, false, anyJob),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				rec, err := c.JobStatus(ctx, args[0])
				if err != nil {
					return err
				}
				counted := countersOf(rec)
				return a.print(cmd.OutOrStdout(), counted, counted.grid())
			})
		},
	}
	writes(cmd, formatYAML, formatCSV)
	return cmd
}

func (c counters) grid() grid {
	g := grid{head: []string{"OF", "RECORDS", "BYTES", "BAD", "TASKS", "DONE", "ATTEMPTS", "FAILED", "MS"}}
	add := func(of string, w work) {
		g.add(of, w.Records, w.Bytes, w.Bad, w.Tasks, w.Done, w.Attempts, w.Failed, w.Millis)
	}
	add("total", c.Total)
	for _, id := range slices.Sorted(maps.Keys(c.Shards)) {
		add(fmt.Sprintf("shard %d", id), *c.Shards[id])
	}
	for _, id := range slices.Sorted(maps.Keys(c.Nodes)) {
		add("node "+id, *c.Nodes[id])
	}
	return g
}

// printWork adds up the tasks by node, for people.
func printWork(w io.Writer, r job.Record) error {
	c := countersOf(r)
	t := newTable(w, "NODE", "SHARDS", "TASKS AS LEADER", "AS FOLLOWER", "RUNNING", "TAKEN OVER", "RECORDS", "BAD", "MS")
	for _, id := range slices.Sorted(maps.Keys(c.Nodes)) {
		n := c.Nodes[id]
		if n.Tasks == 0 { // it has only failed some
			continue
		}
		t.row(id, len(n.shards), n.leader, n.follower, n.running, n.taken, count(n.Records), count(n.Bad), count(n.Millis))
	}
	if err := t.flush(); err != nil {
		return err
	}
	switch {
	case c.waiting == 0:
	case r.State.Finished():
		fmt.Fprintf(w, "not done: %s\n", plural(int64(c.waiting), "task"))
	default:
		fmt.Fprintf(w, "without a node yet: %s\n", plural(int64(c.waiting), "task"))
	}
	return nil
}
