package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/transport"
)

// frugal cuts the log early and keeps little of it, so that a replica that is
// away for a moment needs a snapshot.
func frugal(_ *node, cfg *Config) {
	cfg.Snapshots = Snapshots{Entries: 50, Trailing: MinTrailing, Interval: 20 * time.Millisecond}
}

func (c *cluster) fill(prefix string, n int) {
	c.t.Helper()
	for i := range n {
		c.put(fmt.Sprintf("%s%d", prefix, i), prefix)
	}
}

// waitCut waits until the leader's log no longer reaches back to an index.
func (c *cluster) waitCut(index uint64) {
	c.t.Helper()
	until(c.t, "the log to be cut", func() bool {
		l := c.leader()
		if l == nil {
			return false
		}
		first, err := l.store.logs.FirstIndex()
		return err == nil && first > index+1
	})
}

// A learner gets the log, or a snapshot and the rest of the log, and its vote only
// when it has caught up. Membership changes may be repeated.
func TestLearner(t *testing.T) {
	for _, way := range []string{"log", "snapshot"} {
		t.Run(way, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				edit := func(n *node, cfg *Config) {
					if way == "snapshot" {
						frugal(n, cfg)
					}
				}
				c := newCluster(t, 1, edit)
				c.fill("before", 120)
				if way == "snapshot" {
					c.waitCut(1)
				}
				n := c.addNode()
				l := c.waitLeader().store
				if err := l.AddLearner(bg(t), n.replica, n.id); err != nil {
					t.Fatal(err)
				}
				if err := l.Promote(bg(t), n.replica, n.id); transport.CodeOf(err) != transport.CodeBusy {
					t.Errorf("promoted a learner that is not there: %v", err)
				}
				if err := l.AddLearner(bg(t), n.replica, "elsewhere"); transport.CodeOf(err) != transport.CodeRefused {
					t.Errorf("one id on two nodes: %v", err)
				}
				n.start()
				until(t, "the learner to catch up", func() bool { return l.CaughtUp(n.replica) })
				for range 2 {
					if err := l.AddLearner(bg(t), n.replica, n.id); err != nil {
						t.Fatal(err)
					}
					c.onLeader("promote", func(s *Store) error { return s.Promote(bg(t), n.replica, n.id) })
				}
				members := l.Status().Members
				if len(members) != 2 || !members[1].Voter || members[1].Node != n.id || members[1].Match == 0 {
					t.Errorf("members are %+v", members)
				}
				c.converge()
				if err := l.Remove(bg(t), l.cfg.Replica); transport.CodeOf(err) != transport.CodeRefused {
					t.Errorf("the leader removed itself: %v", err)
				}
				for range 2 {
					if err := l.Remove(bg(t), n.replica); err != nil {
						t.Fatal(err)
					}
				}
				n.kill()
				c.put("alone", "x")
			})
		})
	}
}

// A change decided on an old configuration is refused.
func TestMembershipConflict(t *testing.T) { synctest.Test(t, testMembershipConflict) }

func testMembershipConflict(t *testing.T) {
	c := newCluster(t, 2, nil)
	l := c.waitLeader().store
	old := l.machine.conf.Load()
	if err := l.AddLearner(bg(t), "n9.1", "n9"); err != nil {
		t.Fatal(err)
	}
	l.machine.conf.Store(old)
	if err := l.AddLearner(bg(t), "n8.1", "n8"); transport.CodeOf(err) != transport.CodeConflict {
		t.Errorf("change on an old configuration: %v", err)
	}
}

// A replica that was away while the log was cut gets a snapshot, goes on from
// its log afterwards, and keeps all of it over a restart.
func TestCatchUpBySnapshot(t *testing.T) { synctest.Test(t, testCatchUpBySnapshot) }

func testCatchUpBySnapshot(t *testing.T) {
	c := newCluster(t, 3, frugal)
	c.converge()
	for round := range 2 {
		f := c.followers()[0]
		f.kill()
		at := c.waitLeader().store.Applied()
		c.fill(fmt.Sprintf("r%d-", round), 150)
		c.waitCut(at)
		f.start()
		c.converge()
		c.fill(fmt.Sprintf("s%d-", round), 10)
		c.converge()
		f.stop()
		f.start()
		c.converge()
	}
}

// The same over real connections.
func TestOverTCP(t *testing.T) {
	c := newCluster(t, 0, frugal)
	c.tcp = new(sync.Map)
	c.addNode().start()
	c.fill("a", 120)
	c.waitCut(1)
	for range 2 {
		n := c.addNode()
		n.start()
		c.join(n) // by a snapshot
	}
	c.converge()
	c.waitLeader().kill()
	c.fill("b", 20)
	for _, n := range c.nodes {
		if n.store == nil {
			n.start()
		}
	}
	c.converge()
}

// Two replicas are cut off from a leader that writes entries which nobody else
// ever sees, and the others go on with other entries at the same indexes, until
// they need a snapshot to bring the first one back. Its old entries must be gone
// (hazard R5): also when it then leads, and from its disk. Its log ended above the
// snapshot, so raft would ask for that snapshot for ever (R24).
func TestNoGhostsAfterInstall(t *testing.T) { t.Parallel(); synctest.Test(t, testNoGhostsAfterInstall) }

func testNoGhostsAfterInstall(t *testing.T) {
	c := newCluster(t, 3, func(n *node, cfg *Config) {
		frugal(n, cfg)
		if n.first {
			// The old leader keeps a long log behind a snapshot, as replicas usually do:
			// raft would then keep the ghosts below the one that it installs.
			cfg.Snapshots.Trailing = 400
		}
		// Time for the old leader to take many ghosts.
		cfg.Timing.Heartbeat, cfg.Timing.Election, cfg.Timing.Lease = time.Second, time.Second, time.Second
	})
	c.converge()
	old := c.waitLeader()
	c.net.Isolate(old.id)
	var taken atomic.Int64
	var wg sync.WaitGroup
	for range 400 {
		// Straight to raft: Propose has two entries in flight, no more.
		wg.Go(func() {
			b := command.Batch{Commands: []command.Command{set("ghost", "boo")}}
			f := old.store.raft().ApplyLog(raft.Log{Data: b.AppendTo(nil)}, 5*time.Second)
			if f.Error() == nil {
				t.Error("a ghost was committed")
			}
			if f.Index() > 0 {
				taken.Add(1)
			}
		})
	}
	wg.Wait() // it has stepped down
	ghosts, ghostEnd := taken.Load(), old.store.Status().LastIndex
	if ghosts < 200 {
		t.Fatalf("only %d ghosts", ghosts)
	}
	until(t, "a new leader", func() bool { l := c.leader(); return l != nil && l != old })
	// A snapshot below the end of the ghosts, but above their beginning.
	c.fill("real", 100)
	c.waitCut(old.store.Applied())
	snap := c.waitLeader().store.snaps.latest().Index
	t.Logf("%d ghosts, to index %d; snapshot at %d, log from there", ghosts, ghostEnd, snap)
	before := old.store.inst.Load()
	c.net.Heal()
	c.converge()
	if snap >= ghostEnd {
		t.Fatal("the snapshot lies above the ghosts")
	}
	until(t, "raft to be restarted", func() bool { in := old.store.inst.Load(); return in != nil && in != before })
	if first, _ := indexes(t, old.store.logs); first != 0 && first <= snap {
		t.Errorf("the log from before the snapshot at %d is there, from %d", snap, first)
	}
	c.fill("after", 30)
	c.onLeader("transfer", func(s *Store) error { return s.TransferLeadership(bg(t), old.replica) })
	until(t, "the old leader to lead again", old.store.IsLeader)
	c.want("ghost", "")
	c.converge()
	old.stop()
	old.start()
	c.converge()
	c.want("ghost", "")
}

// Entries of a term above their sender's come from a replication that outlived
// its leadership. They are refused: once appended, the log would be of a term that
// this replica never stored, and its next start would look as if its votes were lost.
func TestEntriesOfALaterTerm(t *testing.T) { synctest.Test(t, testEntriesOfALaterTerm) }

func testEntriesOfALaterTerm(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.converge()
	l, f := c.waitLeader(), c.followers()[0]
	before := f.store.Status()
	send := func(entryTerm uint64) error {
		req := &raft.AppendEntriesRequest{
			RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte(l.replica), Addr: []byte(l.replica + "\x00" + l.id)},
			Term:      before.Term, PrevLogEntry: before.LastIndex, PrevLogTerm: before.Term,
			Entries: []*raft.Log{{Index: before.LastIndex + 1, Term: entryTerm, Type: raft.LogNoop}},
		}
		return l.store.inst.Load().peers.AppendEntries(raft.ServerID(f.replica), raft.ServerAddress(f.id), req, new(raft.AppendEntriesResponse))
	}
	if err := send(before.Term + 2); transport.CodeOf(err) != transport.CodeRefused {
		t.Errorf("entries of term %d from a leader of term %d: %v", before.Term+2, before.Term, err)
	}
	if last := f.store.Status().LastIndex; last != before.LastIndex {
		t.Errorf("the log went from %d to %d", before.LastIndex, last)
	}
	if err := send(before.Term); err != nil {
		t.Errorf("entries of the sender's own term: %v", err)
	}
}

// An install that this replica had before, or that comes late, is acknowledged
// and changes nothing (hazard R23).
func TestStaleInstall(t *testing.T) { synctest.Test(t, testStaleInstall) }

func testStaleInstall(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.fill("a", 60)
	c.converge()
	l, f := c.waitLeader(), c.followers()[0]
	conf := f.store.machine.conf.Load()
	req := &raft.InstallSnapshotRequest{
		RPCHeader:       raft.RPCHeader{ProtocolVersion: 3, ID: []byte(l.replica), Addr: []byte(l.replica + "\x00" + l.id)},
		SnapshotVersion: 1, Term: l.store.Status().Term, LastLogIndex: 10, LastLogTerm: 1, ConfigurationIndex: 1,
		Configuration: raft.EncodeConfiguration(raft.Configuration{Servers: conf.servers}),
	}
	send := func() (*raft.InstallSnapshotResponse, error) {
		size, _, r, err := l.store.fsm.OpenStream(fsm.StreamSparse)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		req.Size = size
		resp := new(raft.InstallSnapshotResponse)
		err = l.store.inst.Load().peers.InstallSnapshot(raft.ServerID(f.replica), raft.ServerAddress(f.id), req, resp, r)
		return resp, err
	}
	before := f.store.Status()
	resp, err := send()
	if err != nil || !resp.Success {
		t.Errorf("late install: %+v, %v", resp, err)
	}
	req.Term-- // of an old leader
	if resp, err := send(); err == nil && resp.Success {
		t.Error("an install of an old term succeeded")
	}
	// A replication that outlived its leadership sends a snapshot of a term above its own.
	req.Term++
	req.LastLogIndex, req.LastLogTerm = before.Applied+100, req.Term+1
	if _, err := send(); transport.CodeOf(err) != transport.CodeRefused {
		t.Errorf("a snapshot of a later term than its sender's: %v", err)
	}
	after := f.store.Status()
	if after.Applied < before.Applied || after.LastIndex < before.LastIndex || f.store.snaps.latest() != nil {
		t.Errorf("rolled back from %+v to %+v", before, after)
	}
	if first, _ := f.store.logs.FirstIndex(); first != 1 {
		t.Errorf("the log begins at %d now", first)
	}
	c.converge()
}

// A leader that has not heard our answers asks for entries that we have taken, made a snapshot of and cut out of the log. It is told yes: with no, it would send
// a snapshot that lies below ours, and ask for the same again, for as long as it leads.
func TestEntriesBelowOurSnapshot(t *testing.T) { synctest.Test(t, testEntriesBelowOurSnapshot) }

func testEntriesBelowOurSnapshot(t *testing.T) {
	c := newCluster(t, 3, func(n *node, cfg *Config) {
		frugal(n, cfg)
		if n.first {
			cfg.Snapshots.Trailing = 1000
		}
	})
	c.converge()
	c.fill("a", 150)
	l := c.lead(c.nodes[0]) // who has all the log
	f := c.followers()[0]
	c.converge()
	until(t, "the follower's log to be cut", func() bool {
		start, last := f.store.logs.start(), f.store.Status().LastIndex
		if start.first > 20 && start.first <= start.end && last > start.end && last < start.end+40 {
			return true // an entry is behind its snapshot, and too few for another one
		}
		c.put("behind", "x")
		return false
	})
	c.converge()
	before, start := f.store.Status(), f.store.logs.start()
	entries := func(from, to uint64) (list []*raft.Log) {
		for i := from; i <= to; i++ {
			entry := new(raft.Log)
			if err := l.store.logs.GetLog(i, entry); err != nil {
				t.Fatal(err)
			}
			list = append(list, entry)
		}
		return list
	}
	term := func(i uint64) uint64 { return entries(i, i)[0].Term }
	ask := func(prev, prevTerm uint64, list []*raft.Log) bool {
		t.Helper()
		req := &raft.AppendEntriesRequest{
			RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte(l.replica), Addr: []byte(l.replica + "\x00" + l.id)},
			Term:      before.Term, PrevLogEntry: prev, PrevLogTerm: prevTerm, Entries: list, LeaderCommitIndex: before.Applied,
		}
		var resp raft.AppendEntriesResponse
		if err := l.store.inst.Load().peers.AppendEntries(raft.ServerID(f.replica), raft.ServerAddress(f.id), req, &resp); err != nil {
			t.Fatal(err)
		}
		return resp.Success
	}
	for _, prev := range []uint64{1, start.first - 2} {
		for _, to := range []uint64{prev, prev + 1, start.end - 1, start.end, before.LastIndex} {
			if !ask(prev, term(prev), entries(prev+1, to)) {
				t.Errorf("entries %d to %d are refused, by a log from %d behind a snapshot to %d", prev+1, to, start.first, start.end)
			}
		}
	}
	if !ask(0, 0, entries(1, before.LastIndex)) {
		t.Error("all entries are refused")
	}
	if prev := start.end; ask(prev, term(prev)+1, entries(prev+1, prev+1)) { // with an entry, or the leader would not even ask
		t.Error("an entry of another term is taken for ours")
	}
	if ask(before.LastIndex+5, before.Term, nil) {
		t.Error("an entry is taken for ours that we do not have")
	}
	if after := f.store.Status(); after.LastIndex != before.LastIndex || after.Applied < before.Applied || after.Term != before.Term {
		t.Errorf("from %+v to %+v", before, after)
	}
	c.fill("b", 20)
	c.converge()
}

// What is asked of raft is what is asked of us but for what the snapshot has.
func TestAfterSnapshot(t *testing.T) {
	entries := func(from, to uint64) (list []*raft.Log) {
		for i := from; i <= to; i++ {
			list = append(list, &raft.Log{Index: i, Term: 3})
		}
		return list
	}
	cut := logStart{first: 90, end: 100, term: 7}
	for _, tc := range []struct {
		name     string
		log      logStart
		prev     uint64
		entries  []*raft.Log
		wantPrev uint64
		want     int
	}{
		{"no snapshot", logStart{first: 1}, 5, entries(6, 9), 5, 4},
		{"a log that begins before", cut, 90, entries(91, 95), 90, 5},
		{"in front of the log", cut, 89, entries(90, 103), 100, 3},
		{"all of it in the snapshot", cut, 50, entries(51, 60), 100, 0},
		{"a question", cut, 50, nil, 100, 0},
		{"from the first entry", cut, 0, entries(1, 101), 100, 1},
		{"from the first entry, which is there", logStart{first: 1, end: 100, term: 7}, 0, entries(1, 5), 0, 5},
		{"behind the snapshot", cut, 100, entries(101, 102), 100, 2},
		{"an empty log", logStart{end: 100, term: 7}, 99, entries(100, 102), 100, 2},
		{"an empty log, behind the snapshot", logStart{end: 100, term: 7}, 101, entries(102, 102), 101, 1},
	} {
		req := &raft.AppendEntriesRequest{Term: 9, PrevLogEntry: tc.prev, PrevLogTerm: 3, Entries: tc.entries, LeaderCommitIndex: 1}
		got := afterSnapshot(req, tc.log)
		wantTerm := uint64(3)
		if tc.wantPrev != tc.prev {
			wantTerm = tc.log.term
		}
		if got.PrevLogEntry != tc.wantPrev || got.PrevLogTerm != wantTerm || len(got.Entries) != tc.want || len(req.Entries) != len(tc.entries) || got.Term != 9 || got.LeaderCommitIndex != 1 {
			t.Errorf("%s: %+v", tc.name, got)
		}
	}
	if beat := (&raft.AppendEntriesRequest{Term: 9}); afterSnapshot(beat, cut) != beat {
		t.Error("a heartbeat is changed")
	}
}

// A sender that gives up in the middle leaves the receiver as it was, free to go on.
func TestBrokenInstall(t *testing.T) { synctest.Test(t, testBrokenInstall) }

func testBrokenInstall(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.converge()
	l, f := c.waitLeader(), c.followers()[0]
	before := f.store.Applied()
	req := &raft.InstallSnapshotRequest{
		RPCHeader:       raft.RPCHeader{ProtocolVersion: 3, ID: []byte(l.replica), Addr: []byte(l.replica + "\x00" + l.id)},
		SnapshotVersion: 1, Term: l.store.Status().Term, LastLogIndex: before + 1000, LastLogTerm: 1,
		Configuration: raft.EncodeConfiguration(raft.Configuration{Servers: f.store.machine.conf.Load().servers}), Size: 1 << 20,
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	body := io.MultiReader(strings.NewReader(strings.Repeat("x", 900<<10)), stalled{ctx})
	_, err := l.tr.Stream(ctx, f.id, transport.MethodRaftInstall, encodeInstall(address{3, raft.ServerID(f.replica)}, req), body, req.Size)
	if err == nil {
		t.Fatal("half a stream was taken for a whole one")
	}
	c.put("k", "v")
	c.converge()
	until(t, "the half to be dropped", func() bool {
		left, err := filepath.Glob(filepath.Join(f.store.cfg.Dir, "snapshots", incomingPrefix+"*"))
		return err == nil && len(left) == 0
	})
}

// stalled is a body that never goes on.
type stalled struct{ ctx context.Context }

func (s stalled) Read([]byte) (int, error) { <-s.ctx.Done(); return 0, s.ctx.Err() }

// Close ends while a snapshot is being received that goes nowhere.
func TestCloseDuringInstall(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.converge()
	l, f := c.waitLeader(), c.followers()[0]
	req := &raft.InstallSnapshotRequest{
		RPCHeader:       raft.RPCHeader{ProtocolVersion: 3, ID: []byte(l.replica), Addr: []byte(l.replica + "\x00" + l.id)},
		SnapshotVersion: 1, Term: l.store.Status().Term, LastLogIndex: 1 << 20, LastLogTerm: 1,
		Configuration: raft.EncodeConfiguration(raft.Configuration{Servers: f.store.machine.conf.Load().servers}), Size: 1 << 20,
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	sent := make(chan error, 1)
	go func() {
		body := io.MultiReader(strings.NewReader(strings.Repeat("x", 900<<10)), stalled{ctx})
		_, err := l.tr.Stream(ctx, f.id, transport.MethodRaftInstall, encodeInstall(address{3, raft.ServerID(f.replica)}, req), body, req.Size)
		sent <- err
	}()
	until(t, "raft to be reading", func() bool {
		got, err := filepath.Glob(filepath.Join(f.store.cfg.Dir, "snapshots", incomingPrefix+"*"))
		return err == nil && len(got) == 1
	})
	began := time.Now()
	if err := f.store.Close(bg(t)); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > patience/2 {
		t.Errorf("Close took %v", took)
	}
	f.opened(nil)
	cancel()
	if err := <-sent; err == nil {
		t.Error("the sender believes that it arrived")
	}
	f.tr.Close()
}

// restartOver writes a term, a log, a snapshot and a state, and opens a replica over them.
func restartOver(t *testing.T, term uint64, logs []*raft.Log, snap *raft.SnapshotMeta, applied uint64) (*node, error) {
	t.Helper()
	c := newCluster(t, 0, nil)
	n := c.addNode()
	n.first = false
	dir := n.config().Dir
	if err := os.MkdirAll(filepath.Join(dir, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	db, err := openBolt(filepath.Join(dir, "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := n.config()
	if err := cfg.entries(db).StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
	if err := db.Set([]byte(keyLog), []byte(cfg.logID())); err != nil {
		t.Fatal(err)
	}
	if err := db.SetUint64([]byte(keyCurrentTerm), term); err != nil {
		t.Fatal(err)
	}
	mustClose(t, db)
	snaps, err := openSnapshots(filepath.Join(dir, "snapshots"), stopProcess, c.log)
	if err != nil {
		t.Fatal(err)
	}
	if snap != nil {
		snap.Configuration = raft.Configuration{Servers: []raft.Server{{ID: "n1.1", Address: "n1"}, {ID: "n2.1", Address: "n2"}}}
		if err := snaps.save(snap); err != nil {
			t.Fatal(err)
		}
	}
	f, err := fsm.Open(filepath.Join(dir, "state"), fsm.Config{InitialMmapSize: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(1); i <= applied; i++ {
		f.Apply(&raft.Log{Index: i, Type: raft.LogCommand, Data: (&command.Batch{Commands: []command.Command{{Op: command.OpNoop}}}).AppendTo(nil)})
	}
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, f)
	return n, n.open()
}

// What a crash can leave is put right before raft starts, and what it cannot
// have left is refused.
func TestReconcile(t *testing.T) {
	meta := func(index, term uint64) *raft.SnapshotMeta {
		return &raft.SnapshotMeta{Index: index, Term: term, ConfigurationIndex: 1}
	}
	for _, c := range []struct {
		name        string
		logs        []*raft.Log
		snap        *raft.SnapshotMeta
		applied     uint64
		lostTerms   uint64 // the term is 9 less these
		err         error
		first, last uint64
	}{
		{name: "log ends below the snapshot", logs: entries(2, 1, 20), snap: meta(26, 3), applied: 30},
		{name: "another term at the snapshot", logs: entries(2, 1, 40), snap: meta(26, 3), applied: 26},
		{name: "same term at the snapshot", logs: entries(3, 10, 40), snap: meta(26, 3), applied: 26, first: 10, last: 40},
		{name: "log ends at the snapshot", logs: entries(3, 10, 26), snap: meta(26, 3), applied: 26, first: 10, last: 26},
		{name: "log follows the snapshot", logs: entries(2, 27, 40), snap: meta(26, 3), applied: 26, first: 27, last: 40},
		{name: "crash before the metadata", logs: entries(2, 1, 20), applied: 26, first: 1, last: 20},
		{name: "crash before the first metadata", applied: 26},
		{name: "gap", logs: entries(2, 28, 40), snap: meta(26, 3), applied: 26, err: ErrLogGap},
		{name: "no snapshot, log cut", logs: entries(2, 5, 40), applied: 40, err: ErrLogGap},
		{name: "state behind", logs: entries(2, 10, 40), snap: meta(26, 2), applied: 25, err: ErrStateBehind},
		{name: "log lost, no snapshot", applied: 26, lostTerms: 9, err: ErrLogLost},
		{name: "log lost", snap: meta(26, 3), applied: 26, lostTerms: 9, err: ErrLogLost},
		{name: "no log, an old term", snap: meta(26, 3), applied: 26, lostTerms: 7, err: ErrLogLost},
		{name: "no log, the snapshot's term", snap: meta(26, 3), applied: 26, lostTerms: 6},
		{name: "log of an old term", logs: entries(2, 1, 20), snap: meta(26, 3), applied: 26, lostTerms: 7, err: ErrLogLost},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, l := range c.logs {
				l.Type, l.Data = raft.LogNoop, nil
			}
			n, err := restartOver(t, 9-c.lostTerms, c.logs, c.snap, c.applied)
			if !errors.Is(err, c.err) {
				t.Fatalf("open: %v, want %v", err, c.err)
			}
			if err != nil {
				return
			}
			if first, last := indexes(t, n.store.logs); first != c.first || last != c.last {
				t.Errorf("log is %d to %d, want %d to %d", first, last, c.first, c.last)
			}
		})
	}
}

// A replica whose log and votes are gone must not come back under its name.
func TestLostLog(t *testing.T) { synctest.Test(t, testLostLog) }

func testLostLog(t *testing.T) {
	for _, first := range []bool{false, true} {
		c := newCluster(t, 1, nil)
		c.put("a", "b")
		n := c.nodes[0]
		n.stop()
		if err := os.Remove(filepath.Join(n.config().Dir, "raft.db")); err != nil {
			t.Fatal(err)
		}
		n.first = first
		if err := n.open(); !errors.Is(err, ErrLogLost) {
			t.Errorf("opened without its log (bootstrap %v): %v", first, err)
		}
	}
}

// The same when it had taken a snapshot, of a replica that its leader still
// knows: it would be given its entries again, and vote in terms that it has voted in.
func TestLostLogAfterSnapshot(t *testing.T) { synctest.Test(t, testLostLogAfterSnapshot) }

func testLostLogAfterSnapshot(t *testing.T) {
	c := newCluster(t, 3, frugal)
	c.fill("a", 60)
	f := c.followers()[0]
	until(t, "a snapshot", func() bool { return f.store.snaps.latest() != nil })
	f.stop()
	if err := os.Remove(filepath.Join(f.config().Dir, "raft.db")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := f.open(); !errors.Is(err, ErrLogLost) {
			t.Fatalf("opened without its log: %v", err)
		}
	}
}

// Bootstrapping goes on where a crash interrupted it.
func TestBootstrapAfterCrash(t *testing.T) { synctest.Test(t, testBootstrapAfterCrash) }

func testBootstrapAfterCrash(t *testing.T) {
	c := newCluster(t, 0, nil)
	n := c.addNode()
	dir := n.config().Dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	db, err := openBolt(filepath.Join(dir, "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.SetUint64([]byte(keyCurrentTerm), 1); err != nil {
		t.Fatal(err)
	}
	mustClose(t, db)
	n.start()
	c.put("a", "b")
}

// Snapshot metadata survives, and is refused when it is damaged or of another version.
func TestSnapshotMeta(t *testing.T) {
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	s, err := openSnapshots(dir, stopProcess, log)
	if err != nil {
		t.Fatal(err)
	}
	conf := raft.Configuration{Servers: []raft.Server{{ID: "a", Address: "A"}, {ID: "b", Address: "B", Suffrage: raft.Nonvoter}}}
	take := func(index uint64) error {
		k, err := s.Create(1, index, 4, conf, 3, nil)
		if err != nil {
			t.Fatal(err)
		}
		return k.Close()
	}
	if err := take(10); err != nil {
		t.Fatal(err)
	}
	if err := take(9); err == nil {
		t.Error("an older snapshot replaced a newer one")
	}
	again, err := openSnapshots(dir, stopProcess, log)
	if err != nil {
		t.Fatal(err)
	}
	m := again.latest()
	if m == nil || m.Index != 10 || m.Term != 4 || m.ConfigurationIndex != 3 || len(m.Configuration.Servers) != 2 ||
		m.Configuration.Servers[0] != conf.Servers[0] || m.Configuration.Servers[1] != conf.Servers[1] {
		t.Fatalf("metadata is %+v", m)
	}
	// What is written to is a received one. At or below what raft has applied, or
	// knows committed, it is refused, at its first byte or at its last.
	s.floor = func() uint64 { return 50 }
	k, err := s.Create(1, 50, 4, conf, 3, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Write([]byte("x")); !errors.Is(err, ErrStaleSnapshot) {
		t.Errorf("a late snapshot: %v", err)
	}
	if k, err = s.Create(1, 51, 4, conf, 3, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	s.floor = func() uint64 { return 51 }
	if err := k.Close(); !errors.Is(err, ErrStaleSnapshot) {
		t.Errorf("a snapshot that became late: %v", err)
	}
	if m := s.latest(); m.Index != 10 || s.incoming != nil {
		t.Errorf("a refused snapshot counts: %+v", m)
	}
	path := filepath.Join(dir, metaFile)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range data {
		bad := append([]byte{}, data...)
		bad[i] ^= 1
		if _, err := decodeMeta(bad); err == nil {
			t.Fatalf("byte %d is wrong and nobody noticed", i)
		}
	}
	const want = `{"version":1,"index":10,"term":4,"configuration_index":3,"servers":[{"id":"a","address":"A","suffrage":"voter"},{"id":"b","address":"B","suffrage":"nonvoter"}]}` + "\n0be72d19\n"
	if string(data) != want {
		t.Errorf("the file's bytes are\n%q, want\n%q", data, want)
	}
}
