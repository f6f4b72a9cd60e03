package store

import (
	"cmp"
	"context"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/fsm/planted"
	"github.com/abacusdb/abacus/transport"
)

// How a leader makes sure, for a read, that nobody has taken its place.
//
// raft.VerifyLeader will not do: it takes acknowledgements that were sent before
// the read began (hazard R1) and those of members without a vote (R2). So a read
// asks the voters itself, in a round that is closed to further reads before its
// first message is sent. A voter confirms if its term, which it has on disk before it
// grants a vote and which never falls, is not above ours: then it has voted for
// no later leader yet, and if a majority says so, there is none that could have
// acknowledged a write before the round began.
//
// All shards of a node share the way to a peer. A read that finds it free goes at
// once; those that come while it is taken gather in their shards' next rounds, and
// one message then asks for all of them. As many voters are asked as make a majority, those
// first who answered last; the others only if these are slow (confirmHedge) or do not confirm.

const (
	// confirmsInFlight is how many messages to one peer may be unanswered. With
	// one, a read that has just missed it waits for two round trips; with many,
	// each carries little.
	confirmsInFlight = 2
	// confirmTimeout is how long a peer may take to answer one. It keeps nobody
	// waiting but those who need this very peer for a majority.
	confirmTimeout = 500 * time.Millisecond
	// confirmRetry is the pause before a voter that did not answer is asked again.
	confirmRetry = 20 * time.Millisecond
	// confirmHedge is how long the voters that were asked first may take before the others are
	// asked as well: several round trips within a machine room.
	confirmHedge = 3 * time.Millisecond
	// maxRounds is how many closed rounds of one shard may be undecided: while no
	// majority answers, further reads share one more instead of having one each.
	maxRounds = 8
	// maxReaders bounds the reads of a node that wait for a round.
	maxReaders = 1 << 16
)

// round is one question to a shard's voters. Guarded by confirms.mu, but for done
// and what is written before done is closed.
type round struct {
	l    *leadership
	term uint64 // the leadership's, as the state machine saw it
	// readers wait for it; without any it is dropped.
	readers int

	// sealed: no read may join any more, and the question may be sent. The rest was
	// found when it was sealed.
	sealed bool
	// index is the commit index then: it covers all that was acknowledged before.
	index  uint64
	voters []voter // without ourselves
	need   int     // confirmations of others that make a majority
	got    int
	denied int // voters in a later term
	// reserve are places in voters that are not asked yet, from since on.
	reserve []int
	since   time.Time

	settled bool
	done    chan struct{} // closed when settled
	err     error
}

type voter struct {
	id       raft.ServerID
	node     string
	answered bool
}

// ask is a round's question to one of its voters.
type ask struct {
	r     *round
	voter int
}

// errAgain settles a round that must be held anew, because the members changed.
var errAgain = transport.Errorf(transport.CodeUnavailable, "the shard's members changed")

// confirms is a node's rounds, of all its shards.
type confirms struct {
	net    *Net
	ctx    context.Context // ends with close
	cancel context.CancelFunc
	wake   chan struct{}  // has start run
	wg     sync.WaitGroup // run

	mu      sync.Mutex // let go of by unlock
	out     []*message // made meanwhile, not sent yet
	id      uint64     // of the last message; it begins at random, so that no process uses another's
	peers   map[string]*confirmPeer
	shards  map[*leadership]*rounds
	readers int
	// starting: start is about to run.
	starting bool
	// reserves are sealed rounds, in order, that may have to ask more voters; hedging says that
	// askReserves will look at them.
	reserves []*round
	hedging  bool
	stats    ReadStats
}

// ReadStats count what the reads of a node's shards took, since its start.
type ReadStats struct {
	Reads      uint64 // that waited for a round
	Refused    uint64 // because too many waited
	Rounds     uint64
	Messages   uint64 // to peers
	Unanswered uint64 // questions to voters that have to be asked again
}

// ReadStats may be called at any time.
func (n *Net) ReadStats() ReadStats {
	n.confirms.mu.Lock()
	defer n.confirms.mu.Unlock()
	return n.confirms.stats
}

// rounds are those of one leadership.
type rounds struct {
	open   *round // not sealed yet, or nil
	sealed int    // and not settled
}

// confirmPeer is the way to one node.
type confirmPeer struct {
	node     string
	answered uint64           // its newest message that was answered
	waiting  map[ask]struct{} // not sent yet; what is settled is taken out
	inFlight int
}

func newConfirms(n *Net) *confirms {
	c := &confirms{net: n, wake: make(chan struct{}, 1), id: rand.Uint64(), peers: make(map[string]*confirmPeer), shards: make(map[*leadership]*rounds)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.wg.Go(c.run)
	return c
}

// run is a goroutine for start, and not a new one each time, whose stack would have to grow.
func (c *confirms) run() {
	for {
		select {
		case <-c.wake:
			c.start()
		case <-c.ctx.Done():
			return
		}
	}
}

// close has answers ignored from now on. Reads that wait are not
// told: they end with their leaderships.
func (c *confirms) close() {
	c.mu.Lock()
	c.cancel()
	c.mu.Unlock()
	c.wg.Wait()
}

// confirm returns an index such that a state at or above it holds all that was
// acknowledged before the call, if a majority of the voters besides ourselves (who
// are asked by the caller afterwards) knows no term above the given one.
func (c *confirms) confirm(ctx context.Context, l *leadership, term uint64) (uint64, error) {
	for {
		r, err := c.join(l, term)
		if err != nil {
			return 0, err
		}
		select {
		case <-r.done:
		case <-l.ctx.Done():
			err = l.store.ended()
		case <-ctx.Done():
			err = transport.Errorf(transport.CodeTimeout, "no majority confirmed in time that this replica leads")
		}
		c.leave(r)
		switch {
		case err != nil:
			return 0, err
		case r.err == errAgain:
			continue // bounded by ctx: members do not change without end
		}
		return r.index, r.err
	}
}

// join puts a read into its shard's open round.
func (c *confirms) join(l *leadership, term uint64) (*round, error) {
	c.mu.Lock()
	defer c.unlock()
	if c.readers >= maxReaders {
		c.stats.Refused++
		return nil, transport.Errorf(transport.CodeBusy, "%d reads wait already", c.readers)
	}
	s := c.shards[l]
	if s == nil {
		s = &rounds{}
		c.shards[l] = s
	}
	if s.open == nil {
		s.open = &round{l: l, term: term, done: make(chan struct{})}
	}
	r := s.open
	r.readers++
	c.readers++
	c.stats.Reads++
	switch {
	case c.ctx.Err() != nil, c.starting, r.readers > 1:
	case c.readers == 1:
		c.next() // there is nobody to wait for
	default:
		c.startSoon()
	}
	return r, nil
}

func (c *confirms) startSoon() {
	if !c.starting {
		c.starting = true
		c.wake <- struct{}{} // start takes it before starting is false again
	}
}

// start lets new rounds go wherever there is room, after the goroutines that are
// about to run: under load most of them are reads, and a round carries several
// times as many. Without load there are none to wait for.
func (c *confirms) start() {
	runtime.Gosched()
	c.mu.Lock()
	defer c.unlock()
	c.starting = false
	c.next()
}

// next seals what may be sealed and sends what may be sent.
func (c *confirms) next() {
	for _, s := range c.shards {
		c.trySeal(s)
	}
	c.pump()
}

// leave takes a read out of its round.
func (c *confirms) leave(r *round) {
	c.mu.Lock()
	defer c.unlock()
	c.readers--
	if r.readers--; r.readers > 0 || r.settled {
		return
	}
	s := c.shards[r.l]
	if !r.sealed {
		s.open = nil
		c.tidy(r.l, s)
		return
	}
	c.settle(r, errAgain) // nobody hears it
	c.next()
}

// trySeal closes a shard's open round, if that is allowed and one of its voters
// has room for a message.
func (c *confirms) trySeal(s *rounds) {
	r := s.open
	if r == nil || s.sealed >= maxRounds {
		return
	}
	voters, self := r.l.voters()
	room := func(v voter) bool { return c.peer(v.node).inFlight < confirmsInFlight }
	if len(voters) > 0 && !slices.ContainsFunc(voters, room) {
		return
	}
	s.open = nil
	s.sealed++
	c.stats.Rounds++
	r.sealed = true
	r.index = r.l.in.raft.CommitIndex()
	r.voters = voters
	r.need = majority(len(voters), self)
	if planted.Is(planted.CountNonVoters) {
		r.voters = r.l.others()
	}
	if r.need <= 0 {
		c.settle(r, nil) // there is nobody to ask
		return
	}
	c.choose(r)
}

// choose has as many voters asked as are needed, and keeps the others in reserve.
func (c *confirms) choose(r *round) {
	order := make([]int, len(r.voters))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		x, y := c.peer(r.voters[a].node), c.peer(r.voters[b].node)
		if full, other := x.inFlight >= confirmsInFlight, y.inFlight >= confirmsInFlight; full != other {
			if full {
				return 1
			}
			return -1
		}
		return cmp.Compare(y.answered, x.answered)
	})
	for _, i := range order[:r.need] {
		c.peer(r.voters[i].node).waiting[ask{r, i}] = struct{}{}
	}
	if r.reserve = order[r.need:]; len(r.reserve) == 0 {
		return
	}
	r.since = time.Now()
	c.reserves = append(c.reserves, r)
	if !c.hedging {
		c.hedging = true
		time.AfterFunc(confirmHedge, c.askReserves)
	}
}

// askMore has the voters asked that were kept in reserve.
func (c *confirms) askMore(r *round) {
	for _, i := range r.reserve {
		c.peer(r.voters[i].node).waiting[ask{r, i}] = struct{}{}
	}
	r.reserve = nil
}

// askReserves lets rounds that wait for too long ask all their voters.
func (c *confirms) askReserves() {
	c.mu.Lock()
	defer c.unlock()
	now, keep := time.Now(), c.reserves[:0]
	for _, r := range c.reserves {
		switch {
		case r.settled:
		case now.Sub(r.since) >= confirmHedge:
			c.askMore(r)
		default:
			keep = append(keep, r)
		}
	}
	clear(c.reserves[len(keep):])
	c.reserves = keep
	if c.hedging = len(keep) > 0 && c.ctx.Err() == nil; c.hedging {
		time.AfterFunc(confirmHedge-now.Sub(keep[0].since), c.askReserves)
	}
	c.pump()
}

// majority is how many others must confirm, of so many, beside ourselves if we
// have a vote.
func majority(others int, self bool) int {
	n := others
	if self {
		n++
	}
	need := n/2 + 1
	if planted.Is(planted.WrongQuorumOfFour) && n == 4 {
		need = 2
	}
	if self {
		need--
	}
	return need
}

// voters are the other voters of the newest configuration, committed or not, and
// whether we are one. Between it and the configuration that any later leader may
// have been elected by there is at most one member of difference, so that their
// majorities have a replica in common (Raft thesis 4.1).
func (l *leadership) voters() (others []voter, self bool) {
	for _, srv := range l.in.raft.GetConfiguration().Configuration().Servers {
		switch {
		case srv.Suffrage != raft.Voter:
		case srv.ID == l.store.self.replica:
			self = true
		default:
			others = append(others, voter{id: srv.ID, node: string(srv.Address)})
		}
	}
	return others, self
}

// others are all other members, with a vote or without.
func (l *leadership) others() (list []voter) {
	for _, srv := range l.in.raft.GetConfiguration().Configuration().Servers {
		if srv.ID != l.store.self.replica {
			list = append(list, voter{id: srv.ID, node: string(srv.Address)})
		}
	}
	return list
}

func (c *confirms) peer(node string) *confirmPeer {
	p := c.peers[node]
	if p == nil {
		p = &confirmPeer{node: node, waiting: make(map[ask]struct{})}
		c.peers[node] = p
	}
	return p
}

// settle decides a round and takes back what was not asked yet. It may have made
// room for the shard's next one: see next.
func (c *confirms) settle(r *round, err error) {
	if r.settled {
		return
	}
	r.settled, r.err, r.reserve = true, err, nil
	close(r.done)
	for i, v := range r.voters {
		delete(c.peer(v.node).waiting, ask{r, i})
	}
	s := c.shards[r.l]
	s.sealed--
	c.tidy(r.l, s)
}

func (c *confirms) tidy(l *leadership, s *rounds) {
	if s.open == nil && s.sealed == 0 {
		delete(c.shards, l)
	}
}

// message is what goes to one peer at once: replicas to ask, each once, and the
// questions that its term answers.
type message struct {
	peer *confirmPeer
	id   uint64
	to   []address
	asks [][]ask
}

// pump makes messages of what waits wherever there is room.
func (c *confirms) pump() {
	if c.ctx.Err() != nil {
		return
	}
	for _, p := range c.peers {
		for p.inFlight < confirmsInFlight && len(p.waiting) > 0 {
			p.inFlight++
			c.out = append(c.out, c.take(p))
		}
	}
}

// take makes the next message of what waits for a peer.
func (c *confirms) take(p *confirmPeer) *message {
	c.id++
	c.stats.Messages++
	m := &message{peer: p, id: c.id}
	place := make(map[address]int, 1)
	for a := range p.waiting {
		to := address{shard: a.r.l.store.self.shard, replica: a.r.voters[a.voter].id}
		i, ok := place[to]
		switch {
		case ok:
		case len(m.to) == maxConfirms:
			continue // next time
		default:
			i = len(m.to)
			place[to] = i
			m.to = append(m.to, to)
			m.asks = append(m.asks, nil)
		}
		m.asks[i] = append(m.asks[i], a)
		delete(p.waiting, a)
	}
	return m
}

// unlock lets go of mu and sends what was made meanwhile: a write to a socket is no business of others.
func (c *confirms) unlock() {
	out := c.out
	c.out = nil
	c.mu.Unlock()
	for _, m := range out {
		c.net.t.Go(m.peer.node, transport.LaneControl, transport.MethodConfirm, encodeConfirm(m.id, m.to), time.Now().Add(confirmTimeout),
			func(b []byte, err error) { c.received(m, b, err) })
	}
}

// received takes a peer's answer: a term for each replica, 0 for one that is not there.
func (c *confirms) received(m *message, b []byte, err error) {
	var terms []uint64
	if err == nil {
		var id uint64
		if id, terms, err = decodeTerms(b); err == nil && (id != m.id || len(terms) != len(m.to)) {
			err = errWire
		}
	}
	c.mu.Lock()
	defer c.unlock()
	if c.ctx.Err() != nil {
		return
	}
	c.deliver(m, terms, err)
	m.peer.inFlight--
	if err == nil {
		m.peer.answered = max(m.peer.answered, m.id)
	}
	if len(c.shards) > 0 { // who has just been answered may have more to ask
		c.startSoon()
	}
}

// deliver hands out what a message brought.
func (c *confirms) deliver(m *message, terms []uint64, err error) {
	var again []ask
	for i, asks := range m.asks {
		for _, a := range asks {
			switch {
			case a.r.settled:
			case err != nil || terms[i] == 0:
				again = append(again, a)
				c.askMore(a.r)
			default:
				c.answer(a, terms[i])
			}
		}
	}
	if len(again) > 0 {
		c.stats.Unanswered += uint64(len(again))
		time.AfterFunc(confirmRetry, func() { c.repeat(again) })
	}
}

// answer notes a voter's term.
func (c *confirms) answer(a ask, term uint64) {
	r := a.r
	v := &r.voters[a.voter]
	if v.answered {
		return
	}
	v.answered = true
	if term > r.term {
		// There may be a later leader, or only somebody who would like to be one.
		if r.denied++; len(r.voters)-r.denied < r.need {
			c.settle(r, r.l.store.notLeader())
		}
		c.askMore(r)
		return
	}
	if r.got++; r.got >= r.need {
		c.settle(r, nil)
	}
}

// repeat asks voters again that could not be reached. If they are no longer the
// shard's voters, the round is held anew: those who were removed may be gone for good.
func (c *confirms) repeat(asks []ask) {
	c.mu.Lock()
	defer c.unlock()
	for _, a := range asks {
		if a.r.settled {
			continue
		}
		now, _ := a.r.l.voters()
		if !planted.Is(planted.CountNonVoters) && !slices.EqualFunc(now, a.r.voters, func(x, y voter) bool { return x.id == y.id && x.node == y.node }) {
			c.settle(a.r, errAgain)
			continue
		}
		c.peer(a.r.voters[a.voter].node).waiting[a] = struct{}{}
	}
	c.next()
}

// onConfirm answers a round: the terms of our replicas, as they are on disk.
// A replica that does not run, or has never heard of its group, has none to show.
func (n *Net) onConfirm(_ string, frame []byte, reply func([]byte, error)) {
	id, to, err := decodeConfirm(frame)
	if err != nil {
		reply(nil, badFrame(err))
		return
	}
	terms := make([]uint64, len(to))
	for i, a := range to {
		if p, err := n.find(a); err == nil {
			terms[i] = p.stable.term.Load()
		}
	}
	reply(encodeTerms(id, terms), nil)
}
