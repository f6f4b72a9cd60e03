package sim

import (
	"fmt"
	"strings"
	"time"

	"github.com/abacusdb/abacus/store"
)

// Options say what a scenario is. Zero counts are chosen by the seed.
type Options struct {
	// Nodes (3 to 5), Shards (4 to 6) and Replicas per shard (3 to Nodes).
	Nodes, Shards, Replicas int
	// Duration is how long clients work and things break, in virtual time. Default 45 s.
	Duration time.Duration
	// Clients work at once, default 8. Each waits up to Think between two groups of
	// commands, default 40 ms.
	Clients int
	Think   time.Duration
	// Snapshots says when logs are cut. Default: every 40 entries, with 16 left.
	Snapshots store.Snapshots
	// CheckpointBytes gather in memory before a state is written beside a snapshot.
	// Default: 256 bytes to 16 KiB.
	CheckpointBytes int64
	Faults          Faults
}

// Faults are the mean times between two faults of a kind; negative: never.
type Faults struct {
	// Crash stops one node, several, or all, and restarts them. Default 1.1 s.
	Crash time.Duration
	// Cut cuts links: one way, both ways, one link, around one node, or into two
	// halves. Default 350 ms.
	Cut time.Duration
	// Late makes a leader's acknowledgements late before it is cut off, so that it leads
	// on beside its successor. Default 6 s.
	Late time.Duration
	// Slow delays links, loses messages, pauses a node (its messages wait) or slows
	// a disk, up to one that hangs. Default 2 s.
	Slow time.Duration
	// Move transfers leaderships. Default 3 s.
	Move time.Duration
	// Members changes the shard map: a replica more, or one fewer. Default 3 s.
	Members time.Duration
	// Wishes is what an administrator asks for: drain a node, cordon it, use it again, move a replica, pause that or take it
	// back, rebalance. Default 1.5 s.
	Wishes time.Duration
	// Slots is what is asked for of slots: split a shard, move them, pause that or take it back. Default 700 ms.
	Slots time.Duration
	// Look is no fault: whether two shards serve one slot is looked at so often. Default 500 ms.
	Look time.Duration
}

func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

func (o Options) withDefaults(seed uint64) Options {
	rng := newRand(seed, "options")
	nodes, shards, all := 3+rng.IntN(3), 4+rng.IntN(3), rng.IntN(3) == 0
	orDefault(&o.CheckpointBytes, 1<<(8+rng.IntN(7)))
	orDefault(&o.Nodes, nodes)
	orDefault(&o.Shards, shards)
	if o.Replicas == 0 {
		o.Replicas = 3
		if all {
			o.Replicas = o.Nodes
		}
	}
	orDefault(&o.Duration, 45*time.Second)
	orDefault(&o.Clients, 8)
	orDefault(&o.Think, 40*time.Millisecond)
	orDefault(&o.Snapshots.Entries, 40)
	orDefault(&o.Snapshots.Trailing, store.MinTrailing)
	orDefault(&o.Snapshots.Interval, 200*time.Millisecond)
	f := &o.Faults
	orDefault(&f.Crash, 1100*time.Millisecond)
	orDefault(&f.Cut, 350*time.Millisecond)
	orDefault(&f.Late, 6*time.Second)
	orDefault(&f.Slow, 2*time.Second)
	orDefault(&f.Move, 3*time.Second)
	orDefault(&f.Members, 3*time.Second)
	orDefault(&f.Wishes, 1500*time.Millisecond)
	orDefault(&f.Slots, 700*time.Millisecond)
	orDefault(&f.Look, 500*time.Millisecond)
	return o
}

// Report is what a scenario did. The zero Report is the sum of none.
type Report struct {
	Scenarios int
	Simulated time.Duration // virtual
	Wall      time.Duration // of the bubble and of the checkers

	OK, Failed, Uncertain int // commands: answered, certainly not carried out, unknown

	Crashes              int           // nodes stopped
	Cuts                 int           // that swallowed something
	IdleCuts             int           // that swallowed nothing
	Slow                 int           // delays, losses, pauses, slow disks
	Moves                int           // transfers of leadership asked for
	Members              int           // changes of the shard map
	Wishes               int           // of an administrator, taken down
	Moved                int           // replicas that have gone to another node
	SlotWishes           int           // of an administrator, about slots, taken down
	SlotMoves, SlotsStay int           // moves of slots that came to their end, and that were given up
	Splits               int           // shards that came by splits
	Freeze               time.Duration // longest, virtual, in which nobody served slots that moved
	Looks                int           // at who serves which slots, at half of the shards or more
	Cut, Lost            uint64        // messages swallowed by cuts, and by chance
	Installs             int           // snapshots that a replica took
	Snapshots            int           // logs cut
	Elections            int           // leaderships begun
	Keys                 int           // whose histories were judged
}

// Add adds another scenario's report.
func (r *Report) Add(o Report) {
	r.Scenarios += o.Scenarios
	r.Simulated += o.Simulated
	r.Wall += o.Wall
	r.OK += o.OK
	r.Failed += o.Failed
	r.Uncertain += o.Uncertain
	r.Crashes += o.Crashes
	r.Cuts += o.Cuts
	r.IdleCuts += o.IdleCuts
	r.Slow += o.Slow
	r.Moves += o.Moves
	r.Members += o.Members
	r.Wishes += o.Wishes
	r.Moved += o.Moved
	r.SlotWishes += o.SlotWishes
	r.SlotMoves += o.SlotMoves
	r.SlotsStay += o.SlotsStay
	r.Splits += o.Splits
	r.Freeze = max(r.Freeze, o.Freeze)
	r.Looks += o.Looks
	r.Lost += o.Lost
	r.Cut += o.Cut
	r.Installs += o.Installs
	r.Snapshots += o.Snapshots
	r.Elections += o.Elections
	r.Keys += o.Keys
}

func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "simulated %v in %v: ops %d ok %d failed %d uncertain; %d crashes, %d cuts (%d idle, %d swallowed), %d slow (%d lost), %d transfers, %d member changes, %d wishes, %d replicas moved; ",
		r.Simulated.Round(time.Second), r.Wall.Round(10*time.Millisecond), r.OK, r.Failed, r.Uncertain, r.Crashes, r.Cuts, r.IdleCuts, r.Cut, r.Slow, r.Lost, r.Moves, r.Members, r.Wishes, r.Moved)
	fmt.Fprintf(&b, "%d wishes of slots: %d moves ended, %d given up, %d splits, frozen %v at most, %d looks; ", r.SlotWishes, r.SlotMoves, r.SlotsStay, r.Splits, r.Freeze.Round(time.Millisecond), r.Looks)
	fmt.Fprintf(&b, "%d elections, %d snapshots, %d installs; %d keys checked", r.Elections, r.Snapshots, r.Installs, r.Keys)
	return b.String()
}

// floors says what a scenario of these options must at least have done: one that broke
// nothing has shown nothing. They are far below what is usual. Looks at who serves which slots
// have none: one counts only while half of the leaders can be asked, so that a scenario may
// have a single one, and it is all scenarios together that must have looked (TestSim).
func (o Options) floors(r Report) error {
	var faults []string
	want := func(what string, got int, every time.Duration, share float64) {
		if least := int(share * float64(o.Duration) / float64(every)); every > 0 && got < least {
			faults = append(faults, fmt.Sprintf("%d %s, want at least %d", got, what, least))
		}
	}
	want("crashes", r.Crashes, o.Faults.Crash, 0.3)
	want("cuts", r.Cuts, o.Faults.Cut, 0.15)
	want("wishes about slots", r.SlotWishes, o.Faults.Slots, 0.05)
	want("answered commands", r.OK, o.Think/time.Duration(o.Clients), 0.1)
	if all := r.OK + r.Failed + r.Uncertain; r.OK*10 < all*3 {
		faults = append(faults, fmt.Sprintf("%d of %d commands answered, want 30%%", r.OK, all))
	}
	if len(faults) > 0 {
		return fmt.Errorf("the scenario shows too little: %s", strings.Join(faults, "; "))
	}
	return nil
}
