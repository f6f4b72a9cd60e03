package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/abacusdb/abacus/compute/job"
)

// A job's life as server-sent events, for GET /v1/jobs/{id}/events. Three kinds:
//
//	log  something happened to the job: a job.Event. Its id is its number; who comes back with it (Last-Event-ID) is told the rest.
//	job  the job's record as it is now, without events, when it has changed
//	end  the job has ended in this state; the stream ends
//
// A stream that ends without end has met its bound, or the node stops: browsers ask again by themselves.

const (
	maxJobStreams = 64 // open at once on this node; each reads the job's record once in streamEvery
	streamEvery   = 500 * time.Millisecond
	streamBeat    = 15 * time.Second // of silence, before a comment shows that the stream lives
	streamLife    = 15 * time.Minute
	streamWrite   = 5 * time.Second // a reader that does not take what was sent is dropped
	streamAgain   = 2 * time.Second // after it a browser asks again
)

// jobStreams are the streams that are open on a node.
type jobStreams struct {
	room     chan struct{} // a token for each
	stopping chan struct{}
	stop     func() // ends all streams; the second call does nothing

	every, beat, life, write time.Duration
}

func newJobStreams() jobStreams {
	stopping := make(chan struct{})
	return jobStreams{room: make(chan struct{}, maxJobStreams), stopping: stopping, stop: sync.OnceFunc(func() { close(stopping) }),
		every: streamEvery, beat: streamBeat, life: streamLife, write: streamWrite}
}

var errStreamsFull = errors.New("this node has as many streams of events open as it may: ask another one, or for the job's record instead")

// message is one server-sent event.
type message struct {
	kind string
	id   int // 0: none
	data any
}

// jobTeller tells the versions of a job's record apart: what is new in each.
type jobTeller struct {
	told int    // events, by number
	last string // record, as it was sent
}

// next is what to tell of a record, and whether it is the last.
func (t *jobTeller) next(rec job.Record) (messages []message, end bool, err error) {
	first := rec.EventsOmitted + 1
	for i, e := range rec.Events {
		if n := first + i; n > t.told {
			messages = append(messages, message{"log", n, e})
			t.told = n
		}
	}
	rec.Events, rec.EventsOmitted = nil, 0
	raw, err := json.Marshal(rec)
	if err != nil {
		return nil, false, err
	}
	if string(raw) != t.last {
		t.last = string(raw)
		messages = append(messages, message{"job", 0, json.RawMessage(raw)})
	}
	if rec.State.Finished() {
		messages = append(messages, message{"end", 0, map[string]job.State{"state": rec.State}})
	}
	return messages, rec.State.Finished(), nil
}

// serve tells a job's life until it ends, the reader goes away or is too slow, or the node stops. status reads the
// record, and refuses who may not see it any more with errStreamDenied. first is the record as it was just read.
func (s *jobStreams) serve(w http.ResponseWriter, r *http.Request, first job.Record, status func(context.Context) (job.Record, error)) {
	ctx, cancel := context.WithTimeout(r.Context(), s.life)
	defer cancel()
	rc := http.NewResponseController(w)
	var t jobTeller
	if told, err := strconv.Atoi(r.Header.Get("Last-Event-ID")); err == nil { // what is none is 0: everything is told
		t.told = told
	}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Accel-Buffering", "no") // a proxy that gathered the stream would show it when it has ended
	if r.Method == http.MethodHead {
		return
	}
	send := func(text []byte) bool { // the server's own time-out is for requests that are answered at once
		if rc.SetWriteDeadline(time.Now().Add(s.write)) != nil {
			return false
		}
		if _, err := w.Write(text); err != nil {
			return false
		}
		return rc.Flush() == nil
	}
	if !send(fmt.Appendf(nil, "retry: %d\n\n", streamAgain.Milliseconds())) {
		return
	}
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	heard := time.Now()
	for rec := first; ; {
		messages, end, err := t.next(rec)
		if err != nil {
			return
		}
		var text []byte
		for _, m := range messages {
			text = m.append(text)
		}
		if text == nil && time.Since(heard) >= s.beat {
			text = []byte(": still here\n\n")
		}
		if text != nil {
			if heard = time.Now(); !send(text) {
				return
			}
		}
		if end {
			return
		}
		select {
		case <-tick.C:
		case <-s.stopping:
			return
		case <-ctx.Done():
			return
		}
		switch now, err := status(ctx); {
		case err == nil:
			rec = now
		case errors.Is(err, errStreamDenied):
			return
		}
		// Otherwise shard 0 does not answer now; the stream outlives that.
	}
}

// errStreamDenied: the record may not be seen, or is gone.
var errStreamDenied = errors.New("no such job for this user")

// append writes the event; JSON has no line breaks that would end it early.
func (m message) append(text []byte) []byte {
	if m.id > 0 {
		text = fmt.Appendf(text, "id: %d\n", m.id)
	}
	raw, err := json.Marshal(m.data)
	if err != nil {
		return text
	}
	return fmt.Appendf(text, "event: %s\ndata: %s\n\n", m.kind, raw)
}
