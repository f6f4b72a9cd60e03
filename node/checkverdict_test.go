package node

import (
	"strings"
	"testing"
	"time"

	"github.com/abacusdb/abacus/sharding"
)

// TestCompareReplicas: who is named. A replica is a hash, - for none, with ! behind it if it has an alarm from before.
func TestCompareReplicas(t *testing.T) {
	for _, tc := range []struct{ hashes, result, want string }{
		{"a a a", checkEqual, "equal equal equal"},
		{"a b a", checkMismatch, "equal differs! equal"},
		{"b a a", checkMismatch, "differs! equal equal"},
		{"a b c", checkMismatch, "disagrees! disagrees! disagrees!"},
		{"a b", checkMismatch, "disagrees! disagrees!"},
		{"a b -", checkMismatch, "disagrees! disagrees! not-compared"},
		{"a a -", checkEqual, "equal equal not-compared"},
		{"a - -", checkNotCompared, "alone not-compared not-compared"},
		{"- - -", checkNotCompared, "not-compared not-compared not-compared"},
		{"a", checkNotCompared, "alone"},
		{"", checkNotCompared, ""},
		{"a a b b", checkMismatch, "disagrees! disagrees! disagrees! disagrees!"}, // two of four are no majority
		{"a a b b a", checkMismatch, "equal equal differs! differs! equal"},
		{"a b c d a", checkMismatch, "disagrees! disagrees! disagrees! disagrees! disagrees!"}, // nor are two of five, though no others are more
		// What was found before: equal ends it, and nothing else does.
		{"a! a a", checkEqual, "equal equal equal"},
		{"a! b a", checkMismatch, "equal differs! equal"},
		{"-! a a", checkEqual, "not-compared! equal equal"},
		{"a! - -", checkNotCompared, "alone! not-compared not-compared"},
	} {
		var rows, before []replicaCheck
		for i, h := range strings.Fields(tc.hashes) {
			hash, alarm := strings.CutSuffix(h, "!")
			r := replicaCheck{Replica: string(rune('p' + i)), Node: string(rune('1' + i)), Hash: strings.Trim(hash, "-")}
			rows = append(rows, r)
			if alarm {
				r.Alarm = &replicaAlarm{Result: checkDiffers, Index: 3}
				before = append(before, r)
			}
		}
		result, judged := compareReplicas(rows, before, 7, time.UnixMilli(70))
		var got []string
		for _, r := range judged {
			word := strings.ReplaceAll(r.Result, " ", "-")
			if r.Alarm != nil {
				word += "!"
				fresh := r.Result == checkDiffers || r.Result == checkDisagrees
				if want := (replicaAlarm{r.Result, 7, 70, r.Hash}); fresh && *r.Alarm != want || !fresh && r.Alarm.Index != 3 {
					t.Errorf("%s: alarm %+v", tc.hashes, *r.Alarm)
				}
			}
			got = append(got, word)
		}
		if result != tc.result || strings.Join(got, " ") != tc.want {
			t.Errorf("%s: %s, %q; want %s, %q", tc.hashes, result, got, tc.result, tc.want)
		}
		for i := range rows {
			if rows[i].Result != "" || rows[i].Alarm != nil {
				t.Errorf("%s: what it was given has changed: %+v", tc.hashes, rows[i])
			}
		}
	}
}

// An alarm is of a replica that there still is: one in its place has another name.
func TestAlarmsOfReplacedReplicas(t *testing.T) {
	r := checkReport{Shard: 3, Replicas: []replicaCheck{{Replica: "n1.1"}, {Replica: "n2.1", Alarm: &replicaAlarm{Result: checkDiffers, Index: 9}}, {Replica: "n3.1", Alarm: &replicaAlarm{Result: checkDisagrees, Index: 8}}}}
	sh := sharding.Shard{ID: 3, Replicas: []sharding.Replica{{ID: "n1.1", Node: "n1"}, {ID: "n2.1", Node: "n2"}, {ID: "n3.1", Node: "n3"}}}
	got := differing(sh, r.alarms())
	if len(got) != 2 || !strings.Contains(got[0], "replica n2.1 on node n2 does not hold what the others hold (log index 9): see abacus shard check 3") || !strings.Contains(got[1], "n3.1 on node n3 holds something else than another, and no majority") {
		t.Errorf("problems %q", got)
	}
	sh.Replicas[1].ID, sh.Replicas[2] = "n2.2", sharding.Replica{ID: "n4.1", Node: "n4"}
	if got := differing(sh, r.alarms()); len(got) != 0 {
		t.Errorf("after they were replaced: %q", got)
	}
}

// TestNextCheck: at the shard's time of day, whoever asks when, a whole interval after the last one, and never later than that.
func TestNextCheck(t *testing.T) {
	const every = 24 * time.Hour
	day := time.Date(2026, 3, 7, 0, 0, 0, 0, time.UTC)
	at := func(h float64) time.Time { return day.Add(time.Duration(h * float64(time.Hour))) }
	for _, tc := range []struct {
		last, now float64
		shard     sharding.ShardID
		shards    int
		want      float64
	}{
		{5, 6, 0, 4, 24},
		{5, 6, 1, 4, 6}, // its time is 6:00
		{5, 7, 1, 4, 6}, // which has passed: it is due
		{6.1, 7, 1, 4, 30},
		{6.1, 99, 1, 4, 30}, // long overdue, once
		{6, 6, 1, 4, 30},    // at its very time
		{0.1, 3, 3, 4, 18},
		{99, 7, 1, 4, 30}, // a clock was wrong
		{5, 6, 7, 4, 18},  // more shards than there were
		{5, 6, 0, 0, 24},
	} {
		if got := nextCheck(at(tc.last), at(tc.now), every, tc.shard, tc.shards); !got.Equal(at(tc.want)) {
			t.Errorf("last %v, now %v, shard %d of %d: %v, want hour %v", tc.last, tc.now, tc.shard, tc.shards, got, tc.want)
		}
	}
	if got := nextCheck(time.Time{}, at(7), every, 2, 4); !got.Equal(at(12)) {
		t.Errorf("never: %v", got)
	}
	// Shards of one cluster are not due at once.
	seen := map[time.Time]bool{}
	for shard := range sharding.ShardID(8) {
		seen[nextCheck(day, day, every, shard, 8)] = true
	}
	if len(seen) != 8 {
		t.Errorf("8 shards are due at %d times", len(seen))
	}
}
