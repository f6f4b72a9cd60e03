package store

import (
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/transport"
)

// A follower learns that an entry is committed from the next request of its leader: that with the next entry, or the empty one
// that raft makes every CommitTimeout. Where nothing follows it is behind for up to twice that, and with it whoever reads there and
// whoever wants a view of it at one index. So a leader that has sent no entry for a moment tells the followers itself.
//
// What it tells is true whoever leads meanwhile: the follower has answered, in the term that the request names, that its log equals
// the leader's up to an index, and no more than that is said to be committed.

// tellSoon has the followers told. It is called when one of them has answered that it has new entries.
func (p *peers) tellSoon() {
	if p.telling.CompareAndSwap(false, true) {
		time.AfterFunc(p.timing.Tell, p.tell)
	}
}

func (p *peers) tell() {
	quiet := time.Since(p.began) - time.Duration(p.entriesSent.Load())
	if quiet < p.timing.Tell && p.ctx.Err() == nil {
		time.AfterFunc(p.timing.Tell-quiet, p.tell)
		return
	}
	p.telling.Store(false) // before we look: what comes from now on has us look again
	r := p.raft.Load()
	if p.ctx.Err() != nil || r == nil || r.State() != raft.Leader || !p.mayLead() {
		return
	}
	// In this order: our term, read last, is that of all that was committed before. The other way round what a later leader has committed
	// would be told of the entries that a follower has from us.
	commit := r.CommitIndex()
	list, more := p.untold(p.stable.term.Load(), commit)
	for _, u := range list {
		p.tellOne(u)
	}
	if more && quiet < p.timing.Commit { // then raft has told them
		p.tellSoon()
	}
}

// untold is a follower that has more that is committed than it knows.
type untold struct {
	id  raft.ServerID
	to  raft.ServerAddress
	req *raft.AppendEntriesRequest
}

// untold returns those, and whether any follower has what is not committed yet.
func (p *peers) untold(term, commit uint64) (list []untold, more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, f := range p.followers {
		if f.term != term || f.told || time.Since(f.contact) > p.timing.Heartbeat {
			continue
		}
		more = more || f.match > commit
		if told := min(f.match, commit); told > f.report.commit && f.matchTerm != 0 {
			f.told = true
			p.followers[id] = f
			list = append(list, untold{id, f.node, &raft.AppendEntriesRequest{
				RPCHeader: f.header, Term: term, PrevLogEntry: f.match, PrevLogTerm: f.matchTerm, LeaderCommitIndex: told,
			}})
		}
	}
	return list, more
}

func (p *peers) tellOne(u untold) {
	sent := time.Now()
	p.net.t.Go(string(u.to), transport.LaneLog, transport.MethodRaftAppend, encodeAppend(p.to(u.id), u.req), sent.Add(p.timing.Heartbeat), func(b []byte, err error) {
		p.answered(u)
		var resp raft.AppendEntriesResponse
		if err != nil {
			return // raft finds out by itself
		}
		if rep, err := decodeAppendResponse(b, &resp); err == nil {
			p.note(u.id, u.to, sent, u.req, &resp, rep)
		}
	})
}

func (p *peers) answered(u untold) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.followers[u.id]; f.term == u.req.Term {
		f.told = false
		p.followers[u.id] = f
	}
}
