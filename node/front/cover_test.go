package front

import (
	"context"
	"fmt"
	"github.com/abacusdb/abacus/sharding/access"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// Slots change hands under what reads many of them. A mover goes through what a move does, one step at a time and at
// the worst of times: no shard owns the slots, the receiver does, and only then do the nodes hear of it.

type mover struct {
	cl   *cluster
	rnd  *rand.Rand
	to   sharding.ShardID
	from sharding.SlotRange // on their way, if step > 0
	step int
}

// newMover makes every slot's owner a state of its own.
func newMover(cl *cluster, seed uint64) *mover {
	m := &mover{cl: cl, rnd: rand.New(rand.NewPCG(seed, 3))}
	cl.owners = make([]sharding.ShardID, sharding.Slots)
	for slot := range cl.owners {
		cl.owners[slot] = cl.router.ShardOf(sharding.Slot(slot))
	}
	return m
}

// next takes one step. The cluster's lock is held.
func (m *mover) next() {
	switch m.step {
	case 0:
		m.from.From = sharding.Slot(m.rnd.IntN(sharding.Slots))
		m.from.To = min(m.from.From+sharding.Slot(m.rnd.IntN(3000)), sharding.Slots-1)
		m.to = sharding.ShardID(m.rnd.IntN(len(m.cl.router.Map().Shards)))
		m.set(sharding.NoShard)
	case 1:
		m.set(m.to)
	case 2:
		m.cl.router = sharding.NewRouter(mapOf(m.cl.router.Map(), m.cl.owners))
	}
	m.step = (m.step + 1) % 3
}

func (m *mover) set(owner sharding.ShardID) {
	for slot := int(m.from.From); slot <= int(m.from.To); slot++ {
		m.cl.owners[slot] = owner
	}
}

// mapOf is a map of who owns what; what nobody owns stays where it was.
func mapOf(m sharding.Map, owners []sharding.ShardID) sharding.Map {
	was := sharding.NewRouter(m)
	m = m.Clone()
	m.Epoch++
	for i := range m.Shards {
		m.Shards[i].Slots = nil
	}
	for slot, owner := range owners {
		if owner == sharding.NoShard {
			owner = was.ShardOf(sharding.Slot(slot))
		}
		s := &m.Shards[owner]
		if last := len(s.Slots) - 1; last >= 0 && int(s.Slots[last].To)+1 == slot {
			s.Slots[last].To++
		} else {
			s.Slots = append(s.Slots, sharding.SlotRange{From: uint16(slot), To: uint16(slot)})
		}
	}
	return m
}

func (cl *cluster) conn(node string) *conn {
	return &conn{srv: &Server{backend: cl.node(node), cfg: Config{Mode: ModeForward}}, auth: authed{grant: access.Everyone}}
}

// scanAll goes through the whole key space, a page at a time.
func scanAll(t *testing.T, c *conn, count int, between func()) map[string]bool {
	t.Helper()
	seen, cursor := map[string]bool{}, uint64(0)
	for range 5000 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		keys, next, err := c.scanPage(ctx, cursor, count, "")
		cancel()
		if err != nil {
			t.Fatalf("SCAN %d: %v", cursor, err)
		}
		for _, k := range keys {
			seen[string(k)] = true
		}
		if next == 0 {
			return seen
		}
		if next <= cursor {
			t.Fatalf("SCAN went from %d to %d", cursor, next)
		}
		cursor = next
		between()
	}
	t.Fatal("the scan does not end")
	return nil
}

// Whatever changes hands between two pages, and between the choice of a shard and its view: a key that stays is found.
func TestScanWhileSlotsMove(t *testing.T) {
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			cl := newCluster(t, 3, 5)
			for i := range 300 {
				cl.keys[fmt.Sprintf("k%d", i)] = entry{value: []byte("x")}
			}
			m := newMover(cl, seed)
			moves := func() {
				for range m.rnd.IntN(4) {
					m.next()
				}
			}
			cl.onRead = moves
			seen := scanAll(t, cl.conn("n1"), 1+int(seed%20), func() { cl.mu.Lock(); moves(); cl.mu.Unlock() })
			for k := range cl.keys {
				if !seen[k] {
					t.Errorf("seed %d: %s of slot %d is missing", seed, k, sharding.SlotOf([]byte(k)))
				}
			}
		})
	}
}

// A count is of each slot once, whatever changes hands meanwhile.
func TestCountWhileSlotsMove(t *testing.T) {
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			cl := newCluster(t, 3, 5)
			for i := range 300 {
				cl.keys[fmt.Sprintf("k%d", i)] = entry{value: []byte("x")}
			}
			m := newMover(cl, seed)
			steps := 30
			cl.onRead = func() { // for a while, or no count would be one
				if steps--; steps > 0 && m.rnd.IntN(2) == 0 || m.step > 0 {
					m.next()
				}
			}
			c := cl.conn("n1")
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			var n int64
			err := c.settled(ctx, func(router *sharding.Router, how Reading) (err error) {
				n, err = c.count(ctx, router.Map(), how)
				return err
			})
			if err != nil || n != 300 {
				t.Errorf("seed %d: %d keys, %v", seed, n, err)
			}
		})
	}
}

// Slots that nobody owns for good: what asks for them ends at its deadline, says why, and that it may be tried again.
func TestSlotsThatNobodyOwns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cl := newCluster(t, 3, 5)
		m := newMover(cl, 1)
		m.from = sharding.SlotRange{From: 0, To: 10}
		m.set(sharding.NoShard)
		c := cl.conn("n1")
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		_, _, err := c.scanPage(ctx, 0, 10, "")
		if transport.CodeOf(err) != transport.CodeSlotsMoved || time.Since(start) != 3*time.Second || !strings.HasPrefix(errorText(err, false), "TRYAGAIN nothing was done: slots moved: ") {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
		if _, err := c.count(t.Context(), cl.router.Map(), Reading{}); transport.CodeOf(err) != transport.CodeSlotsMoved {
			t.Errorf("count: %v", err)
		}
	})
}

// Shards of several runs, and without any, in everything that shows or reads them.
func TestShardsOfSeveralRunsAndNone(t *testing.T) {
	cl := newCluster(t, 3, 4)
	for i := range 300 {
		cl.keys[fmt.Sprintf("k%d", i)] = entry{value: []byte("x")}
	}
	owners := make([]sharding.ShardID, sharding.Slots)
	for slot := range owners { // shard 0 has none, and 1, 2 and 3 take turns
		owners[slot] = sharding.ShardID(1 + slot/1000%3)
	}
	m := mapOf(cl.router.Map(), owners)
	m.Shards[0].Replicas = m.Shards[0].Replicas[:1] // as while it is being founded
	cl.router = sharding.NewRouter(m)
	if seen := scanAll(t, cl.conn("n1"), 7, func() {}); len(seen) != 300 {
		t.Errorf("SCAN: %d keys", len(seen))
	}
	_, addr := serve(t, Config{}, cl.node("n1"))
	c := dial(t, addr)
	c.want([]string{"DBSIZE", "WAIT 0 0", "RANDOMKEY"}, []string{"300", "1", "k..."})
	if got := c.do("CLUSTER SLOTS")[0]; strings.Count(got, "10.0.0.1") < 17 || !strings.HasPrefix(got, "[[0 999 [") {
		t.Errorf("CLUSTER SLOTS: %s", got)
	}
	if got := c.do("CLUSTER INFO")[0]; !strings.Contains(got, "cluster_state:ok") || !strings.Contains(got, "cluster_size:3") {
		t.Errorf("CLUSTER INFO: %s", got)
	}
	// On the cluster ports together, each key once.
	seen := map[string]bool{}
	for _, node := range []string{"n1", "n2", "n3"} {
		c := cl.conn(node)
		c.srv.cfg.Mode = ModeCluster
		for k := range scanAll(t, c, 7, func() {}) {
			if seen[k] {
				t.Errorf("%s on two nodes", k)
			}
			seen[k] = true
		}
	}
	if len(seen) != 300 {
		t.Errorf("%d keys on the cluster ports", len(seen))
	}
	// All empty but one: nothing is found, and that is the truth.
	cl.mu.Lock()
	clear(cl.keys)
	cl.mu.Unlock()
	c.want([]string{"RANDOMKEY", "DBSIZE"}, []string{"(nil)", "0"})
}
