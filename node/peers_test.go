package node

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/sharding"
)

// TestOneOfTwoAsks shows that a peer that has just asked us is not asked, unless it has a newer map than ours, and that one from
// which nothing was heard is.
func TestOneOfTwoAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		asks := func(epoch uint64) bool {
			ok := p.start("b", epoch, false)
			if ok {
				if p.start("b", epoch, false) {
					t.Error("a second exchange began beside the first")
				}
				p.finish("b")
			}
			return ok
		}
		if !asks(1) {
			t.Error("one that was never heard of is not asked")
		}
		p.hear(peerStatus{Node: "b", Epoch: 2})
		if asks(2) {
			t.Error("one that has just told all is asked")
		}
		if !p.start("b", 2, true) {
			t.Error("one that has just told all is not told our news")
		}
		if p.finish("b") {
			t.Error("told twice")
		}
		p.start("b", 1, false)
		p.start("b", 1, true)
		if !p.finish("b") || p.finish("b") {
			t.Error("news during an exchange are not told in one more")
		}
		if !asks(1) {
			t.Error("one that has a newer map is not asked")
		}
		time.Sleep(exchangeEvery)
		if !asks(2) {
			t.Error("one that was not heard of since the last time is not asked")
		}
	})
}

// TestClaims shows that the leader in the newest term counts, among those that live.
func TestClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers()
		want := func(shard sharding.ShardID, leader sharding.NodeID, term uint64) {
			t.Helper()
			if l, tm := p.claim(shard); l != leader || tm != term {
				t.Errorf("shard %d is led by %q in term %d, want %q in %d", shard, l, tm, leader, term)
			}
		}
		want(1, "", 0)
		p.hear(peerStatus{Node: "b", Replicas: []replicaStatus{{Shard: 1, Leads: true, Term: 5}, {Shard: 2, Term: 9}}})
		want(1, "b", 5)
		want(2, "", 0)
		time.Sleep(aliveFor / 2)
		p.hear(peerStatus{Node: "c", Replicas: []replicaStatus{{Shard: 1, Leads: true, Term: 4}, {Shard: 2, Leads: true, Term: 10}}})
		want(1, "b", 5)
		want(2, "c", 10)
		time.Sleep(aliveFor / 2)
		want(1, "c", 4)
		p.hear(peerStatus{Node: "c", Replicas: []replicaStatus{{Shard: 1, Term: 4}}})
		want(1, "", 0)
		want(2, "", 0)
	})
}

// Who has said nothing is silent, but for as long as it may be that this process did not listen.
func TestSilentPeers(t *testing.T) {
	p, now := newPeers(), time.Now()
	at := func(d time.Duration) time.Time { return now.Add(d) }
	if p.silent("n2", at(time.Hour)) {
		t.Error("silent before anybody has listened")
	}
	listen := func(from, to time.Duration) {
		for d := from; d <= to; d += exchangeEvery {
			p.listen(at(d))
		}
	}
	listen(0, aliveFor-exchangeEvery)
	if p.silent("n2", at(aliveFor-exchangeEvery)) {
		t.Error("silent in the first moments")
	}
	listen(aliveFor, aliveFor)
	if !p.silent("n2", at(aliveFor)) {
		t.Error("not silent, though nothing was heard")
	}
	// The process stands still for a minute.
	if p.silent("n2", at(time.Minute)) {
		t.Error("silent, by who has not listened for a minute")
	}
	listen(time.Minute, time.Minute+aliveFor-exchangeEvery)
	if p.silent("n2", at(time.Minute+aliveFor-exchangeEvery)) {
		t.Error("silent in the first moments after a pause")
	}
	listen(time.Minute+aliveFor, time.Minute+aliveFor)
	if !p.silent("n2", at(time.Minute+aliveFor)) {
		t.Error("not silent, though nothing was heard after the pause")
	}
}
