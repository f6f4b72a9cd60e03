//go:build linux

package campaign

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/abacusdb/abacus/chaos/disk"
	"github.com/abacusdb/abacus/chaos/lan"
)

// kind is one way to break a cluster.
type kind struct {
	name string
	// least and most are for how long.
	least, most time.Duration
	// alone: nothing else is broken meanwhile. It takes away a node's data, and with more it could take a majority's; or it waits
	// for the cluster to be well.
	alone bool
	// outer: others may come in the middle of it, and it in the middle of none, for it ends only when the cluster is whole.
	outer bool
	// spare: it takes more nodes than a shard has replicas, or more than three.
	spare bool
	// root: it takes a network or a disk of our own.
	root bool
	// touches says what it breaks: two of the same at once would undo each other's work.
	touches what
	// bear breaks something. It returns with what is to be mended.
	bear func(*siege) (*fault, error)
}

// what a kind lays hands on.
type what int

const (
	processes what = 1 << iota
	links
	disks
	clocks
	leaders
)

// goesWith says whether another may come in the middle of one.
func (k kind) goesWith(o kind) bool {
	return !k.alone && !o.alone && !o.outer && k.touches&o.touches == 0
}

// fault is something broken.
type fault struct {
	// detail says what was done, to whom.
	detail string
	// nodes are those that it is done to.
	nodes []int
	// dead: one node is gone at once, and no other is touched. Each shard has a majority, and is to serve as soon.
	dead bool
	// mend ends it. nil: there is nothing to mend. Where it goes on after nothing is broken any more, it notes in healed when that
	// was: shards are to serve from then on.
	mend   func() error
	healed time.Time
	// bit says whether it had an effect, asked just before mend; nil: breaking is itself the proof. showed is the same, asked
	// after it, for what shows only then.
	bit, showed func() (bool, error)
}

// siege is what a kind works with.
type siege struct {
	ctx context.Context
	b   *bed
	rng *rand.Rand
}

// kinds are all there are. A new one is a line here and a function.
var kinds = []kind{
	{name: "kill one", least: 3 * time.Second, most: 8 * time.Second, touches: processes, bear: func(s *siege) (*fault, error) { return s.kill(1) }},
	{name: "kill a minority", least: 3 * time.Second, most: 8 * time.Second, touches: processes, bear: func(s *siege) (*fault, error) { return s.kill((s.b.nodes() - 1) / 2) }},
	{name: "kill a majority", least: 2 * time.Second, most: 5 * time.Second, touches: processes, bear: func(s *siege) (*fault, error) { return s.kill(s.b.nodes()/2 + 1) }},
	{name: "kill all", least: time.Second, most: 4 * time.Second, touches: processes, bear: func(s *siege) (*fault, error) { return s.kill(s.b.nodes()) }},
	{name: "restart one by one", alone: true, bear: (*siege).rollingRestart},
	{name: "pause", least: 100 * time.Millisecond, most: 15 * time.Second, touches: processes, bear: func(s *siege) (*fault, error) { return s.pause(1) }},
	{name: "pause a minority", least: 500 * time.Millisecond, most: 8 * time.Second, touches: processes, bear: func(s *siege) (*fault, error) { return s.pause((s.b.nodes() - 1) / 2) }},
	{name: "starve a processor", least: 5 * time.Second, most: 10 * time.Second, touches: processes, bear: (*siege).starve},
	{name: "split", least: 5 * time.Second, most: 10 * time.Second, touches: links, bear: (*siege).split},
	{name: "isolate a leader", least: 4 * time.Second, most: 10 * time.Second, touches: links, bear: (*siege).isolateLeader},
	{name: "deaf", root: true, least: 4 * time.Second, most: 10 * time.Second, touches: links, bear: func(s *siege) (*fault, error) { return s.oneWay(lan.Deaf, "hears nobody") }},
	{name: "mute", root: true, least: 4 * time.Second, most: 10 * time.Second, touches: links, bear: func(s *siege) (*fault, error) { return s.oneWay(lan.Mute, "is heard by nobody") }},
	{name: "ring", spare: true, least: 5 * time.Second, most: 10 * time.Second, touches: links, bear: (*siege).ring},
	{name: "bridge", least: 5 * time.Second, most: 10 * time.Second, touches: links, bear: (*siege).bridge},
	{name: "one link", least: 4 * time.Second, most: 10 * time.Second, touches: links, bear: (*siege).oneLink},
	{name: "flapping", least: 5 * time.Second, most: 8 * time.Second, touches: links, bear: (*siege).flap},
	{name: "loss", root: true, least: 5 * time.Second, most: 10 * time.Second, touches: links, bear: (*siege).lose},
	{name: "delay", least: 5 * time.Second, most: 10 * time.Second, touches: links | clocks, bear: (*siege).delay},
	{name: "late answers and then alone", root: true, least: 3 * time.Second, most: 6 * time.Second, touches: links | clocks, bear: (*siege).lateThenAlone},
	{name: "clock", least: 4 * time.Second, most: 10 * time.Second, touches: links | clocks, bear: (*siege).clock},
	{name: "transfers", least: 4 * time.Second, most: 8 * time.Second, touches: leaders, bear: (*siege).transfers},
	{name: "replicas on the move", spare: true, least: 6 * time.Second, most: 12 * time.Second, outer: true, bear: (*siege).moves},
	{name: "drained node", spare: true, least: 3 * time.Second, most: 6 * time.Second, outer: true, bear: (*siege).drain},
	{name: "node leaves and joins", spare: true, alone: true, bear: (*siege).leaveAndJoin},
	{name: "shard split", least: 6 * time.Second, most: 12 * time.Second, outer: true, bear: (*siege).splitShards},
	{name: "slots on the move", least: 6 * time.Second, most: 12 * time.Second, outer: true, bear: (*siege).slotsMove},
	{name: "power cut of one", root: true, least: time.Second, most: 5 * time.Second, touches: processes | disks, bear: func(s *siege) (*fault, error) { return s.powerCut(1) }},
	{name: "power cut of all", root: true, least: time.Second, most: 3 * time.Second, touches: processes | disks, bear: func(s *siege) (*fault, error) { return s.powerCut(s.b.nodes()) }},
	{name: "power cut of a leader and another paused", root: true, least: 3 * time.Second, most: 8 * time.Second, touches: processes | disks, bear: (*siege).powerCutAndPause},
	{name: "failing disk", root: true, least: 4 * time.Second, most: 8 * time.Second, touches: processes | disks, bear: (*siege).failingDisk},
	{name: "full disk", root: true, least: 4 * time.Second, most: 8 * time.Second, touches: processes | disks, bear: (*siege).fullDisk},
	{name: "hung disk", root: true, least: diskTimeout + 2*time.Second, most: 2 * diskTimeout, touches: processes | disks, bear: (*siege).hungDisk},
	{name: "damaged state", least: time.Second, most: 3 * time.Second, alone: true, bear: (*siege).damageState},
	{name: "damaged log", least: time.Second, most: 3 * time.Second, alone: true, bear: (*siege).damageLog},
	{name: "damaged snapshot", least: time.Second, most: 3 * time.Second, alone: true, bear: (*siege).damageSnapshot},
	{name: "wiped node", least: time.Second, most: 3 * time.Second, alone: true, bear: (*siege).wipe},
}

// choose returns the kinds of those names, all that there are for who is root, or is not, and for so many nodes, if there are none.
func choose(wanted []string, rootless, spare bool) ([]kind, error) {
	var list []kind
	if len(wanted) == 0 {
		return slices.DeleteFunc(slices.Clone(kinds), func(k kind) bool { return k.root && rootless || k.spare && !spare }), nil
	}
	for _, name := range wanted {
		i := slices.IndexFunc(kinds, func(k kind) bool { return k.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no fault %q; there are: %s", name, strings.Join(Kinds(), ", "))
		}
		if kinds[i].root && rootless {
			return nil, fmt.Errorf("the fault %q takes root", name)
		}
		if kinds[i].spare && !spare {
			return nil, fmt.Errorf("the fault %q takes more nodes than a shard has replicas", name)
		}
		list = append(list, kinds[i])
	}
	return list, nil
}

// Kinds are the names of all faults.
func Kinds() (list []string) {
	for _, k := range kinds {
		list = append(list, k.name)
	}
	return list
}

func find(name string) kind {
	return kinds[slices.IndexFunc(kinds, func(k kind) bool { return k.name == name })]
}

// some are n nodes by chance.
func (s *siege) some(n int) []int {
	list := s.order()[:n]
	slices.Sort(list)
	return list
}

// order is all nodes in random order.
func (s *siege) order() []int {
	list := s.rng.Perm(s.b.nodes())
	for i := range list {
		list[i]++
	}
	return list
}

// leader is a node that leads a shard, by chance if nobody says.
func (s *siege) leader() int {
	ctx, cancel := context.WithTimeout(s.ctx, 3*time.Second)
	defer cancel()
	shard := uint32(s.rng.IntN(s.b.c.Shards()))
	if n := s.b.c.Leader(ctx, shard); n != nil {
		return n.N
	}
	return s.some(1)[0]
}

func (s *siege) kill(n int) (*fault, error) {
	nodes := s.some(n)
	if n == 1 {
		nodes[0] = s.leader()
	}
	return &fault{detail: names(nodes), nodes: nodes, dead: n == 1, mend: func() error { return s.b.release(nodes...) }}, s.b.kill(nodes...)
}

func (s *siege) pause(n int) (*fault, error) {
	nodes := s.some(n)
	if n == 1 {
		nodes[0] = s.leader()
	}
	var errs []error
	for _, n := range nodes {
		errs = append(errs, s.b.node(n).Pause())
	}
	return &fault{
		detail: names(nodes), nodes: nodes,
		bit: func() (bool, error) {
			return !slices.ContainsFunc(nodes, func(n int) bool { return !s.b.node(n).Paused() }), nil
		},
		mend: func() error {
			var errs []error
			for _, n := range nodes {
				errs = append(errs, s.b.node(n).Resume())
			}
			return errors.Join(errs...)
		},
	}, errors.Join(errs...)
}

// starve lets a node have its processor for a tenth of the time.
func (s *siege) starve() (*fault, error) {
	n := s.some(1)[0]
	return s.during(fmt.Sprintf("n%d runs for 10 ms of every 100", n), func(ctx context.Context) (int, error) {
		turns := 0
		for ; ; turns++ {
			if err := s.b.node(n).Pause(); err != nil {
				return turns, err
			}
			more := wait(ctx, 90*time.Millisecond)
			if err := s.b.node(n).Resume(); err != nil {
				return turns, err
			}
			if !more || !wait(ctx, 10*time.Millisecond) {
				return turns + 1, nil
			}
		}
	})
}

// rollingRestart stops and starts one node after the other as an administrator would.
func (s *siege) rollingRestart() (*fault, error) {
	for _, n := range s.order() {
		s.b.hold(n)
		if err := s.b.node(n).Stop(20 * time.Second); err != nil {
			s.b.accuse("n%d was asked to stop: %v", n, err)
			if err := s.b.kill(n); err != nil {
				return nil, err
			}
		}
		if code := s.b.node(n).ExitCode(); code > 0 {
			s.b.accuse("n%d was asked to stop and ended with code %d: %s", n, code, lastWords(s.b.node(n).LogTail(50)))
		}
		if err := s.b.release(n); err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
		err := s.b.sound(ctx)
		cancel()
		if err != nil {
			s.b.accuse("after the restart of n%d: %v", n, err)
			break
		}
	}
	return &fault{detail: "each, when the one before serves again"}, nil
}

// during runs something until it is mended; it bit if it had a turn.
func (s *siege) during(detail string, run func(context.Context) (turns int, err error)) (*fault, error) {
	ctx, cancel := context.WithCancel(s.ctx)
	done := make(chan struct{})
	var turns int
	var err error
	go func() {
		defer close(done)
		turns, err = run(ctx)
	}()
	end := func() { cancel(); <-done }
	return &fault{
		detail: detail,
		bit:    func() (bool, error) { end(); return turns > 0, err },
		mend:   func() error { end(); return nil },
	}, nil
}

// wait waits, and says whether it waited to the end.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// cut cuts links; one of them must swallow something.
func (s *siege) cut(detail string, nodes []int, links []lan.Link) (*fault, error) {
	bit, err := s.swallow(links)
	if err != nil {
		return nil, err
	}
	return &fault{detail: detail, nodes: nodes, bit: bit, mend: func() error { return s.b.net.Heal(links...) }}, s.b.net.Cut(links...)
}

// swallow returns a function that says whether any of the links has swallowed something since.
func (s *siege) swallow(links []lan.Link) (func() (bool, error), error) {
	before, err := s.b.net.Dropped()
	return func() (bool, error) {
		after, err := s.b.net.Dropped()
		for _, l := range links {
			if after[l] > before[l] {
				return true, err
			}
		}
		return false, err
	}, err
}

func (s *siege) split() (*fault, error) {
	o := s.order()
	a, b := o[:len(o)/2], o[len(o)/2:]
	if s.rng.IntN(3) == 0 && len(o) > 3 { // into three, none of which may have a majority
		return s.cut(fmt.Sprintf("%s | %s | %s", names(a[:1]), names(a[1:]), names(b)), s.order(), lan.Split(a[:1], a[1:], b))
	}
	return s.cut(fmt.Sprintf("%s | %s", names(a), names(b)), a, lan.Split(a, b))
}

func (s *siege) isolateLeader() (*fault, error) {
	n := s.leader()
	f, err := s.cut(fmt.Sprintf("n%d", n), []int{n}, lan.Alone(n, s.b.nodes()))
	if f != nil {
		f.dead = true
	}
	return f, err
}

func (s *siege) oneWay(shape func(host, hosts int) []lan.Link, how string) (*fault, error) {
	n := s.leader()
	return s.cut(fmt.Sprintf("n%d %s", n, how), []int{n}, shape(n, s.b.nodes()))
}

func (s *siege) ring() (*fault, error) {
	o := s.order()
	return s.cut(names(o), o, lan.Ring(o, 1))
}

func (s *siege) bridge() (*fault, error) {
	o := s.order()
	return s.cut(names(o), o, lan.Bridge(o))
}

func (s *siege) oneLink() (*fault, error) {
	o := s.order()
	return s.cut(names(o[:2]), o[:2], lan.Both(o[0], o[1]))
}

// flap cuts the links of a node and heals them, again and again.
func (s *siege) flap() (*fault, error) {
	n := s.some(1)[0]
	links := lan.Alone(n, s.b.nodes())
	f, err := s.during(fmt.Sprintf("n%d", n), func(ctx context.Context) (turns int, err error) {
		for ctx.Err() == nil && err == nil {
			bit, err1 := s.swallow(links)
			err2 := s.b.net.Cut(links...)
			wait(ctx, time.Duration(50+s.rng.IntN(700))*time.Millisecond)
			felt, err3 := bit()
			err = errors.Join(err1, err2, err3, s.b.net.Heal(links...))
			if felt {
				turns++
			}
			wait(ctx, time.Duration(50+s.rng.IntN(500))*time.Millisecond)
		}
		return turns, err
	})
	if f != nil {
		f.nodes = []int{n}
	}
	return f, err
}

// lose has the links of a node, or all, drop packets by chance.
func (s *siege) lose() (*fault, error) {
	percent := lan.Losses[s.rng.IntN(len(lan.Losses))]
	n := s.some(1)[0]
	links, where := lan.Alone(n, s.b.nodes()), fmt.Sprintf("n%d", n)
	if s.rng.IntN(2) == 0 {
		links, where = nil, "all links"
		for n := 1; n <= s.b.nodes(); n++ {
			links = append(links, lan.Deaf(n, s.b.nodes())...)
		}
	}
	bit, err := s.swallow(links)
	if err != nil {
		return nil, err
	}
	return &fault{
		detail: fmt.Sprintf("%d %% on %s", percent, where), nodes: s.order(), bit: bit,
		mend: func() error { return s.b.net.Heal(links...) },
	}, s.b.net.Lose(percent, links...)
}

// transfers moves leaderships about.
func (s *siege) transfers() (*fault, error) {
	return s.during("of all shards", func(ctx context.Context) (moved int, err error) {
		for ctx.Err() == nil {
			shard := uint32(s.rng.IntN(s.b.c.Shards()))
			if s.b.moveLeader(ctx, shard, s.rng) == nil {
				moved++
			}
			wait(ctx, 50*time.Millisecond)
		}
		return moved, nil
	})
}

// powerCut cuts the power of nodes at one moment: what their disks had not synced is gone.
func (s *siege) powerCut(n int) (*fault, error) {
	nodes := s.some(n)
	if n == 1 {
		nodes[0] = s.leader()
	}
	return s.cutPower(nodes)
}

func (s *siege) cutPower(nodes []int) (*fault, error) {
	s.b.hold(nodes...)
	s.b.excuse(nodes...)
	var list []*disk.Disk
	for _, n := range nodes {
		list = append(list, s.b.disk(n))
		// Pages reach the disk in any order.
		if err := s.b.disk(n).Tear(.3, s.rng); err != nil {
			return nil, err
		}
	}
	if err := disk.Cut(list...); err != nil {
		return nil, err
	}
	if err := s.b.kill(nodes...); err != nil {
		return nil, err
	}
	var lost bool
	restore := sync.OnceValue(func() (err error) {
		lost, err = restoreAll(list, (*disk.Disk).Restore)
		return err
	})
	return &fault{
		detail: names(nodes), nodes: nodes, dead: len(nodes) == 1,
		bit: func() (bool, error) { err := restore(); return lost, err },
		mend: func() error {
			if err := restore(); err != nil {
				return err // there is nothing to start on
			}
			s.b.excuseUntil(time.Now(), nodes...) // its disk is well again
			return s.b.release(nodes...)
		},
	}, nil
}

// restoreAll gives the power back. It says whether all have lost what was not synced: a disk that has not met no power cut.
func restoreAll[D any](list []D, restore func(D) (lost bool, err error)) (lost bool, err error) {
	var errs []error
	lost = true
	for _, d := range list {
		one, err := restore(d)
		lost = lost && one
		errs = append(errs, err)
	}
	return lost, errors.Join(errs...)
}

// powerCutAndPause: the one that has newly joined a majority forgets, while another that would know sleeps.
func (s *siege) powerCutAndPause() (*fault, error) {
	one := s.leader()
	other := s.some(1)[0]
	for other == one {
		other = s.some(1)[0]
	}
	if err := s.b.node(other).Pause(); err != nil {
		return nil, err
	}
	f, err := s.cutPower([]int{one})
	if err != nil {
		return nil, errors.Join(err, s.b.node(other).Resume())
	}
	mend := f.mend
	f.dead = false
	f.detail, f.nodes = fmt.Sprintf("n%d, n%d is paused", one, other), []int{one, other}
	// The one whose power went comes back first.
	f.mend = func() error {
		err := mend()
		f.healed = time.Now() // of three replicas two are there
		wait(s.ctx, 2*time.Second)
		return errors.Join(err, s.b.node(other).Resume())
	}
	return f, nil
}
