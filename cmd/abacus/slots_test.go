package main

import (
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/client/clienttest"
)

// administered answers ABACUS.ADMIN with a map of epoch 5, and ABACUS.STATUS with the first state before and then one after the other, the last of
// them for ever. It returns what was said to ABACUS.ADMIN.
func administered(c *clienttest.Cluster, states ...client.Status) (said func() []string) {
	var mu sync.Mutex
	var words []string
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		mu.Lock()
		defer mu.Unlock()
		switch r.Args[0] {
		case "ABACUS.ADMIN":
			words = append(words, strings.Join(r.Args[1:], " "))
			if r.Args[len(r.Args)-1] == "99" {
				r.Reply.Error("NOTFOUND there is no slot move 99 (any more)")
				return clienttest.Done
			}
			r.Reply.BulkString(`{"epoch":5}`)
		case "ABACUS.STATUS":
			if len(words) > 0 {
				states = states[min(1, len(states)-1):]
			}
			text, _ := json.Marshal(states[0])
			r.Reply.Bulk(text)
		default:
			return clienttest.Serve
		}
		return clienttest.Done
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return words
	}
}

// Two shards, and a third one to come, with what belongs to a split of shard 1 at a moment of it.
func splitting(epoch uint64, slots1, slots2 string, moves ...client.SlotMoveStatus) client.Status {
	st := client.Status{Epoch: epoch, Healthy: true, SlotMoves: moves, Shards: []client.ShardStatus{
		{ID: 0, Slots: "0-8191", Leader: "n1", Healthy: true}, {ID: 1, Slots: slots1, Leader: "n1", Healthy: true}}}
	if epoch >= 5 {
		st.Shards = append(st.Shards, client.ShardStatus{ID: 2, Slots: slots2, Healthy: true})
	}
	return st
}

// TestSplitAndMove: what is said to the cluster, when the waiting ends, and what is told then. That a status is of an older map, that the first one
// which is seen has the move no more, and that somebody cancels it, makes the difference.
func TestSplitAndMove(t *testing.T) {
	const all, low, high = "8192-16383", "8192-12287", "12288-16383"
	mv := client.SlotMoveStatus{ID: 7, From: 1, To: 2, Slots: high, State: "copying", Sent: 5, Total: 10}
	gone := mv
	gone.Cancelled, gone.State = true, "giving up"
	before, older := splitting(4, all, ""), splitting(4, all, "")
	under, ends, done, back := splitting(5, all, "", mv), splitting(6, all, "", gone), splitting(7, low, high), splitting(7, all, "")
	other := mv // not waited for
	other.ID, other.From, other.To, other.Slots = 8, 0, 3, "1-2"
	beside := splitting(7, low, high, other)
	for _, tc := range []struct {
		name   string
		args   string
		states []client.Status
		said   string
		out    string // how it begins
		info   string
		code   int
	}{
		{"split", "shard split 1", []client.Status{before, older, under, under, done}, "shard split 1 8192", "shard 1 is split", "", 0},
		{"split, another goes on", "shard split 1", []client.Status{before, under, beside, done}, "shard split 1 8192", "shard 1 is split", "", 0},
		{"split, not seen", "shard split 1", []client.Status{before, done}, "shard split 1 8192", "shard 1 is split", "", 0},
		{"split, cancelled", "shard split 1", []client.Status{before, under, ends, back}, "shard split 1 8192", "", "it was cancelled: slots 12288-16383 are shard 1's still", exitFailed},
		{"split, cancelled too late", "shard split 1", []client.Status{before, under, ends, done}, "shard split 1 8192", "shard 1 is split", "", 0},
		{"split, cancelled and not seen", "shard split 1", []client.Status{before, back}, "shard split 1 8192", "", "it was cancelled: nothing has changed", exitFailed},
		{"split, as JSON", "shard split 1 -o json", []client.Status{before, under, done}, "shard split 1 8192", "{\n  \"ok\": true\n}", "", 0},
		{"split, not waited for", "shard split 1 --no-wait", []client.Status{before}, "shard split 1 8192", "it has begun", "", 0},
		{"split, not waited for, as JSON", "shard split 1 --no-wait -o json", []client.Status{before}, "shard split 1 8192", "{\n  \"epoch\": 5\n}", "", 0},
		{"split all", "shard split --all", []client.Status{before, under, done}, "shard split all", "all shards are split", "", 0},
		{"split all, cancelled", "shard split --all", []client.Status{before, under, back}, "shard split all", "", "slots 12288-16383 are shard 1's still", exitFailed},
		{"move", "slots move 12288-16383 --to 2", []client.Status{before, older, under, done}, "slots move 12288-16383 2", "slots 12288-16383 are shard 2's", "", 0},
		{"move, behind", "slots move 12288-16383 2", []client.Status{before, under, back}, "slots move 12288-16383 2", "", "it was cancelled", exitFailed},
		{"move, there already", "slots move 12288 2", []client.Status{done}, "slots move 12288 2", "slots 12288 are shard 2's", "", 0},
		{"pause", "slots pause 7", []client.Status{under}, "slots pause 7", "slot move 7 stands still", "", 0},
		{"resume", "slots resume 7", []client.Status{under}, "slots resume 7", "slot move 7 goes on", "", 0},
		{"cancel", "slots cancel 7", []client.Status{under}, "slots cancel 7", "slot move 7 is given up", "", 0},
		{"cancel of none", "slots cancel 99", []client.Status{under}, "slots cancel 99", "", "there is no slot move 99", exitNotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := clienttest.New(t, 1)
			said := administered(c, slices.Clone(tc.states)...)
			r := abacus(t, c, "", strings.Fields(tc.args)...)
			if r.code != tc.code || !strings.HasPrefix(r.out, tc.out) || (tc.out == "") != (r.out == "") || !strings.Contains(r.info, tc.info) || (tc.info == "") != (r.info == "") {
				t.Errorf("exit %d, stdout %q, stderr %q", r.code, r.out, r.info)
			}
			if got := said(); !slices.Equal(got, []string{tc.said}) {
				t.Errorf("said %q, want %q", got, tc.said)
			}
		})
	}
}

// TestSlotsAreShown: in the lists, in the status, and to the shell.
func TestSlotsAreShown(t *testing.T) {
	c := clienttest.New(t, 1)
	mv := client.SlotMoveStatus{ID: 7, From: 1, To: 2, Slots: "8192-8199", State: "copying", Sent: 5 << 20, Total: 10 << 20}
	st := splitting(5, "8192-8199,9000-9001,9003-9003,9005-9005,9007-16383", "", mv)
	st.SlotMoves = append(st.SlotMoves, client.SlotMoveStatus{ID: 8, From: 0, To: 2, Slots: "0-1", State: "paused"}, client.SlotMoveStatus{ID: 9, From: 0, To: 1, Slots: "4-5", State: "giving up", Cancelled: true})
	administered(c, st)
	const table = "SLOT MOVE  SLOTS      FROM  TO  STATE\n7          8192-8199  1     2   copying: 5.0 MiB of about 10.0 MiB\n8          0-1        0     2   paused\n9          4-5        0     1   cancelled, giving up\n"
	check(t, c, table, "", 0, "slots", "list")
	for _, tc := range []struct{ args, want string }{
		{"shard list", "1      8192-8199,9000-9001,9003-9003 and 2 more ranges"},
		{"shard list", "\n\n" + table},
		{"shard list", "\n2      -  "},
		{"slots list -o json", `"slots": "8192-8199"`},
		{"status", "9003-9003 and 2 more ranges"},
		{"status", "\nnote: on the move: slots 8192-8199 from shard 1 to 2 (copying: 5.0 MiB of about 10.0 MiB); slots 0-1 from shard 0 to 2 (paused); and 1 more\nall is well\n"},
	} {
		if r := abacus(t, c, "", strings.Fields(tc.args)...); r.code != 0 || !strings.Contains(r.out, tc.want) {
			t.Errorf("%s does not say %q: %+v", tc.args, tc.want, r)
		}
	}
	for args, want := range map[string]string{
		"shard split ":         "1\tslots 8192-8199,9000-9001,9003-9003 and 2 more ranges\n",
		"slots move 0-1 ":      "2\tslots -\n",
		"slots move 0-1 --to ": "2\tslots -\n",
		"slots cancel ":        "9\tslots 4-5 from shard 0 to 1\n",
	} {
		r := abacus(t, nil, "", append([]string{"__complete", "--addr", c.Addrs()[0]}, strings.Split(args, " ")...)...)
		if !strings.Contains(r.out, want) || !strings.HasSuffix(r.out, ":4\n") {
			t.Errorf("%q completes to %q", args, r.out)
		}
	}
	administered(c, splitting(5, "8192-16383", ""))
	check(t, c, "no slots move\n", "", 0, "slots", "list")
	check(t, c, "[]\n", "", 0, "slots", "list", "-o", "json")
}

// TestSlotsUsage: nothing of this is said to the cluster.
func TestSlotsUsage(t *testing.T) {
	for _, tc := range []struct{ args, info string }{
		{"shard split", "or --all for every one"},
		{"shard split 1 --all", "not both"},
		{"shard split one", "must be a number"},
		{"shard split 1 2", "takes 1 argument, received 2"},
		{"slots move", "takes 2 arguments, received 0"},
		{"slots move 0-9", "slots move 0-9 --to 5"},
		{"slots move 0-9 1 --to 1", "not both"},
		{"slots move 0-9 --to one", "must be a number"},
		{"slots move 9-0 1", "want a slot or a range"},
		{"slots move 0-16384 1", "within 0-16383"},
		{"slots move -- -5 1", "want a slot or a range"},
		{"slots cancel", "takes 1 argument"},
		{"slots cancel seven", "must be a number"},
		{"slots nosuch", "unknown command"},
	} {
		if r := abacus(t, nil, "", strings.Fields(tc.args)...); r.code != exitUsage || r.out != "" || !strings.Contains(r.info, tc.info) {
			t.Errorf("%s: %+v, want %q", tc.args, r, tc.info)
		}
	}
}
