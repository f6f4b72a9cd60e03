package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/client/clienttest"
)

// checking answers "shard check" with the first report of a list, and "shard checked" with the next ones, the last of them for ever.
func checking(c *clienttest.Cluster, reports ...client.ShardCheck) (said func() []string) {
	var mu sync.Mutex
	var words []string
	st := client.Status{Healthy: true, Shards: []client.ShardStatus{{ID: 0, Healthy: true}, {ID: 1, Healthy: true}}}
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case r.Args[0] == "ABACUS.STATUS":
			text, _ := json.Marshal(st)
			r.Reply.Bulk(text)
		case r.Args[0] != "ABACUS.ADMIN":
			return clienttest.Serve
		case r.Args[len(r.Args)-1] == "7":
			r.Reply.Error("NOTFOUND there is no shard 7")
		default:
			words = append(words, strings.Join(r.Args[1:], " "))
			next := reports[0]
			reports = reports[min(1, len(reports)-1):]
			text, _ := json.Marshal(next)
			r.Reply.Bulk(text)
		}
		return clienttest.Done
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return words
	}
}

// reportOf is a comparison that has ended.
func reportOf(name string, shard uint32, result string, replicas ...client.ReplicaCheck) client.ShardCheck {
	for i := range replicas {
		replicas[i].Replica, replicas[i].Node = fmt.Sprintf("n%d.1", i+1), fmt.Sprintf("n%d", i+1)
	}
	return client.ShardCheck{Check: name, Shard: shard, State: "done", Index: 40, Result: result, Replicas: replicas}
}

// TestShardCheck: what is said to the cluster, when the waiting ends, what is shown, and the exit code.
func TestShardCheck(t *testing.T) {
	same := client.ReplicaCheck{Hash: "aa", Records: 5, Result: "equal"}
	down := client.ReplicaCheck{Result: "not compared", Why: "peer unavailable"}
	alone := client.ReplicaCheck{Hash: "aa", Records: 5, Result: "alone"}
	wrong := client.ReplicaCheck{Hash: "bb", Records: 5, Result: "differs", Alarm: &client.ReplicaAlarm{Result: "differs", Index: 40}}
	known := down
	known.Alarm = &client.ReplicaAlarm{Result: "differs", Index: 12}
	split := client.ReplicaCheck{Hash: "cc", Result: "disagrees", Alarm: &client.ReplicaAlarm{Result: "disagrees", Index: 40}}
	begun := client.ShardCheck{Check: "c1", Shard: 1, State: "waiting", Replicas: []client.ReplicaCheck{}}
	under := client.ShardCheck{Check: "c1", Shard: 1, State: "running", RecordsTotal: 9, Replicas: []client.ReplicaCheck{{Records: 3}, {Records: 4}}}
	fine := reportOf("c1", 1, "equal", same, same, same)
	first := reportOf("c0", 0, "equal", same, same, same)
	none, other := client.ShardCheck{Shard: 1}, begun
	other.Check = "c2"
	failed := client.ShardCheck{Check: "c1", Shard: 1, State: "done", Error: "pin the state of shard 1: busy"}
	const header = "SHARD  INDEX  REPLICA  NODE  HASH  RECORDS  RESULT\n"
	const equal = "1      40     n1.1     n1    aa    5        equal\n1      40     n2.1     n2    aa    5        equal\n1      40     n3.1     n3    aa    5        equal\n"
	for _, tc := range []struct {
		name    string
		args    string
		reports []client.ShardCheck
		said    string
		out     string
		info    string
		code    int
	}{
		{"equal", "1", []client.ShardCheck{begun, under, fine}, "check 1, checked 1, checked 1", header + equal, "", 0},
		{"at once", "1", []client.ShardCheck{fine}, "check 1", header + equal, "", 0},
		{"lost with its leader", "1", []client.ShardCheck{begun, none, other, reportOf("c2", 1, "equal", same, same, same)}, "check 1, checked 1, check 1, checked 1", header + equal, "", 0},
		{"lost again and again", "1", []client.ShardCheck{begun, none, other, none, begun, none}, "check 1, checked 1, check 1, checked 1, check 1, checked 1", "", "its leader has changed 3 times", exitFailed},
		{"one down", "1", []client.ShardCheck{reportOf("c1", 1, "equal", same, same, down)}, "check 1",
			header + "1      40     n1.1     n1    aa    5        equal\n1      40     n2.1     n2    aa    5        equal\n1      40     n3.1     n3    -     0        not compared: peer unavailable\n", "", 0},
		{"one differs", "1", []client.ShardCheck{reportOf("c1", 1, "mismatch", same, wrong, same)}, "check 1",
			header + "1      40     n1.1     n1    aa    5        equal\n1      40     n2.1     n2    bb    5        differs\n1      40     n3.1     n3    aa    5        equal\n", "replicas differ, of shard 1", exitFailed},
		{"one differed and is down", "1", []client.ShardCheck{reportOf("c1", 1, "equal", same, known)}, "check 1",
			header + "1      40     n1.1     n1    aa    5        equal\n1      40     n2.1     n2    -     0        not compared: peer unavailable; it differed at index 12\n", "replicas differ, of shard 1", exitFailed},
		{"no majority", "1", []client.ShardCheck{reportOf("c1", 1, "mismatch", split, split)}, "check 1",
			header + "1      40     n1.1     n1    cc    0        disagrees\n1      40     n2.1     n2    cc    0        disagrees\n", "replicas differ", exitFailed},
		{"one replica", "1", []client.ShardCheck{reportOf("c1", 1, "not compared", alone)}, "check 1", header + "1      40     n1.1     n1    aa    5        alone\n", "", 0},
		{"none of the others", "1", []client.ShardCheck{reportOf("c1", 1, "not compared", alone, down)}, "check 1",
			header + "1      40     n1.1     n1    aa    5        alone\n1      40     n2.1     n2    -     0        not compared: peer unavailable\n", "nothing could be compared, of shard 1", exitUnavailable},
		{"failed", "1", []client.ShardCheck{failed}, "check 1", "SHARD  INDEX  REPLICA  NODE  HASH  RECORDS  RESULT\n1      -      -        -     -     -        failed: pin the state of shard 1: busy\n", "nothing could be compared", exitUnavailable},
		{"all", "--all", []client.ShardCheck{first, begun, fine}, "check 0, check 1, checked 1", header + strings.ReplaceAll(equal, "1      40", "0      40") + equal, "", 0},
		{"the last", "1 --last", []client.ShardCheck{fine}, "checked 1", header + equal, "", 0},
		{"the last, of none", "1 --last", []client.ShardCheck{none}, "checked 1", "SHARD  INDEX  REPLICA  NODE  HASH  RECORDS  RESULT\n1      -      -        -     -     -        never compared\n", "", 0},
		{"no such shard", "7", []client.ShardCheck{fine}, "", "", "there is no shard 7", exitNotFound},
		{"no number", "x", []client.ShardCheck{fine}, "", "", "it must be a number", exitUsage},
		{"no shard", "", []client.ShardCheck{fine}, "", "", "or --all for every one of them", exitUsage},
		{"both", "1 --all", []client.ShardCheck{fine}, "", "", "not both", exitUsage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := clienttest.New(t, 1)
			said := checking(c, slices.Clone(tc.reports)...)
			r := abacus(t, c, "", append([]string{"shard", "check"}, strings.Fields(tc.args)...)...)
			if r.code != tc.code || r.out != tc.out || !strings.Contains(r.info, tc.info) || (tc.info == "") != (r.info == "") {
				t.Errorf("exit %d, stderr %q, stdout\n%s\nwant exit %d, stdout\n%s", r.code, r.info, r.out, tc.code, tc.out)
			}
			if got := strings.ReplaceAll(strings.Join(said(), ", "), "shard ", ""); got != tc.said {
				t.Errorf("said %q, want %q", got, tc.said)
			}
		})
	}
	c := clienttest.New(t, 1)
	checking(c, reportOf("c1", 1, "mismatch", same, wrong))
	r := abacus(t, c, "", "shard", "check", "1", "-o", "json")
	var got []client.ShardCheck
	if err := json.Unmarshal([]byte(r.out), &got); err != nil || r.code != exitFailed || len(got) != 1 || got[0].Replicas[1].Alarm == nil || got[0].Result != "mismatch" {
		t.Errorf("as JSON: %v, exit %d, %s", err, r.code, r.out)
	}
}
