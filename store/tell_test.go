package store

import (
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// Followers have an entry a moment after it was acknowledged, also if nothing follows.
func TestFollowersAreTold(t *testing.T) {
	err := situation(t, 3, nil, func(t *testing.T, c *cluster) error {
		l, fs := c.prepare()
		for i := range 20 {
			time.Sleep(time.Duration(i) * 37 * time.Millisecond) // wherever raft's own timers stand
			c.put("x", fmt.Sprint(i))
			time.Sleep(4 * DefaultTiming().Tell)
			for _, f := range fs {
				if have, want := f.store.fsm.Applied(), l.store.fsm.Applied(); have < want {
					return fmt.Errorf("write %d: %v later a follower is at %d, the leader at %d", i, 4*DefaultTiming().Tell, have, want)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A request says that entries are committed which it does not bring, and the follower has others there: it does not take those for committed.
func TestCommitOfWhatIsVouchedFor(t *testing.T) {
	err := situation(t, 3, nil, func(t *testing.T, c *cluster) error {
		l, fs := c.prepare()
		f := fs[0]
		time.Sleep(time.Second)
		c.net.Isolate(f.id) // all that it hears is what we make up
		st := f.store.Status()
		r := f.store.inst.Load().raft
		last, term := r.LastIndex(), st.Term
		send := func(req *raft.AppendEntriesRequest) error {
			req.RPCHeader = raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(l.replica), Addr: []byte(l.replica + "\x00" + l.id)}
			req.Term = term
			answer := make(chan error, 1)
			f.store.cfg.Net.onAppend(l.id, encodeAppend(f.store.self, req), func(b []byte, err error) {
				var resp raft.AppendEntriesResponse
				if err == nil {
					if _, err = decodeAppendResponse(b, &resp); err == nil && !resp.Success {
						err = fmt.Errorf("refused: %+v", resp)
					}
				}
				answer <- err
			})
			return <-answer
		}
		var before raft.Log
		if err := f.store.logs.GetLog(last, &before); err != nil {
			return err
		}
		// An entry of a leader that is deposed before anybody else has it.
		if err := send(&raft.AppendEntriesRequest{PrevLogEntry: last, PrevLogTerm: before.Term, LeaderCommitIndex: last,
			Entries: []*raft.Log{{Index: last + 1, Term: term, Type: raft.LogNoop}}}); err != nil {
			return err
		}
		if err := send(&raft.AppendEntriesRequest{PrevLogEntry: last, PrevLogTerm: before.Term, LeaderCommitIndex: last + 1}); err != nil {
			return err
		}
		if got := r.CommitIndex(); got != last {
			return fmt.Errorf("it takes what is up to %d for committed; the request vouched for %d", got, last)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
