package job

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func texts(r Record) (list []string) {
	for _, e := range r.Events {
		list = append(list, e.Text)
	}
	return list
}

// What is logged is bounded in number and length, the oldest goes first and is counted, and a copy of the record does not see it.
func TestLogIsBounded(t *testing.T) {
	var r Record
	now := time.UnixMilli(1000)
	for i := range MaxEvents {
		r.Log(now, fmt.Sprint(i))
	}
	before := r
	r.Log(now, strings.Repeat("ü", MaxEventBytes))
	r.Log(now, "last")
	if len(r.Events) != MaxEvents || r.EventsOmitted != 2 || r.Events[0].Text != "2" || r.Events[MaxEvents-1] != (Event{1000, "last"}) {
		t.Errorf("%d events, %d omitted, %v to %v", len(r.Events), r.EventsOmitted, r.Events[0], r.Events[len(r.Events)-1])
	}
	if long := r.Events[MaxEvents-2].Text; len(long) > MaxEventBytes || !utf8.ValidString(long) || !strings.HasSuffix(long, "ü…") {
		t.Errorf("%d bytes: %q", len(long), long)
	}
	if len(before.Events) != MaxEvents || before.EventsOmitted != 0 || before.Events[0].Text != "0" || before.Events[99].Text != "99" {
		t.Error("a copy of the record has changed")
	}
}

// Two copies of a record that go on apart do not write into each other.
func TestLogOfCopies(t *testing.T) {
	var r Record
	for range 3 { // the fourth would fit behind them
		r.Log(time.UnixMilli(1), "both")
	}
	a, b := r, r
	a.Log(time.UnixMilli(1), "a")
	b.Log(time.UnixMilli(1), "b")
	if a.Events[3].Text != "a" || b.Events[3].Text != "b" {
		t.Errorf("%v and %v", a.Events, b.Events)
	}
}

// The life of a job as its versions tell it, each thing once.
func TestLogSince(t *testing.T) {
	shards := func(attempts int, failed ...string) []ShardReport {
		return []ShardReport{
			{Shard: 1, Attempts: 1, Tasks: []TaskReport{{ID: 0, FailedOn: failed}, {ID: 1, FailedOn: failed}}},
			{Shard: 2, Attempts: attempts, Tasks: []TaskReport{{ID: 0, FailedOn: failed}}},
		}
	}
	versions := []Record{
		{State: Running, Shards: shards(1)},
		{State: Running, Shards: shards(1, "n2")},
		{State: Running, Shards: shards(2, "n2", "n3")},
		{State: Running, Shards: shards(2, "n2", "n3"), Rounds: 2},
		{State: Failed, Shards: shards(2, "n2", "n3"), Rounds: 2, Error: "7 records are bad", Records: 10, Bad: 7, BadKeys: []string{"a", "b\x1b", "c", "d", "e", "f", "g"}},
		{State: Failed, Shards: shards(2, "n2", "n3"), Rounds: 2, Error: "7 records are bad", Records: 10, Bad: 7},
	}
	old := Record{State: Running}
	old.Log(time.UnixMilli(1), "started by n1")
	for i, v := range versions {
		v.LogSince(old, time.UnixMilli(int64(i+2)))
		old = v
	}
	want := []string{
		"started by n1",
		"node n2 failed 3 tasks of shards 1, 2, which other replicas do",
		"asked again: shard 2",
		"node n3 failed 3 tasks of shards 1, 2, which other replicas do",
		"slots changed hands while it ran: round 2, all shards are asked again",
		`7 of 10 records could not be read as they should, for example "a", "b\x1b", "c", "d", "e" and 2 more`,
		"failed: 7 records are bad",
	}
	if got := texts(old); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	again := Record{State: Running, Shards: []ShardReport{{Shard: 1, Attempts: 2, Trouble: "too much is pinned there"}, {Shard: 4, Attempts: 3}, {Shard: 5, Attempts: 1, Trouble: "old"}}}
	again.LogSince(Record{State: Running, Shards: []ShardReport{{Shard: 4, Attempts: 2}}}, time.UnixMilli(1))
	if got := texts(again); !slices.Equal(got, []string{"asked again: shards 1, 4; shard 1: too much is pinned there"}) {
		t.Errorf("why a shard was asked again: %q", got)
	}
	slow := func(backups ...int) (r Record) {
		r.State = Running
		for i, n := range backups {
			r.Shards = append(r.Shards, ShardReport{Shard: uint32(i), Attempts: 1, Tasks: []TaskReport{{Backups: n}}})
		}
		return r
	}
	twice := slow(1, 0, 2)
	twice.LogSince(slow(1, 0, 1), time.UnixMilli(1))
	thrice := slow(2, 1, 2)
	thrice.LogSince(twice, time.UnixMilli(2))
	again2 := slow(3, 3, 3) // as a new coordinator sees it
	if again2.LogSince(Record{State: Running}, time.UnixMilli(3)); len(again2.Events) > 0 {
		t.Errorf("told again: %q", texts(again2))
	}
	if got := texts(thrice); !slices.Equal(got, []string{"a second node was given 1 task of shard 2, for the first was slow or not heard of", "a second node was given 2 tasks of shards 0, 1, for the first was slow or not heard of"}) {
		t.Errorf("slow tasks: %q", got)
	}
	done := Record{State: Succeeded, Records: 10, Progress: Progress{Tasks: 3, Shards: 2}}
	done.LogSince(Record{State: Running}, time.UnixMilli(1))
	if got := texts(done); !slices.Equal(got, []string{"succeeded: 10 records in 3 tasks on 2 shards"}) {
		t.Errorf("an end without trouble: %q", got)
	}
}

// A record as full as it may be keeps its events: they are not what is left out.
func TestFullLogFits(t *testing.T) {
	r := Record{ID: "x"}
	for range MaxEvents {
		r.Log(time.UnixMilli(1), strings.Repeat("\x01", MaxEventBytes)) // six bytes each in JSON
	}
	r.Shards = []ShardReport{{Tasks: make([]TaskReport, 10_000)}}
	raw, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := DecodeRecord(raw)
	if err != nil || len(back.Events) != MaxEvents || back.TasksOmitted != 10_000 {
		t.Errorf("%d events, %d tasks omitted, %v", len(back.Events), back.TasksOmitted, err)
	}
}

// A list of a thousand jobs has room for their results only if they are small.
func TestSummary(t *testing.T) {
	small, large := Number("1"), Document("["+strings.Repeat("1,", SummaryResult)+"1]")
	for _, v := range []Value{small, large} {
		r := Record{ID: "x", State: Succeeded, Result: &v, Shards: make([]ShardReport, 1), Events: make([]Event, 1), BadKeys: []string{"k"}}
		if s := r.Summary(); s.ID != "x" || s.Shards != nil || s.Events != nil || s.BadKeys != nil || (s.Result != nil) != (v == small) {
			t.Errorf("%+v", s)
		}
	}
}
