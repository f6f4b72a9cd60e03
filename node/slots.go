package node

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
)

// Slots move from one shard to another in steps that different nodes take, each of which may be taken again:
//
//	anybody                   asks for it in the map, with a new, empty shard if one is split
//	the new shard's founder   makes itself the first voter of a group; its leader notes that in the map (runSlots); it gets replicas as any other
//	the giver's leader        copies the slots and has the receiver own them (handover), changes their owner in the map, and gives them up
//	both shards' leaders      clear what they store of others' slots
//
// The logs decide who owns a slot; the map follows, and nodes ask by it. Whoever asks the wrong shard waits and asks again (follow).

const (
	// slotsEvery is how often a leader looks whether slots of its shard are to move.
	slotsEvery = 250 * time.Millisecond
	// slotsRetry is the wait after an attempt that failed, and after each further one twice as long, up to slotsRetryMost: it has cost both logs all
	// that it has copied. Slots that it has left frozen do not wait.
	slotsRetry     = 2 * time.Second
	slotsRetryMost = time.Minute
	// clearPause is left between two entries that clear, and clearMost is how long it goes on: nothing waits for it, and other work may.
	clearPause = 20 * time.Millisecond
	clearMost  = time.Second
	// followPoll is how soon who was refused for slots that move asks again; each time later, up to followMost.
	followPoll = 3 * time.Millisecond
	followMost = 25 * time.Millisecond
)

// runSlots does what the leader of a shard does for slots that move.
func (n *Node) runSlots(ctx context.Context, st *store.Store) {
	tick := time.NewTicker(slotsEvery)
	defer tick.Stop()
	wait := slotsRetry
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if n.stopping.Load() {
			continue
		}
		err := n.stepSlots(ctx, st)
		if err == nil {
			err = n.stepClear(ctx, st)
		}
		if err == nil || ctx.Err() != nil {
			wait = slotsRetry
			continue
		}
		n.log.Warn("move slots", "shard", st.Shard(), "err", err)
		if leaving, _ := st.Leaving(); leaving != 0 {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, slotsRetryMost)
	}
}

// stepSlots founds the shard, or makes an attempt to hand its slots over, or ends what is left of one.
func (n *Node) stepSlots(ctx context.Context, st *store.Store) error {
	m := n.Router().Map()
	sh, ok := m.Shard(st.Shard())
	if !ok {
		return nil
	}
	if sh.Founding != "" {
		return n.stepFounded(ctx, st)
	}
	leaving, _ := st.Leaving()
	if mv, there := m.SlotMove(leaving); leaving != 0 && !there {
		return n.stepLeft(ctx, st, leaving)
	} else if there && !mv.Cancelled { // whatever runs: nobody serves what is frozen
		return n.thawSlots(ctx, st, mv)
	}
	for _, mv := range m.RunningSlotMoves() {
		if mv.From != sh.ID {
			continue
		}
		if to, _ := m.Shard(mv.To); !mv.Cancelled && !n.settled(m, to) {
			continue // what is acknowledged there is not on enough disks yet
		}
		return n.moveSlots(ctx, st, mv)
	}
	return nil
}

// stepFounded notes that the shard has its group: from now on nobody makes another.
func (n *Node) stepFounded(ctx context.Context, st *store.Store) error {
	if _, ok := st.Init(); !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	_, err := n.changeMap(ctx, func(m sharding.Map) (sharding.Map, bool, error) {
		if sh, _ := m.Shard(st.Shard()); sh.Founding != st.Status().Replica {
			return m, false, nil // another has taken our place, and there is nothing in ours
		}
		return sharding.Founded(m, st.Shard())
	})
	return err
}

// moveSlots takes a move as far as it goes: to its end, or to an error, after which it is begun anew.
func (n *Node) moveSlots(ctx context.Context, st *store.Store, mv sharding.SlotMove) error {
	h, end := n.handover(st, mv)
	defer end()
	if mv.Cancelled {
		return n.cancelSlots(ctx, st, mv, h)
	}
	wanted, cancel := n.whileWanted(ctx, mv)
	defer cancel()
	err := h.run(ctx, wanted)
	switch {
	case err == nil:
		return n.finishSlots(ctx, st, mv, h)
	case ctx.Err() == nil && wanted.Err() != nil:
		n.log.Info("slot move left off", "move", mv.ID, "from", mv.From, "to", mv.To, "err", err)
		return nil
	}
	return n.learnFrom(ctx, err)
}

// thawSlots has slots that are frozen for a move that is not to go on now served again, here or by the receiver.
func (n *Node) thawSlots(ctx context.Context, st *store.Store, mv sharding.SlotMove) error {
	h, end := n.handover(st, mv)
	defer end()
	owned, err := h.begin(ctx)
	if owned {
		return n.finishSlots(ctx, st, mv, h)
	}
	return n.learnFrom(ctx, err)
}

// handover makes an attempt's driver, which people can look at until end is called.
func (n *Node) handover(st *store.Store, mv sharding.SlotMove) (h *handover, end func()) {
	h = &handover{
		move: mv.ID, slots: initSlots(mv.Slots), giver: st, pace: n.net.Pace,
		receive: func(ctx context.Context, cmds []command.Command) ([]command.Result, error) {
			return n.Exec(ctx, mv.To, cmds)
		},
		ready: func(ctx context.Context) error {
			// Between own and the new map nobody is served, so shard 0 has to be there.
			m, _, err := n.readMapNow(ctx)
			if _, there := m.SlotMove(mv.ID); err == nil && !there {
				err = errOutdated
			}
			return err
		},
	}
	h.say = n.handovers.begin(mv, h)
	return h, func() { n.handovers.end(mv) }
}

// learnFrom reads the map if an attempt has failed because that knows better.
func (n *Node) learnFrom(ctx context.Context, err error) error {
	if errors.Is(err, errOutdated) {
		_, _, err = n.readMapNow(ctx)
	}
	return err
}

// whileWanted is a context that ends when the map does not want the move to go on. Its goroutine ends with it.
func (n *Node) whileWanted(ctx context.Context, mv sharding.SlotMove) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		tick := time.NewTicker(slotsEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if now, ok := n.Router().Map().SlotMove(mv.ID); ok && (now.Paused || now.Cancelled) {
				cancel()
			}
		}
	}()
	return ctx, cancel
}

// finishSlots is for slots that the receiver owns: first the map, so that who waits is shown the way, then our log.
func (n *Node) finishSlots(ctx context.Context, st *store.Store, mv sharding.SlotMove, h *handover) error {
	h.say("finishing")
	if _, err := n.changeMap(ctx, func(m sharding.Map) (sharding.Map, bool, error) {
		return unlessOver(m)(sharding.FinishSlotMove(m, mv.ID))
	}); err != nil {
		return err
	}
	if leaving, _ := st.Leaving(); leaving != mv.ID && n.ownsAny(st, mv) {
		// A log that has lost its end, as recovery may leave it: they were frozen, or they would not be the receiver's.
		n.log.Warn("slots that are another shard's were not frozen", "move", mv.ID, "shard", mv.From)
		if err := h.propose(ctx, command.Command{Op: command.OpSlotsFreeze, Int: int64(mv.ID), TTL: math.MaxInt64, Values: [][]byte{command.AppendSlots(nil, h.slots)}}); err != nil {
			return err
		}
	}
	if err := h.propose(ctx, command.Command{Op: command.OpSlotsRelease, Int: int64(mv.ID)}); err != nil {
		return err
	}
	n.slotMoves.Inc()
	n.slotFreeze.Set(h.froze.Seconds())
	n.log.Info("slots moved", "move", mv.ID, "slots", slotText(mv.Slots), "from", mv.From, "to", mv.To, "bytes", h.sent.Load(), "frozen", h.froze)
	return nil
}

func (n *Node) cancelSlots(ctx context.Context, st *store.Store, mv sharding.SlotMove, h *handover) error {
	h.say("giving up")
	r, err := h.one(ctx, command.Command{Op: command.OpSlotsAbort, Int: int64(mv.ID)})
	switch {
	case err != nil:
		return err
	case r.Kind == command.KindInt && r.Int == 1: // too late
		return n.finishSlots(ctx, st, mv, h)
	case r.Kind != command.KindInt:
		_, _, err := n.readMapNow(ctx)
		return err
	}
	if err := h.propose(ctx, command.Command{Op: command.OpSlotsThaw, Int: int64(mv.ID), TTL: math.MaxInt64}); err != nil {
		return err
	}
	_, err = n.changeMap(ctx, func(m sharding.Map) (sharding.Map, bool, error) {
		return unlessOver(m)(sharding.AbortSlotMove(m, mv.ID))
	})
	if err == nil {
		n.log.Info("slots stay", "move", mv.ID, "slots", slotText(mv.Slots), "from", mv.From, "to", mv.To)
	}
	return err
}

// stepLeft is for slots that are frozen for a move which our map has not any more: it has ended, and the map as shard 0 has it says how.
func (n *Node) stepLeft(ctx context.Context, st *store.Store, move uint64) error {
	m, _, err := n.readMapNow(ctx)
	if err != nil {
		return err
	}
	if _, there := m.SlotMove(move); there || m.Epoch < n.Router().Map().Epoch { // shard 0 may have been recovered from an older state
		return nil
	}
	op := command.OpSlotsRelease
	_, slots := st.Leaving()
	if len(slots) > 0 && m.ShardOf(slots[0].From) == st.Shard() {
		op = command.OpSlotsThaw
	}
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	_, _, err = st.Propose(ctx, []command.Command{{Op: op, Int: int64(move), TTL: math.MaxInt64}})
	return err
}

// ownsAny says whether a shard's log has it own a move's slots.
func (n *Node) ownsAny(st *store.Store, mv sharding.SlotMove) bool {
	in, _ := st.Init()
	return slices.ContainsFunc(in.Slots, func(r command.SlotRange) bool {
		return r.From <= mv.Slots[0].From && mv.Slots[0].From <= r.To
	})
}

// readMapNow reads the map from shard 0 and takes it over.
func (n *Node) readMapNow(ctx context.Context) (sharding.Map, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	m, rev, err := n.readMap(ctx)
	if err == nil {
		n.offerMap(m)
	}
	return m, rev, err
}

// stepClear removes some of what is stored here of others' slots.
func (n *Node) stepClear(ctx context.Context, st *store.Store) error {
	for began := time.Now(); !st.Cleared() && ctx.Err() == nil && time.Since(began) < clearMost; {
		pctx, cancel := context.WithTimeout(ctx, stepTimeout)
		rs, _, err := st.Propose(pctx, []command.Command{{Op: command.OpSlotsClear, Int: partRows}})
		cancel()
		if err != nil {
			return err
		}
		if rs[0].Kind != command.KindInt || rs[0].Int == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(clearPause):
		}
	}
	return nil
}

// follow carries out what a shard has refused because the slots are another's, or will be in a moment: it waits and asks whoever owns
// them then, until ctx ends. All commands of one slot were refused together, for they were in one entry, so their order stays.
func (n *Node) follow(ctx context.Context, cmds []command.Command, results []command.Result, run func(context.Context, sharding.ShardID, []command.Command) ([]command.Result, error)) error {
	wait := followPoll
	tick := time.NewTimer(wait)
	defer tick.Stop()
	for {
		n.follows.Inc()
		select {
		case <-ctx.Done():
			return nil // what was refused says so
		case <-n.ctx.Done():
			return nil
		case <-tick.C:
			wait = min(wait+wait/2, followMost)
			tick.Reset(wait)
		}
		router := n.Router()
		waiting := false
		for shard, at := range n.refusedBy(router, cmds, results) {
			part := make([]command.Command, len(at))
			for i, j := range at {
				part[i] = cmds[j]
			}
			rs, err := run(ctx, shard, part)
			if err != nil {
				return err
			}
			for i, j := range at {
				results[j] = rs[i]
				waiting = waiting || elsewhere(rs[i].Code)
			}
		}
		if !waiting {
			return nil
		}
	}
}

// refusedBy are the commands that were refused for their slots, by who owns these now.
func (n *Node) refusedBy(router *sharding.Router, cmds []command.Command, results []command.Result) map[sharding.ShardID][]int {
	by := map[sharding.ShardID][]int{}
	for i := range results {
		if elsewhere(results[i].Code) {
			shard := router.ShardOf(cmds[i].Slot)
			by[shard] = append(by[shard], i)
		}
	}
	return by
}

// elsewhere says that a shard has not carried out a command because of its slot.
func elsewhere(c command.Code) bool {
	return c == command.CodeWrongShard || c == command.CodeSlotsMoving
}

func anyElsewhere(results []command.Result) bool {
	return slices.ContainsFunc(results, func(r command.Result) bool { return elsewhere(r.Code) })
}

// handovers are the attempts under way on this node, for people to look at.
type handovers struct {
	mu    sync.Mutex
	under map[uint64]*handoverStatus
}

// handoverStatus is how far an attempt is.
type handoverStatus struct {
	Move  uint64 `json:"move"`
	Phase string `json:"phase"`
	// Sent of about Total bytes of keys and values have gone.
	Sent  int64 `json:"sent"`
	Total int64 `json:"total"`

	h *handover
}

func (l *handovers) begin(mv sharding.SlotMove, h *handover) (say func(phase string)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.under == nil {
		l.under = map[uint64]*handoverStatus{}
	}
	s := &handoverStatus{Move: mv.ID, h: h}
	l.under[mv.ID] = s
	return func(phase string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		s.Phase = phase
	}
}

func (l *handovers) end(mv sharding.SlotMove) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.under, mv.ID)
}

// list is a copy, in order.
func (l *handovers) list() (list []handoverStatus) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.under {
		list = append(list, handoverStatus{Move: s.Move, Phase: s.Phase, Sent: s.h.sent.Load(), Total: s.h.total.Load()})
	}
	slices.SortFunc(list, func(a, b handoverStatus) int { return int(a.Move) - int(b.Move) })
	return list
}
