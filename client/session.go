package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/abacusdb/abacus/sharding"
)

// Writes are numbered, so that one whose answer was lost can be sent again: a
// shard carries out a number of a session once, and answers it alike every time. A
// client opens a session with its first write; one that only reads opens none.

const (
	// window is how far the numbers of a session may be apart of which the lowest is not
	// answered: a shard remembers 1024 answers of a session that it was not told to forget.
	window = 1000
	// maxPiece is how many numbers are taken at once. Longer batches go in pieces.
	maxPiece = 500
	// maxSessions bounds the sessions of a client. One is enough while answers come; while a
	// shard has no leader, writes to the others go on in further ones.
	maxSessions = 8
	// maxRenumbered is how often in a row a write may meet a session that has
	// expired before its first attempt.
	maxRenumbered = 3
)

// session is one of the client's sessions. All of it is behind numbers.mu.
type session struct {
	id   string
	next uint64 // the number to be given next
	// floor is the lowest number whose answer is still wanted; next if there is none.
	// Invariant: next - floor <= window.
	floor   uint64
	settled [window]bool // of the numbers from floor on, at n % window
}

// number is what a write has taken of a session: count numbers from seq on, of
// which the first is its own. The others pay for the further slots that it touches, each of which
// is an answer to be remembered. The zero value is no number.
type number struct {
	s          *session
	seq, count uint64
}

// numbers are a client's sessions and what is taken of them.
type numbers struct {
	mu      sync.Mutex
	live    []*session
	opening *opening
	freed   chan struct{} // closed when numbers were given back; nil if nobody waits
}

// opening is a session being opened, by one caller for all.
type opening struct {
	done chan struct{}
	err  error // why it came to nothing, for all who wait
}

// take takes n numbers in a row, and waits until there are so many. key is one that
// will be written: its shard makes the session, if there is to be another.
func (c *Client) take(ctx context.Context, n uint64, key []byte) (s *session, first uint64, err error) {
	t := &c.numbers
	for {
		t.mu.Lock()
		for _, s := range t.live {
			if s.next+n-s.floor <= window {
				first = s.next
				s.next += n
				t.mu.Unlock()
				return s, first, nil
			}
		}
		var wait chan struct{}
		o := t.opening
		switch {
		case o != nil:
			wait = o.done
		case len(t.live) == maxSessions:
			if t.freed == nil {
				t.freed = make(chan struct{})
			}
			wait = t.freed
		default:
			o = &opening{done: make(chan struct{})}
			t.opening = o
			t.mu.Unlock()
			if err := c.openSession(ctx, o, key); err != nil {
				return nil, 0, err
			}
			continue
		}
		t.mu.Unlock()
		select {
		case <-wait:
			if o != nil && o.err != nil {
				return nil, 0, o.err
			}
		case <-ctx.Done():
			return nil, 0, context.Cause(ctx)
		case <-c.life.Done():
			return nil, 0, ErrClosed
		}
	}
}

// openSession opens a session for all who wait for o. They share a failure, unless
// it is that this caller had no more time.
func (c *Client) openSession(ctx context.Context, o *opening, key []byte) error {
	r := c.run(ctx, []Cmd{{Args: [][]byte{[]byte("IDEM"), []byte("OPEN"), key}, Repeatable: true}}, 0)[0]
	err := r.Err
	var id []byte
	if err == nil {
		id, err = wantBytes("IDEM OPEN", r.Reply)
	}
	t := &c.numbers
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.opening = nil; err == nil {
		c.stats.sessions.Add(1)
		t.live = append(t.live, &session{id: string(id), next: 1, floor: 1})
	} else if ctx.Err() == nil {
		o.err = err
	}
	close(o.done)
	return err
}

// give gives numbers back: their answers are not wanted any more.
func (t *numbers) give(n number) {
	if n.s == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := n.s
	for i := n.seq; i < n.seq+n.count; i++ {
		s.settled[i%window] = true
	}
	for s.floor < s.next && s.settled[s.floor%window] {
		s.settled[s.floor%window] = false
		s.floor++
	}
	if t.freed != nil {
		close(t.freed)
		t.freed = nil
	}
}

// drop takes no more numbers of a session, which the cluster has forgotten.
func (t *numbers) drop(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(t.live, s); i >= 0 {
		t.live = slices.Delete(t.live, i, i+1)
	}
	if t.freed != nil {
		close(t.freed)
		t.freed = nil
	}
}

// wire is the numbered command as it is sent now: with the floor as it is now.
func (t *numbers) wire(n number, c Cmd) Cmd {
	t.mu.Lock()
	floor := n.s.floor
	t.mu.Unlock()
	number := strconv.AppendUint(make([]byte, 0, 24), n.seq, 10)
	number = strconv.AppendUint(append(number, '/'), floor, 10)
	args := make([][]byte, 0, 3+len(c.Args))
	args = append(args, []byte("IDEM"), []byte(n.s.id), number)
	return Cmd{Args: append(args, c.Args...), Repeatable: true}
}

// number gives each call that is to have a number one. An error is certain: none of
// those without one was sent, or what was sent was refused.
func (c *Client) number(ctx context.Context, calls []*call) error {
	var all uint64
	var key []byte
	for _, p := range calls {
		if p.plan.weight > 0 && p.num.s == nil {
			all += p.plan.weight
			if key == nil {
				key = p.plan.key
			}
		}
	}
	if all == 0 {
		return nil
	}
	s, seq, err := c.take(ctx, all, key)
	if err != nil {
		return err
	}
	for _, p := range calls {
		if w := p.plan.weight; w > 0 && p.num.s == nil {
			p.num = number{s: s, seq: seq, count: w}
			seq += w
		}
	}
	return nil
}

// unnumbered is why a call was not sent: no session could be had. Whether one was made that nobody will use may be uncertain; that the call was not
// executed is not.
func unnumbered(err error) error {
	var open *CommandError
	if errors.As(err, &open) && open.Cause != nil {
		err = open.Cause
		var end *endError
		if errors.As(err, &end) { // the call's own end will be told
			if err = end.last; end.told != nil {
				err = end.told
			}
		}
	} else {
		err = fmt.Errorf("open a session: %w", err)
	}
	if errors.Is(err, ErrUncertain) {
		return errors.New(err.Error())
	}
	return err
}

// piece returns the end of the run of commands from `from` on that are numbered at once.
func piece(cmds []Cmd, from int) int {
	if len(cmds)-from <= 1 {
		return len(cmds)
	}
	var all uint64
	for i := from; i < len(cmds); i++ {
		if all += planOf(cmds[i]).weight; all > maxPiece && i > from {
			return i
		}
	}
	return len(cmds)
}

// weigh counts the slots of a command's keys: so many answers a shard may have to
// remember for it. 0, and no number, if they are more than can be.
func weigh(c Cmd, s spec, last int) uint64 {
	slots := map[sharding.Slot]struct{}{}
	for i := s.first; i <= last && i < len(c.Args); i += s.step {
		slots[sharding.SlotOf(c.Args[i])] = struct{}{}
	}
	if len(slots) > maxPiece {
		return 0
	}
	return uint64(len(slots))
}

// stats are the counters behind Stats.
type stats struct{ sessions, repeated atomic.Uint64 }

// Stats counts what a client did to get its commands done.
type Stats struct {
	// Sessions is how many were opened.
	Sessions uint64
	// Repeated is how many writes were sent again that may have been carried out before.
	Repeated uint64
}

// Stats may be called at any time.
func (c *Client) Stats() Stats {
	return Stats{Sessions: c.stats.sessions.Load(), Repeated: c.stats.repeated.Load()}
}
