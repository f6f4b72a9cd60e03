package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/abacusdb/abacus/bench/peers/internal/dataset"
)

// store is a system without servers: it keeps the data set in a map, and says what was done with it.
type store struct {
	noServers
	mu  sync.Mutex // guards has
	has map[string][]byte
	did []string
	// wrong is added to answers of jobs over records, and of tasks.
	wrong int64
	slow  time.Duration
}

type noServers struct{ p Procs }

func (noServers) Start(context.Context, Config) error { return nil }
func (noServers) Settled(context.Context) error       { return nil }
func (noServers) Leader() int                         { return -1 }
func (noServers) Version(string) string               { return "" }
func (n *noServers) Procs() *Procs                    { return &n.p }

func (d *store) Connect(int, int) (Client, error) { return d, nil }
func (d *store) Close()                           {}
func (d *store) Put(_ context.Context, k string, v []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !bytes.Equal(d.has[k], v) {
		return fmt.Errorf("put of %s changes %s to %s", k, d.has[k], v)
	}
	return nil
}

func (d *store) Get(_ context.Context, k string, _ bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.has[k] == nil {
		return errMissing
	}
	return nil
}

func (d *store) Range(context.Context, string, int, func(string, []byte)) (int, error) {
	return 0, errUnsupported
}

func (d *store) Load(_ context.Context, n int, key func(int) string, rec func(int) []byte) error {
	d.did = append(d.did, "load")
	for i := range n {
		d.has[key(i)] = rec(i)
	}
	return nil
}

func (d *store) Tasks() []Task {
	sum := func(name string) func(context.Context) (int64, error) {
		return func(context.Context) (sum int64, err error) {
			d.did = append(d.did, name)
			for _, v := range d.has {
				sum += dataset.ScanN(v)
			}
			return sum + d.wrong, nil
		}
	}
	return []Task{
		{Name: "late", Run: sum("late"), Prepare: func(context.Context, int) error { d.did = append(d.did, "prepare"); return nil }},
		{Name: "sum", Run: sum("sum")},
		{Name: "count", Run: func(context.Context) (int64, error) { d.did = append(d.did, "count"); return int64(len(d.has)), nil }, Counts: true},
	}
}

func (d *store) Job(ctx context.Context, j Job) (a JobAnswer, err error) {
	if err := sleep(ctx, d.slow); err != nil {
		return a, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for k, v := range d.has {
		if strings.HasPrefix(k, j.Prefix) {
			a.Records++
			a.Value += dataset.ScanN(v)
		}
	}
	if a.Records > 0 {
		a.Value += d.wrong
	}
	return a, nil
}

// computeSession is one over peers that are there already.
func computeSession(t *testing.T, peers ...Driver) (*session, *bytes.Buffer) {
	t.Helper()
	var out bytes.Buffer
	s := &session{Settings: defaultSettings(), id: "s", out: &out}
	s.Runs, s.Records, s.Dur, s.Conns, s.C, s.JSON = 2, 2000, 100*time.Millisecond, 2, []int{4}, filepath.Join(t.TempDir(), "runs.jsonl")
	for i, d := range peers {
		s.peers = append(s.peers, &peer{name: fmt.Sprintf("p%d", i), d: d, s: s, cl: map[string][]Client{}})
	}
	return s, &out
}

// kept are the records of a session.
func kept(t *testing.T, s *session) (rs []Record) {
	t.Helper()
	b, err := os.ReadFile(s.JSON)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		var r Record
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatal(err)
		}
		rs = append(rs, r)
	}
	return rs
}

// Every way of summing is timed twice a run, what stores more comes after all that must not see it, and a job over nothing is timed without
// and with records that are none of it.
func TestCompute(t *testing.T) {
	d := &store{has: map[string][]byte{}}
	plain := &struct{ Driver }{&store{has: map[string][]byte{}}} // cannot compute
	s, out := computeSession(t, d, plain)
	if err := s.compute(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := []string{"load", "sum", "sum", "count", "count", "sum", "sum", "count", "count", "prepare", "late", "late", "late", "late"}; !slices.Equal(d.did, want) {
		t.Errorf("it did %v, want %v", d.did, want)
	}
	what := map[string]int{}
	for _, r := range kept(t, s) {
		what[fmt.Sprint(r.Peer, " ", r.Op, " ", r.Task, " ", r.Records)]++
		if r.Op == "compute" && (r.Values["seconds"] <= 0 || r.Values["first_seconds"] <= 0) {
			t.Errorf("%s took %v", r.Task, r.Values)
		}
		if r.Op == "nokeys" && (r.Values["jobs"] < 1 || r.Values["p99_ms"] < r.Values["p50_ms"]) {
			t.Errorf("over no keys: %v", r.Values)
		}
	}
	for _, k := range []string{"p0 nokeys  0", "p0 nokeys  2000", "p0 compute sum 2000", "p0 compute count 2000", "p0 compute late 2000"} {
		if what[k] != s.Runs {
			t.Errorf("%s: %d records, want %d", k, what[k], s.Runs)
		}
	}
	if len(what) != 5 || !strings.Contains(out.String(), "p1              compute unsupported") {
		t.Errorf("%v, and %s", what, out)
	}

	d = &store{has: map[string][]byte{}, wrong: 1}
	s, _ = computeSession(t, d)
	if err := s.compute(t.Context()); err == nil || !strings.Contains(err.Error(), "the answer is 999001, want 999000") {
		t.Errorf("a wrong sum: %v", err)
	}
}

// Puts and gets are measured with and without jobs, whose sums hold while all is rewritten.
func TestJobsBesideLoad(t *testing.T) {
	d := &store{has: map[string][]byte{}}
	s, out := computeSession(t, d)
	s.Rate = 400
	if err := s.jobs(t.Context()); err != nil {
		t.Fatal(err)
	}
	rs := kept(t, s)
	if len(rs) != s.Runs {
		t.Fatalf("%d runs, want %d", len(rs), s.Runs)
	}
	for _, r := range rs {
		for _, k := range []string{"rest_put_p99_ms", "rest_get_p99_ms", "busy_put_p99_ms", "busy_get_p99_ms", "put_busy_to_rest", "get_busy_to_rest", "jobs", "job_records_s"} {
			if r.Values[k] <= 0 {
				t.Errorf("%s is %v", k, r.Values[k])
			}
		}
		for _, k := range []string{"rest_put_errors", "rest_get_errors", "busy_put_errors", "busy_get_errors"} {
			if r.Values[k] != 0 {
				t.Errorf("%s is %v", k, r.Values[k])
			}
		}
	}
	if !strings.Contains(out.String(), "records/s; put: without p50=") {
		t.Error(out)
	}

	d = &store{has: map[string][]byte{}, wrong: 1}
	s, _ = computeSession(t, d)
	s.Rate = 400
	if err := s.jobs(t.Context()); err == nil || !strings.Contains(err.Error(), "beside writes that change nothing") {
		t.Errorf("a wrong sum: %v", err)
	}
	d = &store{has: map[string][]byte{}, slow: 300 * time.Millisecond}
	s, _ = computeSession(t, d)
	s.Rate = 10
	if err := s.jobs(t.Context()); err == nil || !strings.Contains(err.Error(), "no job ended in the time") {
		t.Errorf("jobs longer than the load: %v", err)
	}
	s, _ = computeSession(t, d)
	if err := s.jobs(t.Context()); err == nil {
		t.Error("no rate was given, and nothing was said")
	}
}

// What a record says of a job's end.
func TestJobAnswer(t *testing.T) {
	for _, c := range []struct {
		record string
		want   JobAnswer
		ended  bool
		err    string
	}{
		{`{"id":"j","state":"running","records":5}`, JobAnswer{}, false, ""},
		{`{"id":"j","state":"queued"}`, JobAnswer{}, false, ""},
		{`{"id":"j","state":"succeeded","result":499500,"records":1000,"shards":[{"cached":true}]}`, JobAnswer{499500, 1000}, true, ""},
		{`{"id":"j","state":"succeeded","result":499500,"records":1000,"cached":true}`, JobAnswer{}, true, "from a cache"},
		{`{"id":"j","state":"failed","error":"no"}`, JobAnswer{}, true, "job j failed: no"},
		{`{"id":"j","state":"cancelled"}`, JobAnswer{}, true, "cancelled"},
	} {
		var r jobRecord
		if err := json.Unmarshal([]byte(c.record), &r); err != nil {
			t.Fatal(err)
		}
		got, ended, err := r.answer()
		if got != c.want || ended != c.ended || (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %+v, %v, %v", c.record, got, ended, err)
		}
	}
}
