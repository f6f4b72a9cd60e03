//go:build linux

package campaign

import (
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/abacusdb/abacus/chaos/workload"
	"github.com/abacusdb/abacus/transport/resp"
)

// eager reads at one node and does not wait for the answers before it asks again. What it has sent to a process that stands still is
// answered all at once when that goes on, while it may still take itself for a leader that it is no more: reads that began after
// writes which others have answered. Users who wait for each answer are all held up by then, with reads from before.
type eager struct {
	addr   string // of a cluster port
	dial   func(addr string) (net.Conn, error)
	load   workload.Workload
	shards int
	rng    *rand.Rand
	tl     *timeline
}

const (
	// eagerEvery is how often it asks.
	eagerEvery = 40 * time.Millisecond
	// eagerPatience is how long an answer may take until the connection is given up.
	eagerPatience = 20 * time.Second
)

// asked is a read without an answer yet.
type asked struct {
	call workload.Call
	at   time.Time
}

func (e *eager) run(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(eagerEvery):
		}
		if nc, err := e.dial(e.addr); err == nil {
			e.converse(nc, stop)
		}
	}
}

// converse asks on one connection until it breaks or stop is closed. Every read is settled when it returns.
func (e *eager) converse(nc net.Conn, stop <-chan struct{}) {
	// Room for all that may wait until the first has waited too long, so that the asking loop is never held up.
	waiting := make(chan asked, int(eagerPatience/eagerEvery)+1)
	var answers sync.WaitGroup
	answers.Go(func() {
		_ = nc.SetReadDeadline(time.Now().Add(eagerPatience))
		r := resp.NewReplyReader(nc, resp.DefaultReplyLimits())
		_, err := r.ReadReply() // to READONLY
		for a := range waiting {
			var reply resp.Reply
			if err == nil {
				_ = nc.SetReadDeadline(a.at.Add(eagerPatience)) // a closed connection fails the read as well
				reply, err = r.ReadReply()
			}
			o, told := workload.Answered, err
			if told == nil {
				told = reply.Err()
			}
			if told != nil {
				o = workload.Failed // it read nothing
			}
			if told == nil || !strings.HasPrefix(told.Error(), "MOVED ") { // the node has no replica of that shard: nothing was asked of it
				e.tl.operation("register", a.call.Op, a.at, time.Since(a.at), o, told)
			}
			a.call.Settle(o, workload.Result{Value: string(reply.Str)})
			if err != nil {
				_ = nc.Close()
			}
		}
	})
	defer func() {
		_ = nc.Close()
		close(waiting)
		answers.Wait()
	}()
	ask := func(args ...string) bool {
		_ = nc.SetWriteDeadline(time.Now().Add(time.Second))
		_, err := nc.Write(resp.AppendCommandStrings(nil, args...))
		return err == nil
	}
	if !ask("READONLY") {
		return
	}
	tick := time.NewTicker(eagerEvery)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		a := asked{e.load.Next(e.rng, e.rng.IntN(e.shards), true), time.Now()}
		a.call.Op.Reading = workload.ByFollower // READONLY
		sent := ask("GET", a.call.Op.Key)
		waiting <- a
		if !sent {
			return
		}
	}
}
