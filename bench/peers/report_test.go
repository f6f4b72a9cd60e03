package main

import (
	"bytes"
	"flag"
	"math"
	"os"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write the expected page anew")

// The page that is made of testdata/results.jsonl: medians, spread and ratios of each
// operation, a row measured twice, one that failed, one that a peer cannot do. The numbers in
// it were worked out by hand where a test below does not.
func TestMarkdown(t *testing.T) {
	b, err := os.ReadFile("testdata/results.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	res, err := readResults(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	got := res.markdown()
	const file = "testdata/results.md"
	if *rewrite {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the page differs from %s (go test -rewrite writes it anew):\n%s", file, got)
	}
	for _, s := range []string{
		"| put, 64 | `etcd` | 3 | 2000 [1000..4000] |  |",              // the median of 1000, 4000 and 2000
		"| put, 64 | `abacus` | 3 | 3000 [2500..9000] | 1.50 × etcd |", // and the ratio of medians, not the median of ratios
		"| put, 64 × pipelines of 16 | `abacus` | 1 | 50000 | 5.00 × etcd |",
		"| `abacus@16` | 1 | 30 | 3.00 × abacus@1, 1.50 × etcd |", // of this session's etcd, not of another's
		"700 [600..800] | 2.00 × etcd | 1500 [1000..2000] | 600 800 | 1000 2000 |",
		"| 2.00 [1.00..3.00] | 7 / 13 |",
		"| `etcd` | a \\| b | 3 | 500 | 2.000 [1.250..2.250] | 8.00 |", // to the job's median in this session, 0.25
		"| `etcd` | a \\| b | 1 | 250 | 4.000 | – |",                   // where there is no job
		"| `abacus` | 1000 | 1 | 13.50 | 20.50 | 31.0 | 77 |",
		"| 1999 | 60 | 550 [500..600] | 10.00 [10.00..10.00] | 15.00 [12.00..18.00] | 1.50 [1.20..1.80] |",
		"**Not measured:** idle: it broke",
	} {
		if !strings.Contains(got, s) {
			t.Errorf("the page does not say %q", s)
		}
	}
	if strings.Contains(got, "99999") {
		t.Error("the page has the row that was measured again")
	}
}

func TestResultsRefuseWhatTheyDoNotKnow(t *testing.T) {
	for _, s := range []string{`{"kind":"ran"}`, `{}`, `x`} {
		if _, err := readResults(strings.NewReader(s)); err == nil {
			t.Errorf("%s: no error", s)
		}
	}
}

func TestGroups(t *testing.T) {
	rec := func(session, peer string, c int, rate float64) Record {
		return Record{Session: session, Peer: peer, Op: "put", C: c, Values: map[string]float64{"rate": rate}}
	}
	gs := groups([]Record{
		rec("a", "x", 1, 10), rec("a", "y", 1, 40), rec("a", "y", 1, 20), rec("a", "x", 1, 30), rec("a", "x", 64, 500), rec("b", "x", 1, 1),
		{Session: "a", Peer: "z", Op: "put", C: 1},
	})
	if len(gs) != 5 {
		t.Fatalf("%d groups, want 5", len(gs))
	}
	m, lo, hi, n := gs[0].of("rate")
	if m != 20 || lo != 10 || hi != 30 || n != 2 {
		t.Errorf("x: %v [%v..%v] of %d", m, lo, hi, n)
	}
	if r := gs[1].ratio(gs, "x"); math.Abs(r-1.5) > 1e-9 {
		t.Errorf("y to x: %v, want 1.5", r)
	}
	if r := gs[2].ratio(gs, "y"); r != 0 {
		t.Errorf("a ratio to what the other peer did not do: %v", r)
	}
	if r := gs[3].ratio(gs, "y"); r != 0 {
		t.Errorf("a ratio to another session: %v", r)
	}
	if !gs[4].unsupported() || gs[0].unsupported() {
		t.Error("unsupported is wrong")
	}
	if s := gs[4].line(gs); !strings.Contains(s, "unsupported") {
		t.Error(s)
	}
	if s := gs[1].line(gs); !strings.Contains(s, "30 [20..40]/s x1.50") {
		t.Error(s)
	}
	missing := &group{runs: []Record{{Values: map[string]float64{"v": 5}}, {Values: map[string]float64{}}}}
	if m, _, _, n := missing.of("v"); m != 5 || n != 1 {
		t.Errorf("a run without the value counts as %v of %d", m, n)
	}
}

// Each row of the suite is a session that can be run.
func TestSuiteRows(t *testing.T) {
	for _, quick := range []bool{false, true} {
		names := map[string]bool{}
		for _, row := range suite {
			s := suiteSettings(quick)
			row.set(&s)
			if err := s.validate(); err != nil {
				t.Errorf("%s: %v", row.name, err)
			}
			if names[row.name] {
				t.Errorf("two rows are called %s", row.name)
			}
			names[row.name] = true
			for _, p := range s.Peers {
				if system, v, err := parsePeer(p); err != nil {
					t.Errorf("%s: %v", row.name, err)
				} else if _, err := drivers[system](v); err != nil {
					t.Errorf("%s: %s: %v", row.name, p, err)
				}
			}
			if s.Nodes != 3 || s.VSize != 256 || s.Conns != 16 {
				t.Errorf("%s: %d nodes, %d B, %d connections", row.name, s.Nodes, s.VSize, s.Conns)
			}
		}
	}
}
