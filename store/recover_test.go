package store

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/fsm/command"
)

// recoverable is a shard of three replicas that has lost two for good. The one that is left has entries at the end of its log of which it cannot know whether they
// were acknowledged, and behind them one that is not for the state.
func recoverable(t *testing.T, edit func(*node, *Config)) (c *cluster, left *node) {
	t.Helper()
	c = newCluster(t, 3, edit)
	c.fill("k", 80)
	c.converge()
	left = c.followers()[0]
	for _, n := range c.nodes {
		n.kill()
	}
	cfg := closedConfig(left)
	was, err := Inspect(cfg)
	if err != nil || was.Applied == 0 {
		t.Fatalf("%+v, %v", was, err)
	}
	db, err := openLogFile(cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, db)
	var tail []*raft.Log
	for i := range 40 {
		batch := command.Batch{Commands: []command.Command{set(fmt.Sprintf("late%d", i), "late")}}
		tail = append(tail, &raft.Log{Index: was.LastIndex + 1 + uint64(i), Term: was.LastTerm, Type: raft.LogCommand, Data: batch.AppendTo(nil)})
	}
	tail = append(tail, &raft.Log{Index: was.LastIndex + 41, Term: was.Term, Type: raft.LogNoop})
	if err := cfg.entries(db).StoreLogs(tail); err != nil {
		t.Fatal(err)
	}
	return c, left
}

// heir opens what a replica has become, as a shard of its own.
func (c *cluster) heir(from *node, to Heir) *node {
	c.t.Helper()
	n := &node{c: c, id: from.id, replica: to.Replica, wal: from.wal}
	edit := c.edit
	c.edit = func(m *node, cfg *Config) {
		if edit != nil {
			edit(m, cfg)
		}
		if m == n {
			cfg.Dir = to.Dir
		}
	}
	from.wal = nil
	c.nodes = append(c.nodes, n)
	n.start()
	return n
}

func (c *cluster) wantAcknowledged() {
	c.t.Helper()
	for i := range 80 {
		c.want(fmt.Sprintf("k%d", i), "k")
	}
	for i := range 40 {
		c.want(fmt.Sprintf("late%d", i), "late")
	}
}

func closedConfig(n *node) Config {
	cfg := n.config()
	cfg.Net = n.net
	if n.c.edit != nil {
		n.c.edit(n, &cfg)
	}
	return cfg
}

// One survivor of three goes on alone with all that it had, under another id, in a term above all that it knew; and grows again.
func TestRecover(t *testing.T) {
	for _, way := range []string{"log", "snapshot"} {
		t.Run(way, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				edit := func(n *node, cfg *Config) {
					if way == "snapshot" {
						frugal(n, cfg)
					}
				}
				c, left := recoverable(t, edit)
				was, err := Inspect(closedConfig(left))
				if err != nil || len(was.Voters) != 3 || was.Empty || was.LastIndex < was.Applied+41 { // above it, if the last entries are in no checkpoint yet
					t.Fatalf("%+v, %v", was, err)
				}
				to := Heir{Replica: "n9.1000000000", Dir: filepath.Join(c.dir, "heir"), Term: was.Term + 7}
				if err := Recover(closedConfig(left), to); err != nil {
					t.Fatal(err)
				}
				n := c.heir(left, to)
				if l := c.waitLeader(); l != n {
					t.Fatalf("%s leads", l.replica)
				}
				st := n.store.Status()
				if st.Term <= to.Term || len(st.Members) != 1 || st.Members[0].Replica != to.Replica || !st.Members[0].Voter {
					t.Errorf("term %d, members %+v", st.Term, st.Members)
				}
				c.wantAcknowledged()
				// It can be restarted, and others can join it.
				n.kill()
				n.start()
				c.waitLeader()
				c.put("after", "x")
				other := &node{c: c, id: "n7", replica: "n7.1000000001"}
				c.nodes = append(c.nodes, other)
				other.start()
				c.join(other)
				c.converge()
				c.wantAcknowledged()
			})
		})
	}
}

// Crashed before or after any step, a recovery that is made again comes to the same end.
func TestRecoverAgainAfterCrash(t *testing.T) {
	for crash := range 6 {
		t.Run(fmt.Sprintf("after step %d", crash), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, left := recoverable(t, nil)
				to := Heir{Replica: "n9.1000000000", Dir: filepath.Join(c.dir, "heir"), Term: 50}
				in := &inheritance{cfg: closedConfig(left), to: to, staging: to.Dir + ".recovering"}
				steps, err := in.steps()
				if err != nil || len(steps) != 5 {
					t.Fatalf("%d steps, %v", len(steps), err)
				}
				for _, step := range steps[:crash] {
					if err := step(); err != nil {
						t.Fatal(err)
					}
				}
				for range 2 { // and once more when it is over
					if err := Recover(closedConfig(left), to); err != nil {
						t.Fatal(err)
					}
				}
				if left, _ := filepath.Glob(to.Dir + ".recovering"); len(left) > 0 {
					t.Errorf("left behind: %v", left)
				}
				c.heir(left, to)
				if l := c.waitLeader(); l.store.Status().Term <= 50 {
					t.Errorf("term %d", l.store.Status().Term)
				}
				c.wantAcknowledged()
			})
		})
	}
}

// What holds nothing, or is damaged, is no heir's.
func TestRecoverRefuses(t *testing.T) { synctest.Test(t, testRecoverRefuses) }

func testRecoverRefuses(t *testing.T) {
	c, left := recoverable(t, nil)
	to := Heir{Replica: "n9.1000000000", Dir: filepath.Join(c.dir, "heir")}
	nowhere := closedConfig(left)
	nowhere.Dir = filepath.Join(c.dir, "nowhere")
	if err := Recover(nowhere, to); err == nil {
		t.Error("recovered a replica that is not there")
	}
	if _, err := os.Stat(nowhere.Dir); !os.IsNotExist(err) {
		t.Errorf("looking for it has made it: %v", err)
	}
	cfg := closedConfig(left)
	if err := os.Remove(filepath.Join(cfg.Dir, logName)); err != nil {
		t.Fatal(err)
	}
	if err := Recover(cfg, to); DamageOf(err) != DamageLog {
		t.Errorf("recovered without the log: %v", err)
	}
	if _, err := os.Stat(to.Dir); !os.IsNotExist(err) {
		t.Errorf("an heir of nothing: %v", err)
	}
}

// A group of the old configuration that lives on without the survivor can neither count its heir for a majority nor give it entries, in whichever term.
func TestRecoverIsOutOfReach(t *testing.T) { synctest.Test(t, testRecoverIsOutOfReach) }

func testRecoverIsOutOfReach(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.fill("k", 20)
	c.converge()
	old := c.nodes
	left := c.followers()[0]
	left.kill()
	to := Heir{Replica: left.id + ".1000000000", Dir: filepath.Join(c.dir, "heir")}
	if err := Recover(closedConfig(left), to); err != nil {
		t.Fatal(err)
	}
	heir := &node{c: c, id: left.id, replica: to.Replica, wal: left.wal}
	left.wal = nil
	t.Cleanup(func() {
		heir.stop()
		if heir.wal != nil {
			mustClose(t, heir.wal)
		}
	})
	c.edit = func(m *node, cfg *Config) {
		if m == heir {
			cfg.Dir = to.Dir
		}
	}
	heir.start()
	until(t, "the heir leads", heir.store.IsLeader)
	put := func(s *Store, k string) error {
		_, _, err := s.Propose(bg(t), []command.Command{set(k, "x")})
		return err
	}
	// Two of the old three: a majority among themselves, which nobody can help. It does not reach ours.
	c.nodes = nil
	for _, n := range old {
		if n != left {
			c.nodes = append(c.nodes, n)
		}
	}
	for i := range 5 { // elections, and entries for all members
		c.put(fmt.Sprintf("theirs%d", i), "x")
		l := c.waitLeader()
		l.kill()
		l.start()
	}
	c.put("theirs", "x")
	if err := put(heir.store, "ours"); err != nil {
		t.Fatal(err)
	}
	res, _, err := heir.store.Read(bg(t), []command.Command{get("theirs"), get("ours")})
	if err != nil || string(res[0].Bytes) != "" || string(res[1].Bytes) != "x" {
		t.Errorf("%+v, %v", res, err)
	}
	if st := heir.store.Status(); len(st.Members) != 1 {
		t.Errorf("members %+v", st.Members)
	}
	// And alone, one of the old three counts the heir's node for nothing.
	l := c.waitLeader()
	c.nodes[0].kill()
	c.nodes[1].kill()
	l.start()
	if err := put(l.store, "alone"); err == nil {
		t.Error("one of the old three wrote with the heir's help")
	}
}
