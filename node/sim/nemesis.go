package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
	"github.com/abacusdb/abacus/transport"
)

// nemesis breaks things. Each kind of fault has a loop of its own, with its own
// random numbers, so that kinds overlap.
type nemesis struct {
	c    *cluster
	stop <-chan struct{}
	loop sync.WaitGroup

	mu     sync.Mutex
	report Report // its counts of faults
}

func (n *nemesis) run() {
	f := n.c.opt.Faults
	for _, k := range []struct {
		name  string
		every time.Duration
		fault func(rng *rand.Rand)
	}{
		{"crash", f.Crash, n.crash}, {"cut", f.Cut, n.cut}, {"late", f.Late, n.late}, {"slow", f.Slow, n.slow}, {"move", f.Move, n.move}, {"members", f.Members, n.members}, {"wishes", f.Wishes, n.wish}, {"slots", f.Slots, n.slots}, {"look", f.Look, n.look},
	} {
		if k.every < 0 {
			continue
		}
		rng := newRand(n.c.seed, "nemesis "+k.name)
		n.loop.Go(func() {
			for n.sleep(between(rng, k.every/2, k.every*3/2)) {
				k.fault(rng)
			}
		})
	}
}

// count changes the report.
func (n *nemesis) count(f func(r *Report)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(&n.report)
}

// sleep returns false if everything ends; a fault under way is then undone.
func (n *nemesis) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-n.stop:
		return false
	case <-t.C:
		return true
	}
}

func between(rng *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(rng.Int64N(int64(high-low)+1))
}

// some picks k different ones.
func some[T any](rng *rand.Rand, list []T, k int) []T {
	list = slices.Clone(list)
	rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list[:min(k, len(list))]
}

// shard is one that there is, by chance.
func (n *nemesis) shard(rng *rand.Rand) sharding.ShardID {
	list := n.c.newest().Shards
	if len(list) == 0 { // nobody is up
		return 0
	}
	return list[rng.IntN(len(list))].ID
}

// crash stops one node, several, or all at one instant. Each comes back after a
// time of its own; the loop goes on meanwhile.
func (n *nemesis) crash(rng *rand.Rand) {
	up := n.c.up()
	k := 1
	switch p := rng.IntN(20); {
	case p == 0:
		k = len(up)
	case p < 4:
		k = 2
	}
	victims := some(rng, up, k)
	if len(victims) == 0 {
		return
	}
	if err := n.c.crash(victims); err != nil {
		n.c.fault("%w", err)
		return
	}
	n.count(func(r *Report) { r.Crashes += len(victims) })
	for _, m := range victims {
		down := between(rng, 10*time.Millisecond, 1200*time.Millisecond)
		n.loop.Go(func() {
			n.sleep(down)
			if err := m.start(); err != nil {
				n.c.fault("%w", err)
			}
		})
	}
}

// cut cuts some links and heals them again.
func (n *nemesis) cut(rng *rand.Rand) {
	ids := make([]string, 0, len(n.c.members))
	for _, m := range n.c.members {
		ids = append(ids, m.id)
	}
	ids = some(rng, ids, len(ids))
	if l, _ := n.c.leader(n.shard(rng)); l != nil && rng.IntN(2) == 0 {
		i := slices.Index(ids, l.id) // a leader sees most of what may go wrong
		ids[0], ids[i] = ids[i], ids[0]
	}
	var links [][2]string
	half := 1 // isolates a node
	switch rng.IntN(5) {
	case 0: // one link, or one way of it
		links = append(links, [2]string{ids[0], ids[1]})
		half = 0
	case 1:
		half = len(ids) / 2
	}
	for _, a := range ids[:half] {
		for _, b := range ids[half:] {
			links = append(links, [2]string{a, b})
		}
	}
	way := rng.IntN(4) // 0: only what comes back, 1: only what goes out, else both
	before := n.c.net.Swallowed().Cut
	for _, l := range links {
		if way != 0 {
			n.c.net.Cut(l[0], l[1])
		}
		if way != 1 {
			n.c.net.Cut(l[1], l[0])
		}
	}
	n.sleep(between(rng, 100*time.Millisecond, 1200*time.Millisecond))
	for _, l := range links {
		n.c.net.HealLink(l[0], l[1])
		n.c.net.HealLink(l[1], l[0])
	}
	n.counted(n.c.net.Swallowed().Cut > before)
}

// late makes a node's answers later and later, slowly enough for its leases to be
// renewed all the while, and then cuts what it sends. For about as long as the answers were late
// it goes on to lead, though the others have heard nothing of it and elect
// another: whatever it then reads from its own state is old.
func (n *nemesis) late(rng *rand.Rand) {
	net := n.c.net
	l, _ := n.c.leader(n.shard(rng))
	if l == nil {
		return
	}
	leader := l.id
	each := func(f func(other string)) {
		for _, m := range n.c.members {
			if m.id != leader {
				f(m.id)
			}
		}
	}
	const step = 100 * time.Millisecond
	for i := range 3 + rng.IntN(8) {
		each(func(other string) { net.Delay(other, leader, time.Duration(i+1)*step) })
		if !n.sleep(step) {
			break
		}
	}
	before := net.Swallowed().Cut
	each(func(other string) { net.Cut(leader, other) })
	n.sleep(between(rng, 500*time.Millisecond, 1500*time.Millisecond))
	each(func(other string) { net.HealLink(leader, other); net.Delay(other, leader, baseDelay) })
	n.counted(net.Swallowed().Cut > before)
}

// counted counts a cut that swallowed something, or not.
func (n *nemesis) counted(bit bool) {
	n.count(func(r *Report) {
		if bit {
			r.Cuts++
		} else {
			r.IdleCuts++
		}
	})
}

// slow makes something late for a while.
func (n *nemesis) slow(rng *rand.Rand) {
	net := n.c.net
	m := n.c.members[rng.IntN(len(n.c.members))]
	other := n.c.members[rng.IntN(len(n.c.members))]
	for other == m {
		other = n.c.members[rng.IntN(len(n.c.members))]
	}
	n.count(func(r *Report) { r.Slow++ })
	last := between(rng, 200*time.Millisecond, 2*time.Second)
	switch rng.IntN(5) {
	case 0: // a link
		net.Delay(m.id, other.id, between(rng, 5*time.Millisecond, 900*time.Millisecond))
		n.sleep(last)
		net.Delay(m.id, other.id, baseDelay)
	case 1: // a node's messages, both ways: as if it was paused
		d := between(rng, 300*time.Millisecond, 2500*time.Millisecond)
		net.Delay(m.id, "", d)
		net.Delay("", m.id, d)
		n.sleep(last)
		net.Delay(m.id, "", baseDelay)
		net.Delay("", m.id, baseDelay)
	case 2: // everything, at random: what is sent first arrives last
		net.Jitter("", "", between(rng, 10*time.Millisecond, 300*time.Millisecond))
		n.sleep(last)
		net.Jitter("", "", baseJitter)
	case 3:
		net.Lose("", "", 0.01+0.25*rng.Float64())
		n.sleep(last)
		net.Lose("", "", 0)
	case 4: // a disk, up to one that hangs longer than a leader may
		l := m.life.Load()
		if l == nil {
			return
		}
		d := between(rng, 5*time.Millisecond, 200*time.Millisecond)
		if rng.IntN(4) == 0 {
			d = between(rng, timing.Stuck/2, timing.Stuck*2)
		}
		l.disk.slow.Store(int64(d))
		n.sleep(last)
		l.disk.slow.Store(0)
	}
}

// move hands a leadership to another voter.
func (n *nemesis) move(rng *rand.Rand) {
	shard := n.shard(rng)
	l, st := n.c.leader(shard)
	if st == nil {
		return
	}
	members := st.Status().Members
	if len(members) == 0 {
		return
	}
	to := members[rng.IntN(len(members))]
	ctx, cancel := context.WithTimeout(l.ctx, 2*time.Second)
	defer cancel()
	n.count(func(r *Report) { r.Moves++ })
	_ = st.TransferLeadership(ctx, to.Replica) // refused, more often than not
}

// mapRecord is the name of the shard map among shard 0's records.
const mapRecord = "map"

// members changes the map: a shard gets a replica more, or one fewer. The nodes do
// the rest. A node that gets a replica back gets one with another id.
func (n *nemesis) members(rng *rand.Rand) {
	l, st := n.c.leader(0)
	for range 20 {
		if st != nil || !n.sleep(100*time.Millisecond) {
			break
		}
		l, st = n.c.leader(0)
	}
	if st == nil {
		return
	}
	m, rev, err := readMap(st)
	if err != nil {
		return
	}
	next := m.Clone()
	next.Epoch++
	sh := &next.Shards[rng.IntN(len(next.Shards))]
	if sh.Move != nil || sh.Founding != "" { // nobody may join who founds it
		return
	}
	var free []sharding.NodeID
	for _, nd := range next.Nodes {
		if _, has := sh.On(nd.ID); !has {
			free = append(free, nd.ID)
		}
	}
	grow := len(free) > 0 && (len(sh.Replicas) < n.c.opt.Replicas || len(sh.Replicas) == n.c.opt.Replicas && rng.IntN(2) == 0)
	if grow {
		to := free[rng.IntN(len(free))]
		sh.Replicas = append(sh.Replicas, sharding.Replica{ID: to + "." + strconv.Itoa(int(next.Epoch)), Node: to})
	} else {
		i := rng.IntN(len(sh.Replicas))
		sh.Replicas = slices.Delete(sh.Replicas, i, i+1)
	}
	if err := sharding.ValidateTransition(m, next); err != nil {
		n.c.fault("change of the map: %w", err)
		return
	}
	ctx, cancel := context.WithTimeout(l.ctx, time.Second)
	defer cancel()
	cmd := command.Command{Op: command.OpRecordSet, Keys: [][]byte{[]byte(mapRecord)}, Values: [][]byte{next.Encode()}, Int: rev}
	res, err := l.node.Exec(ctx, 0, []command.Command{cmd})
	if err == nil && res[0].Kind != command.KindError {
		n.count(func(r *Report) { r.Members++ })
	}
}

// wish says something that an administrator might, to any node. What is refused is as good: most is, for what was said before.
func (n *nemesis) wish(rng *rand.Rand) {
	up := n.c.up()
	if len(up) == 0 {
		return
	}
	l := up[rng.IntN(len(up))].life.Load()
	if l == nil {
		return
	}
	one := func() string { return n.c.members[rng.IntN(len(n.c.members))].id }
	shard := fmt.Sprint(n.shard(rng))
	words := [][]string{
		{"node", "drain", one()}, {"node", "drain", one()}, {"node", "drain", one(), one()}, {"node", "cordon", one()},
		{"node", "uncordon", one()}, {"node", "uncordon", one()}, {"node", "uncordon", one()},
		{"shard", "move", shard, one(), one()}, {"shard", "move", shard, one(), one()}, {"shard", "move", shard, one(), one()},
		{"shard", "pause", shard}, {"shard", "resume", shard}, {"shard", "cancel", shard},
		{"rebalance", "once"}, {"rebalance", "always"}, {"rebalance", "stop"},
	}[rng.IntN(16)]
	n.say(l, words, func(r *Report) { r.Wishes++ })
}

// say has a node do what an administrator says. counts is for what it has taken; that it does not know the words is a fault.
func (n *nemesis) say(l *life, words []string, counts func(*Report)) {
	ctx, cancel := context.WithTimeout(l.ctx, 3*time.Second)
	defer cancel()
	_, err := l.node.Admin(ctx, words)
	switch code := transport.CodeOf(err); {
	case err == nil:
		n.count(counts)
	case code == transport.CodeBadRequest:
		n.c.fault("%v: %w", words, err)
	}
}

// readMap reads the map as a replica of shard 0 has it.
func readMap(st *store.Store) (m sharding.Map, revision int64, err error) {
	v, err := st.View()
	if err != nil {
		return m, 0, err
	}
	defer v.Close()
	raw, revision, ok := v.Record(mapRecord)
	if !ok {
		return m, 0, errors.New("there is no map yet")
	}
	m, err = sharding.DecodeMap(raw)
	return m, revision, err
}
