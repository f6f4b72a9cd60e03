package store

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/transport"
)

// disks are the nodes' disks: checkpoints can be held, and they can be full.
type disks struct {
	mu   sync.Mutex
	held map[*node]chan struct{}
	full map[*node]*atomic.Bool
}

func newDisks() *disks {
	return &disks{held: map[*node]chan struct{}{}, full: map[*node]*atomic.Bool{}}
}

func (d *disks) wire(n *node, cfg *Config) {
	d.mu.Lock()
	defer d.mu.Unlock()
	full := new(atomic.Bool)
	d.full[n] = full
	cfg.DiskFull = full.Load
	cfg.OnCheckpoint = func() {
		d.mu.Lock()
		held := d.held[n]
		d.mu.Unlock()
		if held != nil {
			<-held
		}
	}
}

func (d *disks) hold(n *node) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held[n] = make(chan struct{})
}

func (d *disks) release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n, held := range d.held {
		close(held)
		delete(d.held, n)
	}
}

const testOverlay = 256 << 10

// With its own checkpoint held, or a voter's, a leader takes writes until the bound
// and not beyond: they wait, and are refused with certainty. Reads and system records go on, a new
// term opens, and so do writes once the checkpoint is written. A dead voter holds nobody up.
func TestOverlayIsBounded(t *testing.T) { synctest.Test(t, testOverlayIsBounded) }

func testOverlayIsBounded(t *testing.T) {
	d := newDisks()
	c := newCluster(t, 3, func(n *node, cfg *Config) {
		cfg.CheckpointBytes, cfg.MaxOverlayBytes, cfg.InitialMmapSize = testOverlay/4, testOverlay, 64<<20
		d.wire(n, cfg)
	})
	t.Cleanup(d.release) // before the nodes stop
	c.converge()
	value := strings.Repeat("x", 4<<10)
	n := 0
	// fill writes until a write is refused.
	fill := func(t *testing.T, held *node, bound int64) {
		t.Helper()
		for range 1000 {
			n++
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			l := c.waitLeader()
			_, _, err := l.store.Propose(ctx, []command.Command{set(fmt.Sprint(n), value)})
			cancel()
			if err == nil {
				continue
			}
			if transport.CodeOf(err) == transport.CodeNotLeader || transport.CodeOf(err) == transport.CodeUncertain && !l.store.Status().Held { // or the log's disk is slow
				continue
			}
			if transport.CodeOf(err) != transport.CodeTimeout {
				t.Fatalf("write %d: %v", n, err)
			}
			// What was in flight, and what it had not reported yet, is above the bound.
			if b := held.store.fsm.OverlayBytes(); b < bound || b > bound+testOverlay {
				t.Errorf("refused with %d bytes in memory, bound %d", b, bound)
			}
			if st := l.store.Status(); !st.Held || st.Holds == 0 {
				t.Errorf("status says %+v", st)
			}
			return
		}
		t.Fatal("nothing was refused")
	}
	goesOn := func(t *testing.T) {
		t.Helper()
		rec := command.Command{Op: command.OpRecordSet, Keys: [][]byte{key(fmt.Sprintf("r%d", n))}, Values: [][]byte{key("x")}}
		for what, cmd := range map[string]command.Command{"read": get("converge"), "record": rec} {
			c.onLeader(what, func(s *Store) error {
				_, _, err := s.Propose(bg(t), []command.Command{cmd})
				return err
			})
		}
	}

	func() { // the leader's
		l := c.waitLeader()
		d.hold(l)
		fill(t, l, testOverlay)
		goesOn(t)
		d.release()
		c.put("released", "1")
	}()
	c.converge()
	func() { // a follower's
		f := c.followers()[0]
		d.hold(f)
		fill(t, f, testOverlay)
		goesOn(t)
		// A term opens nevertheless, by this or by an election that came first.
		old := c.waitLeader()
		for _, other := range c.followers() {
			if other != f {
				c.onLeader("transfer", func(s *Store) error {
					if s != old.store {
						return nil
					}
					return s.TransferLeadership(bg(t), other.replica)
				})
			}
		}
		until(t, "another leader", func() bool { l := c.leader(); return l != nil && l != old })
		goesOn(t)
		// Dead, it holds nobody up.
		c.net.Isolate(f.id)
		c.put("without it", "1")
		c.net.Heal()
		d.release()
	}()
	c.converge()
	func() { // a learner's
		l := c.addNode()
		l.start()
		c.onLeader("add learner", func(s *Store) error { return s.AddLearner(bg(t), l.replica, l.id) })
		c.converge()
		d.hold(l)
		fill(t, l, learnersShare*testOverlay)
		goesOn(t)
		d.release()
		c.put("released", "2")
	}()
	c.converge()
}

// What adds data is refused before the log where there is no room: on the
// leader's disk, or on so many that no majority has any. The rest of a proposal goes
// on, in order, and all of it when there is room again.
func TestFullDisk(t *testing.T) { synctest.Test(t, testFullDisk) }

func testFullDisk(t *testing.T) {
	d := newDisks()
	c := newCluster(t, 3, d.wire)
	c.put("a", "1")
	c.put("b", "2")
	l := c.waitLeader()
	fs := c.followers()
	propose := func(cmds ...command.Command) []command.Result {
		t.Helper()
		res, _, err := l.store.Propose(bg(t), cmds)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	isFull := func(r command.Result) bool { return r.Kind == command.KindError && r.Code == command.CodeDiskFull }
	// reported waits until the leader has heard of the followers since.
	reported := func(full bool, of ...*node) {
		t.Helper()
		until(t, "the followers' reports", func() bool {
			for _, f := range of {
				if r, ok := l.store.inst.Load().peers.follower(f.store.self.replica, l.store.lead.Load().term); !ok || r.report.full != full {
					return false
				}
			}
			return true
		})
	}
	del := command.Command{Op: command.OpDel, Slot: 7, Keys: [][]byte{key("b")}}

	d.full[l].Store(true)
	last := l.store.Status().LastIndex
	if !isFull(propose(set("c", "3"))[0]) || !isFull(propose(command.Command{Op: command.OpIncr, Slot: 7, Keys: [][]byte{key("n")}, Int: 1})[0]) {
		t.Error("a write was taken")
	}
	if now := l.store.Status(); now.LastIndex != last || now.RefusedFull != 2 {
		t.Errorf("refused writes reached the log: %d entries, %d refused", now.LastIndex-last, now.RefusedFull)
	}
	res := propose(get("a"), set("a", "9"), del, get("b"), get("a"))
	if string(res[0].Bytes) != "1" || !isFull(res[1]) || res[2].Int != 1 || res[3].Kind != command.KindNil || string(res[4].Bytes) != "1" {
		t.Errorf("a pipeline answers %+v", res)
	}
	multi := command.Command{Op: command.OpMulti, Slot: 7, Values: [][]byte{command.AppendCommands(nil, []command.Command{get("a"), set("a", "9")}), command.AppendIndexes(nil, nil)}}
	if !isFull(propose(multi)[0]) {
		t.Error("a transaction that adds was taken")
	}
	d.full[l].Store(false)

	d.full[fs[0]].Store(true)
	reported(true, fs[0])
	if isFull(propose(set("d", "4"))[0]) {
		t.Error("one follower of two without room is one too many")
	}
	d.full[fs[1]].Store(true)
	reported(true, fs...)
	if !isFull(propose(set("e", "5"))[0]) {
		t.Error("the write would have to go to a full disk")
	}
	for _, f := range fs {
		d.full[f].Store(false)
	}
	reported(false, fs...)
	if isFull(propose(set("f", "6"))[0]) {
		t.Error("refused, though there is room again")
	}
}

// Light proposals are taken past the others, and the counts stay right.
func TestTakeLight(t *testing.T) {
	q := newQueue(newPacer())
	var light, heavy []*proposal
	for i := range 10 {
		w := newProposal([]command.Command{set("k", "v")})
		r := newProposal([]command.Command{get("k")})
		if w.light || !r.light {
			t.Fatal("which is light?")
		}
		for _, p := range []*proposal{w, r} {
			if err := q.push(p); err != nil {
				t.Fatal(err)
			}
		}
		heavy, light = append(heavy, w), append(light, r)
		if i == 4 && !q.forget(r) {
			t.Fatal("cannot forget")
		}
	}
	light = append(light[:4:4], light[5:]...)
	batch, cmds := q.take(3*light[0].size, true)
	if len(batch) != 3 || len(cmds) != 3 || batch[0] != light[0] {
		t.Fatalf("took %d", len(batch))
	}
	if batch, _ = q.take(1<<20, true); len(batch) != 6 || q.light != 0 {
		t.Fatalf("took %d, %d left", len(batch), q.light)
	}
	if batch, _ = q.take(1<<20, true); batch != nil {
		t.Fatal("took what is not light")
	}
	if batch, _ = q.take(1<<20, false); len(batch) != 10 || batch[0] != heavy[0] || q.live != 0 || q.bytes != 0 {
		t.Fatalf("took %d, left %d of %d bytes", len(batch), q.live, q.bytes)
	}
}
