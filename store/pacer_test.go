package store

import (
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
)

// racer is a leadership of a test: it takes its turn when it is woken.
type racer struct {
	*turn
	wake   chan struct{}
	round  uint64 // of the turn that it has, 0: none
	number int    // of proposals that went with it
}

func racers(p *pacer, n int) (list []*racer) {
	for range n {
		wake := make(chan struct{}, 1)
		list = append(list, &racer{turn: p.turn(wake), wake: wake})
	}
	return list
}

// goes takes the turn if it was granted, with all that waits.
func (r *racer) goes() bool {
	select {
	case <-r.wake:
	default:
		return false
	}
	round := r.granted.Swap(0)
	if round == 0 {
		return false
	}
	r.p.mu.Lock()
	r.round, r.number = round, r.count
	r.p.mu.Unlock()
	r.took(round, r.number)
	return true
}

func (r *racer) settle() {
	round := r.round
	r.round = 0
	r.done(round, r.number)
}

// TestPacerAlone shows that a single client never waits, on whichever shards its keys are.
func TestPacerAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list := racers(newPacer(), 3)
		for i := range 10 {
			r := list[i*i%3]
			r.add(1)
			if !r.goes() || r.number != 1 {
				t.Fatalf("proposal %d waits for somebody", i)
			}
			time.Sleep(time.Millisecond)
			r.settle()
		}
	})
}

// TestPacerTogether shows that what comes while a round is under way goes together when it has ended and those who were
// answered are back, or gatherTime later.
func TestPacerTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list := racers(newPacer(), 3)
		a, b, c := list[0], list[1], list[2]
		a.add(1)
		a.goes()
		b.add(2)
		if b.goes() {
			t.Fatal("went beside a round that has just opened")
		}
		a.settle()
		c.add(1)
		if !b.goes() || !c.goes() || b.round != c.round || b.number != 2 {
			t.Fatalf("three were unanswered at one time, and three wait: rounds %d and %d", b.round, c.round)
		}
		a.add(1)
		b.settle()
		if a.goes() {
			t.Fatal("went while the round goes on")
		}
		c.settle() // and nobody comes back
		ended := time.Now()
		<-a.wake
		if waited := time.Since(ended); waited != gatherTime || a.granted.Load() != b.p.round {
			t.Errorf("went after %v", waited)
		}
		if got, want := a.p.counted(), (RoundStats{Rounds: 3, Entries: 4, Short: 1}); got != want {
			t.Errorf("counted %+v, want %+v", got, want)
		}
	})
}

// TestPacerSlow shows that a shard whose entry is not settled holds the others up for roundTime, once, and takes
// part again when it is.
func TestPacerSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list := racers(newPacer(), 2)
		slow, quick := list[0], list[1]
		slow.add(1)
		slow.goes()
		began := time.Now()
		slow.add(1) // more for it
		quick.add(1)
		synctest.Wait()
		<-quick.wake
		if waited := time.Since(began); waited != roundTime {
			t.Errorf("the other shard waited for %v", waited)
		}
		if got, want := slow.p.counted(), (RoundStats{Rounds: 2, Entries: 2, Beside: 1}); got != want {
			t.Errorf("counted %+v, want %+v", got, want)
		}
		quick.wake <- struct{}{}
		quick.goes()
		quick.settle()
		for range 5 {
			quick.add(1)
			time.Sleep(gatherTime) // the slow one's client is not back
			synctest.Wait()
			if !quick.goes() {
				t.Fatal("the other shard waits again")
			}
			quick.settle()
			if slow.goes() {
				t.Fatal("an entry was asked for beside one that is under way")
			}
		}
		slow.settle()
		time.Sleep(gatherTime)
		synctest.Wait()
		if !slow.goes() || slow.number != 1 {
			t.Error("what waited for the slow one's entry was forgotten")
		}
	})
}

// TestPacerLeave shows that who leaves, granted a turn or waiting for one, holds nobody up.
func TestPacerLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		list := racers(newPacer(), 3)
		a, b, c := list[0], list[1], list[2]
		a.add(1)
		b.add(2)
		a.leave() // with a turn
		time.Sleep(gatherTime)
		synctest.Wait()
		if !b.goes() {
			t.Fatal("waits for one that has left")
		}
		c.add(1)
		c.leave()
		b.settle()
		b.add(1)
		time.Sleep(gatherTime)
		synctest.Wait()
		if !b.goes() || b.p.count != 0 || len(b.p.waiting) != 0 {
			t.Errorf("%d proposals in %d places wait", b.p.count, len(b.p.waiting))
		}
		b.settle()
	})
}

// TestPacerModel has many shards come, go, be slow, and forget proposals, and shows that each that waits is asked in time, and
// none twice.
func TestPacerModel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		p := newPacer()
		list := racers(p, 9)
		since := map[*racer]time.Time{} // when it could have gone
		for step := range 50_000 {
			r := list[rng.IntN(len(list))]
			switch rng.IntN(6) {
			case 0, 1:
				r.add(1 + rng.IntN(3))
			case 2:
				if r.count > 0 {
					r.add(-1)
				}
			case 3:
				if r.round != 0 && (r != list[0] || rng.IntN(20) == 0) {
					r.settle()
				}
			case 4:
				time.Sleep(time.Duration(rng.IntN(200)) * time.Microsecond)
				synctest.Wait()
			}
			sum := 0
			for i, r := range list {
				had := r.round
				went := r.goes()
				p.mu.Lock()
				count := r.count
				p.mu.Unlock()
				switch {
				case went && had != 0:
					t.Fatalf("step %d: two turns at once", step)
				case r.round != 0 && r.number == 0:
					r.settle()
				}
				switch {
				case count == 0 || r.round != 0:
					delete(since, r)
				case since[r].IsZero():
					since[r] = time.Now()
				case time.Since(since[r]) > 2*roundTime+gatherTime:
					t.Fatalf("step %d: shard %d waits for %v", step, i, time.Since(since[r]))
				}
				sum += count
			}
			p.mu.Lock()
			if p.count != sum || p.unanswered < 0 || p.flying < 0 || len(p.waiting) > len(list) {
				t.Fatalf("step %d: %d wait, counted %d; %d unanswered, %d under way", step, sum, p.count, p.unanswered, p.flying)
			}
			p.mu.Unlock()
		}
		if p.round < 200 {
			t.Errorf("%d rounds", p.round)
		}
	})
}

func mustPush(t *testing.T, q *queue, c command.Command) *proposal {
	t.Helper()
	p := newProposal([]command.Command{c})
	if err := q.push(p); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestQueueTurns shows that the queues of a node go in turn, and that one that was granted a turn and has nothing for it, or
// ends, lets the others go.
func TestQueueTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer()
		a, b := newQueue(p), newQueue(p)
		push := func(q *queue) *proposal { return mustPush(t, q, set("k", "v")) }
		took := func(q *queue) (round uint64, n int) {
			batch, cmds, round := q.next()
			if len(batch) != len(cmds) {
				t.Fatalf("%d proposals, %d commands", len(batch), len(cmds))
			}
			return round, len(batch)
		}
		push(a)
		round, n := took(a)
		if n != 1 || round == 0 {
			t.Fatalf("took %d in round %d", n, round)
		}
		push(a)
		forgotten := push(b)
		if _, n := took(b); n != 0 {
			t.Fatal("b went beside a")
		}
		a.settled(round, 1)
		time.Sleep(gatherTime)
		synctest.Wait()
		b.forget(forgotten)
		round, n = took(a)
		if n != 1 {
			t.Fatal("a has no turn")
		}
		if _, n := took(b); n != 0 {
			t.Fatal("took what was forgotten")
		}
		a.settled(round, 1)
		began := time.Now()
		push(b)
		for n = 0; n == 0; round, n = took(b) {
			<-b.wake
		}
		if waited := time.Since(began); waited > gatherTime {
			t.Fatalf("b waited for %v", waited)
		}
		b.settled(round, 1)

		time.Sleep(gatherTime)
		push(a)
		a.close(errClosed) // with a turn
		push(b)
		synctest.Wait()
		time.Sleep(gatherTime)
		synctest.Wait()
		if _, n = took(b); n != 1 {
			t.Fatal("b waits for a, which is closed")
		}
		if p.count != 0 || len(p.waiting) != 0 {
			t.Errorf("%d proposals in %d places wait", p.count, len(p.waiting))
		}
	})
}

// TestQueueWakes shows that the loop is woken when nothing is under way and nothing waits any more, for it has to look when keys
// end; also when what waited was forgotten while another shard's round went on.
func TestQueueWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer()
		a, b := newQueue(p), newQueue(p)
		push := func(q *queue) *proposal { return mustPush(t, q, set("k", "v")) }
		woken := func(q *queue) bool {
			select {
			case <-q.wake:
				return true
			default:
				return false
			}
		}
		push(a)
		push(b)
		woken(a)
		_, _, round := a.next()
		a.settled(round, 1)
		if !woken(a) {
			t.Error("not woken by its last entry")
		}
		time.Sleep(gatherTime)
		synctest.Wait()
		woken(b)
		_, _, other := b.next()
		push(a) // b's round goes on
		time.Sleep(roundTime)
		synctest.Wait()
		woken(a)
		if _, _, round = a.next(); round == 0 {
			t.Fatal("a has no turn")
		}
		late := push(a)
		a.settled(round, 1)
		b.settled(other, 1)
		if woken(a) {
			t.Error("woken though it is not its turn")
		}
		a.forget(late)
		if !woken(a) {
			t.Error("not woken when the last one was forgotten")
		}
	})
}

// TestQueueHeld shows that while writes are held back what is light goes whoever's turn it is, and that the turn is kept for
// the others; and that a second entry goes beside one when much waits.
func TestQueueHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer()
		a, b := newQueue(p), newQueue(p)
		push := func(q *queue, c command.Command) { mustPush(t, q, c) }
		a.hold(true)
		push(a, set("k", "v"))
		<-a.wake // a turn
		push(a, get("k"))
		<-a.wake // because it is light
		batch, _, round := a.next()
		if len(batch) != 1 || !batch[0].light || round != 0 {
			t.Fatalf("took %d in round %d while writes are held", len(batch), round)
		}
		push(b, set("k", "v"))
		time.Sleep(roundTime) // a's turn is not taken
		synctest.Wait()
		<-b.wake
		batch, _, other := b.next()
		if len(batch) != 1 {
			t.Fatal("b waits for a, which holds writes back")
		}
		a.settled(0, 1)
		b.settled(other, 1)
		a.hold(false)
		batch, _, round = a.next()
		if len(batch) != 1 || batch[0].light || round == 0 || round == other {
			t.Fatalf("took %d in round %d, which is not kept", len(batch), round)
		}
		large := strings.Repeat("v", secondBytes)
		for len(a.wake) > 0 {
			<-a.wake
		}
		push(a, set("k", large))
		<-a.wake
		push(a, set("l", "v"))
		if batch, _, second := a.next(); len(batch) != 2 || second != 0 {
			t.Fatalf("took %d in round %d beside an entry", len(batch), second)
		}
		push(a, set("k", large))
		if batch, _, _ := a.next(); len(batch) != 0 {
			t.Fatal("a third entry")
		}
		a.settled(round, 1)
		<-a.wake
		if batch, _, _ := a.next(); len(batch) != 1 {
			t.Fatal("nothing goes beside the second entry")
		}
		a.settled(0, 2)
		a.settled(0, 1)
		if p.count != 0 || p.unanswered != 0 {
			t.Errorf("%d wait, %d are unanswered", p.count, p.unanswered)
		}
	})
}
