package node

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/fsm/command"
)

// handover is one attempt to hand slots over to another shard, on the node that leads the giver. Everything is served by the giver while
// it goes on, but for the moments between freeze and own:
//
//	expect   the receiver's log ends all earlier attempts; thaw takes back what one of them has frozen
//	copy     a view's rows, and then, round by round, what has changed since
//	freeze   nothing changes in the slots any more
//	rest     the last changes, and what numbered commands were answered, and own, in one proposal if they fit
//
// It may fail or end anywhere: whoever leads the giver next begins with expect, which tells it if the slots are the receiver's already.
// Order makes it safe: thaw comes after an expect that was not answered "owned", and expect is the end of the attempt that had frozen.
type handover struct {
	move  uint64
	slots []command.SlotRange

	giver giver
	// receive runs commands in the receiver's log, wherever that is led. All of them may be repeated.
	receive func(ctx context.Context, cmds []command.Command) ([]command.Result, error)
	// pace waits until so many bytes may be copied.
	pace func(ctx context.Context, bytes int) error
	say  func(phase string)
	// ready says whether the slots may be frozen now: all that it takes afterwards is there.
	ready func(ctx context.Context) error

	token, parts int64
	sent, total  atomic.Int64 // bytes
	// froze is how long nobody served the slots, of an attempt that succeeded.
	froze time.Duration

	clockAt time.Time // when the giver's clock was moved last
}

// giver is the shard that the slots leave, on its leader: a *store.Store.
type giver interface {
	Propose(ctx context.Context, cmds []command.Command) ([]command.Result, uint64, error)
	Capture(slots []command.SlotRange) (*fsm.Capture, error)
	SlotAnswers(slots []command.SlotRange, partBytes int) [][]byte
	Leaving() (move uint64, slots []command.SlotRange)
	Clock() int64
}

const (
	// freezeMost is how long the slots may be frozen before the attempt is given up: a client that waits should not notice.
	freezeMost = 400 * time.Millisecond
	// restMost is what may be left to copy when the slots are frozen, in bytes: one entry of the receiver's log.
	restMost = 64 << 10
	// copyRounds bounds how often what has changed is copied to get there. After as many, freezeBytes will do: what is more could not
	// be brought in freezeMost, and each attempt to do so would be an outage.
	copyRounds  = 20
	freezeBytes = 1 << 20
	// viewMost is how long one view is read: the file cannot use the pages that it keeps again. Then another goes on where it was.
	viewMost = 20 * time.Second
	// partBytes and partRows are how much goes into one entry of the receiver's log: it has others to serve.
	partBytes = 128 << 10
	partRows  = 512
	// stepTimeout bounds one proposal, loadTries how often a part is proposed.
	stepTimeout = 5 * time.Second
	loadTries   = 6
	// clockAge is how old the giver's clock may be when a time to live is counted from it: so much longer may a key live.
	clockAge = 100 * time.Millisecond
)

var (
	// errOutdated: the receiver's log knows more of the move than we do. The map does, or will.
	errOutdated = errors.New("the receiver has seen the end of this move, or a newer one")
	// errNotReceived: an attempt was ended by another.
	errNotReceived = errors.New("another attempt has begun")
	// errTooBusy: more is written to the slots than can be copied beside it.
	errTooBusy = errors.New("the slots change faster than they are copied")
)

// run makes an attempt. nil: the slots are the receiver's, and frozen here. wanted ends when the move is not wanted for now: it is left off then,
// unless the slots are frozen, which ctx alone ends.
func (h *handover) run(ctx, wanted context.Context) error {
	owned, err := h.begin(ctx)
	if owned || err != nil {
		return err
	}
	capture, err := h.giver.Capture(h.slots)
	if err != nil {
		return err
	}
	defer capture.Close()
	h.say("copying")
	if err := h.copyAll(wanted, capture); err != nil {
		return err
	}
	h.say("catching up")
	for range copyRounds {
		if capture.Bytes() <= restMost {
			break
		}
		if err := h.copyChanges(wanted, capture); err != nil {
			return err
		}
	}
	// A receiver that is slow now, or away, would be so with the slots frozen.
	if err := h.load(wanted, nil); err != nil {
		return err
	}
	if capture.Bytes() > freezeBytes {
		return errTooBusy
	}
	if err := h.ready(wanted); err != nil {
		return err
	}
	h.say("handing over")
	began := time.Now()
	if err := h.decide(ctx, capture); err != nil {
		return err
	}
	h.froze = time.Since(began)
	return nil
}

// begin ends all earlier attempts.
func (h *handover) begin(ctx context.Context) (owned bool, err error) {
	h.say("beginning")
	for {
		r, err := h.one(ctx, command.Command{Op: command.OpSlotsExpect, Int: int64(h.move), Values: [][]byte{command.AppendSlots(nil, h.slots)}})
		switch {
		case err != nil:
			return false, err
		case r.Kind == command.KindNil:
			return true, nil
		case r.Code == command.CodeConflict:
			return false, errOutdated
		case r.Code != command.CodeSlotsLeft && r.Kind != command.KindInt:
			return false, fmt.Errorf("expect: %v", r.Code)
		}
		// Either way no attempt of before is left that the slots could be frozen for. Asked for even if they do not look frozen: a freeze
		// of ours may be on its way through the log, in front of this.
		if err := h.propose(ctx, command.Command{Op: command.OpSlotsThaw, Int: int64(h.move), TTL: r.Int}); err != nil {
			return false, err
		}
		if r.Kind == command.KindInt {
			h.token, h.parts = r.Int, 0
			return false, nil
		}
		for {
			r, err := h.one(ctx, command.Command{Op: command.OpSlotsClear, Int: partRows})
			if err != nil {
				return false, err
			}
			if r.Kind != command.KindInt {
				return false, fmt.Errorf("clear: %v", r.Code)
			}
			if r.Int == 0 {
				break
			}
		}
	}
}

// decide freezes the slots, brings the rest and has the receiver own them. If that fails they are thawed, unless they are owned.
func (h *handover) decide(ctx context.Context, capture *fsm.Capture) error {
	frozen, cancel := context.WithTimeout(ctx, freezeMost)
	defer cancel()
	err := h.propose(frozen, command.Command{Op: command.OpSlotsFreeze, Int: int64(h.move), TTL: h.token, Values: [][]byte{command.AppendSlots(nil, h.slots)}})
	if err == nil {
		err = h.rest(frozen, capture)
	}
	if err == nil || ctx.Err() != nil { // who leads next goes on from here
		return err
	}
	owned, again := h.begin(ctx)
	switch {
	case owned:
		return nil
	case again != nil:
		return fmt.Errorf("%w; then: %w", err, again)
	}
	return err
}

func (h *handover) rest(ctx context.Context, capture *fsm.Capture) error {
	v, keys, err := capture.Take()
	if err != nil {
		return err
	}
	defer v.Close()
	// What has ended, and was seen to, must not be there again by another shard's clock.
	keys = append(keys, v.Ended(h.slots)...)
	var cmds []command.Command
	part := func(rows []command.Row) error {
		cmds = append(cmds, command.LoadRows(h.token, h.parts, rows))
		h.parts++
		return nil
	}
	if err := h.cut(v, keys, part); err != nil {
		return err
	}
	for _, answers := range h.giver.SlotAnswers(h.slots, partBytes) {
		cmds = append(cmds, command.Command{Op: command.OpSlotsAnswers, Int: h.token, TTL: h.parts, Values: [][]byte{answers}})
		h.parts++
	}
	cmds = append(cmds, command.Command{Op: command.OpSlotsOwn, Int: h.token, TTL: h.parts})
	rs, err := h.receive(ctx, cmds)
	if err != nil {
		return err
	}
	return received(rs)
}

// copyAll brings all rows of the slots as they are now. The view is held for as long as that takes.
func (h *handover) copyAll(ctx context.Context, capture *fsm.Capture) error {
	v, _, err := capture.Take()
	if err != nil {
		return err
	}
	defer func() { v.Close() }()
	opened := time.Now()
	for _, r := range h.slots {
		for slot := int(r.From); slot <= int(r.To); slot++ {
			records, bytes := v.SlotCount(uint16(slot))
			h.total.Add(bytes + records*rowHead)
		}
	}
	for _, r := range h.slots {
		var after []byte
		for more := true; more; {
			var rows []command.Row
			size := 0
			more = false
			v.Rows(r.From, r.To, after, func(row command.Row) bool {
				if len(rows) > 0 && (size+rowBytes(row) > partBytes || len(rows) == partRows) {
					more = true
					return false
				}
				rows = append(rows, row)
				size += rowBytes(row)
				return true
			})
			if len(rows) == 0 {
				break
			}
			last := rows[len(rows)-1]
			after = append([]byte{byte(last.Slot >> 8), byte(last.Slot)}, last.Key...)
			if err := h.pace(ctx, size); err != nil {
				return err
			}
			if rows, err = h.now(ctx, v, rows); err != nil {
				return err
			}
			if err := h.load(ctx, rows); err != nil {
				return err
			}
			h.sent.Add(int64(size))
			if time.Since(opened) < viewMost && capture.Bytes() < fsm.CaptureMost/2 {
				continue
			}
			// What has changed of what was sent goes first; the rest is read from the newer view.
			newer, keys, err := capture.Take()
			if err != nil {
				return err
			}
			v.Close()
			v, opened = newer, time.Now()
			if err := h.sendChanges(ctx, v, keys); err != nil {
				return err
			}
		}
	}
	return nil
}

// copyChanges brings what has changed since the last time.
func (h *handover) copyChanges(ctx context.Context, capture *fsm.Capture) error {
	v, keys, err := capture.Take()
	if err != nil {
		return err
	}
	defer v.Close()
	return h.sendChanges(ctx, v, keys)
}

func (h *handover) sendChanges(ctx context.Context, v *fsm.View, keys [][]byte) error {
	return h.cut(v, keys, func(rows []command.Row) (err error) {
		// Not paced: it has to be faster than the writers.
		if rows, err = h.now(ctx, v, rows); err != nil {
			return err
		}
		return h.load(ctx, rows)
	})
}

// cut reads keys and hands them out in parts.
func (h *handover) cut(v *fsm.View, keys [][]byte, part func([]command.Row) error) error {
	var rows []command.Row
	size := 0
	for _, k := range keys {
		row := v.Row(k)
		if len(rows) > 0 && (size+rowBytes(row) > partBytes || len(rows) == partRows) {
			if err := part(rows); err != nil {
				return err
			}
			rows, size = nil, 0
		}
		rows = append(rows, row)
		size += rowBytes(row)
	}
	if len(rows) == 0 {
		return nil
	}
	return part(rows)
}

func rowBytes(r command.Row) int { return len(r.Key) + len(r.Value) + rowHead }

// rowHead is about what a row takes beside its key and value.
const rowHead = 16

// now counts times to live from this moment on, by the giver's clock: it has gone on since the view. What has ended meanwhile goes as gone.
func (h *handover) now(ctx context.Context, v *fsm.View, rows []command.Row) ([]command.Row, error) {
	for i := range rows {
		if rows[i].TTL == 0 {
			continue
		}
		if time.Since(h.clockAt) > clockAge {
			if err := h.propose(ctx, command.Command{Op: command.OpNoop}); err != nil {
				return nil, err
			}
			h.clockAt = time.Now()
		}
		if rows[i].TTL -= h.giver.Clock() - v.Clock(); rows[i].TTL <= 0 {
			rows[i] = command.Row{Slot: rows[i].Slot, Key: rows[i].Key, Gone: true}
		}
	}
	return rows, nil
}

// load brings a part. It is numbered, so it is tried again rather than that all before it was in vain: the receiver may hold writes for a while.
func (h *handover) load(ctx context.Context, rows []command.Row) error {
	c := command.LoadRows(h.token, h.parts, rows)
	r, err := h.one(ctx, c)
	for try := 1; err != nil && try < loadTries && ctx.Err() == nil; try++ {
		r, err = h.one(ctx, c)
	}
	if err != nil {
		return err
	}
	h.parts++
	return received([]command.Result{r})
}

// received says whether the receiver has taken everything.
func received(rs []command.Result) error {
	for _, r := range rs {
		switch {
		case r.Kind == command.KindOK:
		case r.Code == command.CodeConflict:
			return errNotReceived
		default:
			return fmt.Errorf("the receiver: %v", r.Code)
		}
	}
	return nil
}

// one runs a command in the receiver's log.
func (h *handover) one(ctx context.Context, c command.Command) (command.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	rs, err := h.receive(ctx, []command.Command{c})
	if err != nil {
		return command.Result{}, err
	}
	return rs[0], nil
}

// propose runs a command in the giver's log.
func (h *handover) propose(ctx context.Context, c command.Command) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	rs, _, err := h.giver.Propose(ctx, []command.Command{c})
	if err != nil {
		return err
	}
	if rs[0].Kind != command.KindOK {
		return fmt.Errorf("%v: %v", c.Op, rs[0].Code)
	}
	return nil
}
