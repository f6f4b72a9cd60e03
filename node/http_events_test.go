package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/abacusdb/abacus/compute/job"
)

// A teller says of each version of a record what is new in it, and goes on behind what the reader has.
func TestJobTeller(t *testing.T) {
	var r job.Record
	r.State = job.Running
	kinds := func(m []message) (list []string) {
		for _, m := range m {
			list = append(list, fmt.Sprint(m.kind, m.id))
		}
		return list
	}
	var tell, again jobTeller
	again.told = 2
	step := func(want ...string) {
		t.Helper()
		got, end, err := tell.next(r)
		if !slices.Equal(kinds(got), want) || end != r.State.Finished() || err != nil {
			t.Errorf("got %v, %v, %v, want %v", kinds(got), end, err, want)
		}
	}
	r.Log(time.UnixMilli(1), "a")
	r.Log(time.UnixMilli(1), "b")
	step("log1", "log2", "job0")
	step()
	r.Progress.TasksDone++
	step("job0")
	for range job.MaxEvents + 5 {
		r.Log(time.UnixMilli(1), "c")
	}
	r.State = job.Failed
	got, end, err := tell.next(r)
	if len(got) != job.MaxEvents+2 || !end || err != nil || got[0].id != 8 || got[99].id != 107 || got[101].kind != "end" {
		t.Errorf("%d messages, %v to %v, %v", len(got), got[0], got[len(got)-1], end)
	}
	r = job.Record{State: job.Running}
	r.Log(time.UnixMilli(1), "a")
	r.Log(time.UnixMilli(1), "b")
	r.Log(time.UnixMilli(1), "c")
	if got, _, _ := again.next(r); !slices.Equal(kinds(got), []string{"log3", "job0"}) {
		t.Errorf("a reader that comes back is told %v", kinds(got))
	}
}

// life is a job that a test leads; streams of it are served at url.
type life struct {
	mu  sync.Mutex
	rec job.Record
	err error

	streams jobStreams
	srv     *httptest.Server
	ended   chan struct{} // a token for each stream that has ended
}

func newLife(t *testing.T) *life {
	l := &life{streams: newJobStreams(), ended: make(chan struct{}, 10)}
	l.rec = job.Record{ID: "j", State: job.Running}
	l.rec.Log(time.UnixMilli(1), "first")
	l.streams.every, l.streams.write = 5*time.Millisecond, 2*time.Second
	l.srv = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { l.ended <- struct{}{} }()
		first, _ := l.status(r.Context())
		l.streams.serve(w, r, first, l.status)
	}))
	l.srv.Config.ReadTimeout, l.srv.Config.WriteTimeout = time.Second, time.Second
	l.srv.Config.RegisterOnShutdown(l.streams.stop)
	l.srv.Start()
	t.Cleanup(func() { l.streams.stop(); l.srv.Close() })
	return l
}

func (l *life) status(context.Context) (job.Record, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rec, l.err
}

func (l *life) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

func (l *life) open(t *testing.T) *bufio.Scanner {
	t.Helper()
	resp, err := http.Get(l.srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Fatalf("content type %q", ct)
	}
	return bufio.NewScanner(resp.Body)
}

// until reads on to a line that begins with want; the lines before it are returned.
func (l *life) until(t *testing.T, s *bufio.Scanner, want string) (before []string) {
	t.Helper()
	for s.Scan() {
		if strings.HasPrefix(s.Text(), want) {
			return before
		}
		before = append(before, s.Text())
	}
	t.Fatalf("the stream ended (%v) before %q, after %q", s.Err(), want, before)
	return nil
}

// A stream outlives the server's time-outs and a ledger that does not answer, and ends with the job.
func TestJobStream(t *testing.T) {
	l := newLife(t)
	l.streams.beat = 10 * time.Millisecond
	s := l.open(t)
	l.until(t, s, `data: {"at_ms":1,"text":"first"}`)
	l.until(t, s, `data: {"id":"j"`)
	for began := time.Now(); time.Since(began) < 1500*time.Millisecond; {
		l.until(t, s, ": still here")
	}
	l.change(func() { l.err = errors.New("shard 0 has no leader") })
	l.until(t, s, ": still here")
	l.change(func() { l.err = nil; l.rec.Log(time.UnixMilli(2), "second\n\nevent: x"); l.rec.State = job.Succeeded })
	l.until(t, s, "id: 2")
	l.until(t, s, `data: {"at_ms":2,"text":"second\n\nevent: x"}`)
	l.until(t, s, "event: end")
	if l.until(t, s, `data: {"state":"succeeded"}`); s.Scan() && s.Text() != "" || s.Scan() {
		t.Errorf("after the end: %q", s.Text())
	}
	<-l.ended
}

// What ends a stream before the job: its reader goes or does not read, the right to see the job is lost, the stream is old, the node stops.
func TestJobStreamEnds(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, l *life){
		"the reader goes": func(t *testing.T, l *life) {
			ctx, cancel := context.WithCancel(t.Context())
			req, err := http.NewRequestWithContext(ctx, "GET", l.srv.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			cancel()
			resp.Body.Close()
		},
		"the reader does not read": func(t *testing.T, l *life) {
			nc, err := net.Dial("tcp", l.srv.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { nc.Close() })
			fmt.Fprint(nc, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			stop := make(chan struct{})
			t.Cleanup(func() { close(stop) })
			go func() { // until no buffer on the way has room
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					case <-time.After(time.Millisecond):
						l.change(func() { l.rec.Note = strings.Repeat(fmt.Sprint(i%10), 1<<20) })
					}
				}
			}()
		},
		"the right is lost": func(t *testing.T, l *life) { l.open(t); l.change(func() { l.err = errStreamDenied }) },
		"it is old":         func(t *testing.T, l *life) { l.streams.life = 20 * time.Millisecond; l.open(t) },
		"the node stops": func(t *testing.T, l *life) {
			l.open(t)
			if err := l.srv.Config.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		},
		"it is only asked for the head": func(t *testing.T, l *life) {
			resp, err := http.Head(l.srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLife(t)
			end(t, l)
			select {
			case <-l.ended:
			case <-time.After(20 * time.Second):
				t.Error("the stream goes on")
			}
		})
	}
}

// Jobs over HTTP beside submit, status and result: explained, watched, tried again, deleted; and a node has so many streams and no more.
func TestHTTPJobs(t *testing.T) {
	cfg := testConfig(t, "n1")
	cfg.Bootstrap = true
	n := open(t, cfg)
	untilHealthy(t, n)
	for i := range 10 {
		put(t, n, fmt.Sprintf("num/%d", i), fmt.Sprint(i))
	}
	expect := func(code int, method, path, body string) string {
		t.Helper()
		req, err := http.NewRequest(method, "http://"+n.Addrs().HTTP+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != code {
			t.Fatalf("%s %s: %d %s, want %d", method, path, resp.StatusCode, text, code)
		}
		return string(text)
	}
	const spec = `{"id":"mine","prefix":"num/","as":"int","map":"square","reduce":"sum"}`
	plan := expect(200, "POST", "/v1/jobs?explain=1", spec)
	for _, want := range []string{`"on_error":"fail"`, `"master":"n1"`, `"nodes":["n1"]`, `"tasks":`} {
		if !strings.Contains(plan, want) {
			t.Errorf("the explanation has no %s: %s", want, plan)
		}
	}
	expect(404, "GET", "/v1/jobs/mine", "") // it was not run
	expect(400, "POST", "/v1/jobs?explain=1", `{"reduce":"multiply"}`)
	expect(400, "POST", "/v1/jobs?explain=perhaps", spec)
	expect(400, "POST", "/v1/jobs?explian=1", spec)
	expect(202, "POST", "/v1/jobs?explain=0", spec)

	events := expect(200, "GET", "/v1/jobs/mine/events", "") // to its end
	for _, want := range []string{`submitted by way of n1"}`, `started by n1, run 1"}`, `"text":"succeeded: 10 records`, `"result":285`, "event: end\ndata: {\"state\":\"succeeded\"}\n"} {
		if !strings.Contains(events, want) {
			t.Errorf("the events have no %s:\n%s", want, events)
		}
	}
	expect(404, "GET", "/v1/jobs/nope/events", "")
	if text := expect(200, "GET", "/v1/jobs/mine/tasks", ""); !strings.Contains(text, `"node":"n1"`) || !strings.Contains(text, `"state":"succeeded"`) || strings.Contains(text, "result") {
		t.Errorf("tasks: %s", text)
	}
	expect(404, "GET", "/v1/jobs/nope/tasks", "")
	for range maxJobStreams {
		n.http.streams.room <- struct{}{}
	}
	if text := expect(503, "GET", "/v1/jobs/mine/events", ""); !strings.Contains(text, "ask another one") {
		t.Errorf("one stream too many: %s", text)
	}
	<-n.http.streams.room
	expect(200, "GET", "/v1/jobs/mine/events", "")
	expect(200, "GET", "/v1/jobs/mine/events", "") // the place is given back

	if text := expect(202, "POST", "/v1/jobs/mine/retry?id=again", ""); text != "{\"id\":\"again\"}\n" {
		t.Errorf("retry: %s", text)
	}
	expect(202, "POST", "/v1/jobs/mine/retry?id=again", "") // the answer may have been lost
	expect(200, "GET", "/v1/jobs/again/result?wait=20s", "")
	expect(400, "POST", "/v1/jobs/mine/retry?id=a%20b", "")
	expect(404, "POST", "/v1/jobs/nope/retry", "")
	expect(409, "POST", "/v1/jobs/again/cancel", "") // it has succeeded
	expect(409, "DELETE", "/v1/jobs/again", "")
	expect(204, "DELETE", "/v1/jobs/again/record", "")
	expect(404, "DELETE", "/v1/jobs/again/record", "")
	expect(404, "GET", "/v1/jobs/again", "")

	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	select { // it does not wait for streams
	case <-n.http.streams.stopping:
	case <-time.After(10 * time.Second):
		t.Error("the node has stopped, and its streams are not told")
	}
}
