package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/client/clienttest"
	"github.com/abacusdb/abacus/compute/job"
)

// A specification is read from YAML and JSON alike, and what is wrong with it is said with its line.
func TestSpecFiles(t *testing.T) {
	want := job.Spec{ID: "a", Prefix: "12", As: "int", Map: "square", Reduce: "sum", OnError: "count", MaxErrors: 5, Cache: "off", TimeoutMillis: 1500}
	for name, text := range map[string]string{
		"yaml":         "# squares\nid: a\nprefix: 12\nas: int\nmap: square\nreduce: sum\non_error: count\nmax_errors: 5\ncache: off\ntimeout_ms: 1500\nname:\n",
		"quoted":       "---\n\"id\": 'a'\nprefix: \"12\"\nas: int\nmap: |\n  square\nreduce: >\n  sum\non_error: count\nmax_errors: 5\ncache: off\ntimeout_ms: 1500\n",
		"json":         `{"id":"a","prefix":"12","as":"int","map":"square","reduce":"sum","on_error":"count","max_errors":5,"cache":"off","timeout_ms":1500}`,
		"flow of yaml": "{id: a, prefix: 12, as: int, map: square, reduce: sum, on_error: count, max_errors: 5, cache: off, timeout_ms: 1500}",
	} {
		if got, line, err := parseSpec([]byte(text)); err != nil || line != 0 || got != want {
			t.Errorf("%s: %+v, line %d, %v", name, got, line, err)
		}
	}
	for _, tc := range []struct {
		text, err string
		line      int
	}{
		{"prefix: a\nredcue: sum\n", `unknown field "redcue" (known are id, name, prefix, as, filter`, 2},
		{"prefix: a\n\nreduce: smu\n", `reduce: unknown "smu"`, 3},
		{"prefix: a\nas: int\nprefix: b\n", "field prefix is there twice, first in line 1", 3},
		{"prefix: a\nmax_groups: many\n", `max_groups: "many" is no whole number`, 2},
		{"prefix: a\nmax_groups: 1.5\n", `"1.5" is no whole number`, 2},
		{"prefix: [a]\n", "prefix: it must be one value", 1},
		{"prefix: a\nmap:\n  json: x\n", "map: it must be one value", 3},
		{"- prefix: a\n", "it must be a mapping", 1},
		{"prefix: a\n---\nprefix: b\n", "more than one document", 2},
		{"prefix: a\n as: int\n", "line 2", 0}, // the parser says it
		{"prefix: a: b\n", "mapping values are not allowed", 0},
		{"", "it is empty", 0},
		{"# nothing\n", "it is empty", 0},
		{"{\n \"prefix\": \"a\",\n \"redcue\": \"sum\"\n}", "redcue: unknown field", 3},
		{"{\n \"as\": \"int\",\n \"reduce\": \"smu\"\n}", `reduce: unknown "smu"`, 3},
		{"{\n \"prefix\": 7\n}", "prefix: a JSON number cannot be used here", 2},
		{"prefix: " + strings.Repeat("a", job.MaxSpecBytes), "spec: 65544 bytes, at most 65536", 0},
		{"prefix: &a x\nname: *a\n", "name: it must be one value", 2},
	} {
		if _, line, err := parseSpec([]byte(tc.text)); err == nil || line != tc.line || !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%.60q: line %d, %v, want line %d, %q", tc.text, line, err, tc.line, tc.err)
		}
	}
	r := abacus(t, nil, "prefix: a\nredcue: sum\n", "job", "run", "-f", "-")
	if r.code != exitUsage || !strings.Contains(r.info, `stdin:2: unknown field "redcue"`) {
		t.Errorf("%+v", r)
	}
}

// Documents become tables: their fields in their order, numbers with their digits, texts without quotes.
func TestGridOf(t *testing.T) {
	for doc, want := range map[string]string{
		`[{"group":"a,b","value":123456789012345678901234567890},{"group":"ü","value":0.10}]`: "group,value\n\"a,b\",123456789012345678901234567890\nü,0.10\n",
		`[{"a":1},{"b":{"c": [1, 2]},"a":null}]`:                                              "b,a\n,1\n\"{\"\"c\"\":[1,2]}\",null\n",
		`[{"to":1,"count":2},{"from":1,"to":2,"count":3},{"from":2,"count":4}]`:               "from,to,count\n,1,2\n1,2,3\n2,,4\n",
		`[{"a":1},{"a":2,"b":3},{"z":0}]`:                                                     "a,b,z\n1,,\n2,3,\n,,0\n",
		`[["x",1],["y",2,3]]`:                                                                 "1,2,3\nx,1,\ny,2,3\n",
		`["x",1.50,"<&>"]`:                                                                    "value\nx\n1.50\n<&>\n",
		`{"0.5":3,"0.99":1e300}`:                                                              "key,value\n0.5,3\n0.99,1e300\n",
		`[]`:                                                                                  "value\n",
		`{}`:                                                                                  "key,value\n",
	} {
		g, ok, err := gridOf(json.RawMessage(doc))
		var out strings.Builder
		if err == nil {
			err = g.writeCSV(&out)
		}
		if !ok || err != nil || out.String() != want {
			t.Errorf("%s: %v, %v\n%swant\n%s", doc, ok, err, out.String(), want)
		}
	}
	for _, one := range []string{`7`, `"text"`, `null`} {
		if _, ok, err := gridOf(json.RawMessage(one)); ok || err != nil {
			t.Errorf("%s: %v, %v", one, ok, err)
		}
	}
}

// YAML is what JSON is, to the digit, and read back it is the same.
func TestWriteYAML(t *testing.T) {
	var out strings.Builder
	doc := map[string]any{"n": json.Number("123456789012345678901234567890"), "f": json.Number("1e300"), "t": "yes: \"no\"\n", "digits": "012", "list": []string{"a"}, "none": []string{}}
	if err := writeYAML(&out, doc); err != nil {
		t.Fatal(err)
	}
	want := "digits: \"012\"\nf: 1e300\nlist:\n  - a\nn: 123456789012345678901234567890\nnone: []\nt: |\n  yes: \"no\"\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

// succeeds makes every job succeed with a value.
func succeeds(v job.Value) func(*job.Record) {
	return func(r *job.Record) {
		if r.State == job.Cancelled {
			return
		}
		r.State, r.Result, r.Records = job.Succeeded, &v, 10
		r.Shards = []job.ShardReport{{Shard: 3, Master: "n1", Index: 42, Done: true, Tasks: []job.TaskReport{
			{ID: 0, From: 0, To: 99, Done: true, Node: "n2", Role: job.RoleFollower, Attempts: 2, FailedOn: []string{"n3"}, Records: 9, Bytes: 90, Millis: 5},
			{ID: 1, From: 100, To: 199, Done: true, Node: "n1", Role: job.RoleLeader, Attempts: 1, Records: 1, Bytes: 10, Bad: 1, Millis: 2}}}}
	}
}

// A value goes alone to stdout in whatever format.
func TestJobResultFormats(t *testing.T) {
	c := clienttest.New(t, 2)
	jobs(c, succeeds(job.Number("285")))
	check(t, c, "mine\n", "", 0, "job", "submit", "--id", "mine")
	check(t, c, "285\n", "", 0, "job", "wait", "mine")
	check(t, c, "value\n285\n", "", 0, "job", "result", "mine", "-o", "csv")
	r := abacus(t, c, "", "job", "result", "mine", "-o", "yaml")
	if r.code != 0 || !strings.Contains(r.out, "\nresult: 285\n") || !strings.Contains(r.out, "\n      - id: 0\n") {
		t.Errorf("as YAML: %+v", r)
	}
}

func TestJobExplain(t *testing.T) {
	c := clienttest.New(t, 1)
	ran := false
	jobs(c, func(*job.Record) { ran = true })
	spec := []string{"--prefix", "it's/", "--as", "json", "--map", "v.price * 2.0", "--group-by", "key-part:/:2", "--reduce", "max", "--max-errors", "7", "--priority", "high", "--cache", "off"}
	for _, verb := range []string{"run", "submit"} {
		r := abacus(t, c, "", append([]string{"job", verb, "--explain"}, spec...)...)
		for _, want := range []string{
			`spec   --prefix 'it'\''s/' --as json --map 'v.price * 2.0' --group-by key-part:/:2 --reduce max --max-errors 7 --max-groups 10000 --priority high --cache off --timeout 5m0s` + "\n",
			"reads  at most 2,000,000 records, 3.0 MiB, in about 5 tasks on 2 nodes: n1 n2\n",
			"7      0-99   n1      n1 n2    2,000,000  3.0 MiB  5\n"} {
			if !strings.Contains(r.out, want) {
				t.Errorf("%s does not say %q:\n%s", verb, want, r.out)
			}
		}
		if r.code != 0 || r.info != "note: worth knowing\n" {
			t.Errorf("%s: exit %d, %s", verb, r.code, r.info)
		}
	}
	if r := abacus(t, c, "", append([]string{"job", "run", "--explain", "-o", "json"}, spec...)...); r.code != 0 || !strings.Contains(r.out, `"max_errors": 7`) || !strings.Contains(r.out, `"on_error": "count"`) {
		t.Errorf("as JSON: %+v", r)
	}
	if r := abacus(t, c, "", "job", "run", "--explain", "-o", "csv"); r.out != "shard,slots,master,read_by,records,bytes,tasks\n7,0-99,n1,n1 n2,2000000,3145728,5\n" {
		t.Errorf("as CSV: %+v", r)
	}
	if ran {
		t.Error("the job ran")
	}
}

func TestJobWaitFor(t *testing.T) {
	c := clienttest.New(t, 1)
	jobs(c, func(r *job.Record) {
		r.State, r.Error, r.Code = job.Failed, "it broke", job.CodeFailed
	})
	check(t, c, "bad\n", "", 0, "job", "submit", "--id", "bad")
	check(t, c, "", "it broke", 1, "job", "wait", "bad")
	check(t, c, "", "it broke", 1, "job", "wait", "bad", "--for", "succeeded")
	check(t, c, "", "job bad has failed: it broke\n", 0, "job", "wait", "bad", "--for", "finished")
	check(t, c, "gone\n", "", 0, "job", "submit", "--id", "gone")
	check(t, c, "OK\n", "", 0, "job", "cancel", "gone")
}

// A list is short for people, whole for programs, and of the states that are asked for.
func TestJobList(t *testing.T) {
	c := clienttest.New(t, 1)
	var recs []job.Record
	for i := range 30 {
		r := job.Record{ID: fmt.Sprintf("j%d", i), State: job.Succeeded, Spec: job.Spec{Prefix: "a,b"}.WithDefaults(), SubmittedMillis: 1000, FinishedMillis: 2500, Records: 1234567}
		switch i {
		case 1:
			r.State, r.Error = job.Failed, "it broke"
		case 29:
			r.State, r.FinishedMillis, r.Progress = job.Running, 0, job.Progress{Tasks: 7, TasksDone: 3, Records: 5}
		}
		recs = append(recs, r)
	}
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Args[0] != "JOB.LIST" {
			return clienttest.Serve
		}
		text, _ := json.Marshal(recs)
		r.Reply.Bulk(text)
		return clienttest.Done
	})
	for _, tc := range []struct {
		lines int
		info  string
		args  []string
	}{
		{22, "and 9 older jobs that have ended: see them with --all\n", nil},
		{31, "", []string{"-a"}},
		{2, "", []string{"--state", "failed"}},
		{3, "", []string{"--state", "failed,running"}},
		{29, "", []string{"--state", "succeeded"}},
		{30, "", []string{"-o", "name"}},
		{31, "", []string{"-o", "csv"}},
		{1, "", []string{"--state", "queued", "-o", "json"}}, // []
	} {
		r := abacus(t, c, "", append([]string{"job", "list"}, tc.args...)...)
		if r.code != 0 || strings.Count(r.out, "\n") != tc.lines || r.info != tc.info {
			t.Errorf("%v: exit %d, %q\n%s", tc.args, r.code, r.info, r.out)
		}
	}
	for want, format := range map[string]string{
		"\nj1,,failed,,it broke,1234567,0,1000,0,2500\n": "csv",
		"j0\nj1\n":                  "name",
		"  3/7    5          0    ": "wide",
		"1.5s":                      "wide",
		"- id: j0\n":                "yaml",
	} {
		if r := abacus(t, c, "", "job", "list", "-o", format); !strings.Contains(r.out, want) {
			t.Errorf("%s has no %q:\n%s", format, want, r.out)
		}
	}
}

func TestJobTasksAndCounters(t *testing.T) {
	c := clienttest.New(t, 1)
	jobs(c, succeeds(job.Number("7")))
	check(t, c, "mine\n", "", 0, "job", "submit", "--id", "mine")
	check(t, c, "", "received 0", 2, "job", "tasks")
	check(t, c, "7\n", "", 0, "job", "run")
	check(t, c, "7\n", "", 0, "job", "wait", "mine")
	check(t, c, "shard,master,index,task,slots,node,role,records,bad,ms,attempts,failed_on,state,bytes,task_index\n3,n1,42,0,0-99,n2,follower,9,0,5,2,n3,done,90,0\n3,n1,42,1,100-199,n1,leader,1,1,2,1,-,done,10,0\n", "", 0, "job", "tasks", "mine", "-o", "csv")
	check(t, c, "of,records,bytes,bad,tasks,done,attempts,failed,ms\ntotal,10,100,0,2,2,3,1,7\nshard 3,10,100,1,2,2,3,1,7\nnode n1,1,10,1,1,1,1,0,2\nnode n2,9,90,0,1,1,1,0,5\nnode n3,0,0,0,0,0,1,1,0\n", "", 0, "job", "counters", "mine", "-o", "csv")
	r := abacus(t, c, "", "job", "counters", "mine", "-o", "json")
	var got counters
	if err := json.Unmarshal([]byte(r.out), &got); err != nil || got.Total.Attempts != 3 || got.Nodes["n3"].Failed != 1 || got.Shards[3].Tasks != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	if r := abacus(t, c, "", "job", "tasks", "mine"); !strings.Contains(r.out, "3      n1      42     1     100-199  n1    leader    1        1    2   1         -\n") {
		t.Errorf("tasks:\n%s", r.out)
	}
	for _, verb := range []string{"tasks", "counters", "logs", "retry", "delete"} {
		check(t, c, "", "no such job", 4, "job", verb, "nosuch")
	}
}

// What a task has read that has not ended counts, and one that no node has waits only while the job runs.
func TestUnfinishedTasks(t *testing.T) {
	rec := job.Record{State: job.Running, Shards: []job.ShardReport{{Tasks: []job.TaskReport{{To: 9, Node: "n2", Role: job.RoleFollower, Records: 1234, Millis: 56, Attempts: 1}, {From: 10, To: 19}}}}}
	show := func() string {
		var out strings.Builder
		if err := printWork(&out, rec); err != nil {
			t.Fatal(err)
		}
		if err := tasksOf(rec, true).writeCSV(&out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	for state, want := range map[job.State][]string{
		job.Running: {"n2    1       0                0            1        0           1,234    0    56\n", "without a node yet: 1 task\n", ",n2,follower,1234,0,56,1,-,running,", ",waiting,"},
		job.Failed:  {"not done: 1 task\n", ",not done,"},
	} {
		rec.State = state
		got := show()
		for _, line := range want {
			if !strings.Contains(got, line) {
				t.Errorf("%s: no %q in\n%s", state, line, got)
			}
		}
	}
}

// The life of a job is told as it goes on, and afterwards.
func TestJobLogs(t *testing.T) {
	c := clienttest.New(t, 1)
	jobs(c, func(r *job.Record) {
		if r.State.Finished() {
			return
		}
		r.Log(time.UnixMilli(1000), "started by n1, run 1")
		r.Log(time.UnixMilli(1000), "failed: \x1b[2J")
		r.State, r.Code, r.Error = job.Failed, job.CodeFailed, "it broke"
	})
	check(t, c, "mine\n", "", 0, "job", "submit", "--id", "mine")
	check(t, c, "", "job mine has no events", 0, "job", "logs", "mine")
	at := time.UnixMilli(1000).Format(time.DateTime)
	want := at + "  started by n1, run 1\n" + at + "  \"failed: \\x1b[2J\"\n"
	check(t, c, want, "", 0, "job", "logs", "-f", "mine")
	check(t, c, want, "", 0, "job", "logs", "mine")
	check(t, c, "{\"at_ms\":1000,\"text\":\"started by n1, run 1\"}\n{\"at_ms\":1000,\"text\":\"failed: \\u001b[2J\"}\n", "", 0, "job", "logs", "mine", "-o", "json")
	check(t, c, "again\n", "", 0, "job", "retry", "mine", "--id", "again")
	if r := abacus(t, c, "", "job", "retry", "mine"); r.code != 0 || !strings.HasPrefix(r.out, "j-") {
		t.Errorf("retry: %+v", r)
	}
	check(t, c, "", "cancel it first", 1, "job", "delete", "mine", "again")
	check(t, c, "", "no such job", 4, "job", "status", "mine") // it was deleted before the other was refused
}

// Status follows a job until it ends; how it ended is not how status ends.
func TestJobStatusWatch(t *testing.T) {
	c := clienttest.New(t, 1)
	polls := 0
	jobs(c, func(r *job.Record) {
		if polls++; polls < 4 {
			r.Progress = job.Progress{Tasks: 4, TasksDone: polls, Shards: 1}
			return
		}
		r.State, r.Code, r.Error = job.Failed, job.CodeFailed, "it broke"
	})
	check(t, c, "mine\n", "", 0, "job", "submit", "--id", "mine")
	r := abacus(t, c, "", "job", "status", "-w", "mine")
	if r.code != 0 || !strings.Contains(r.out, "error      it broke\n") || strings.Count(r.info, "job mine is running: ") != 4 || !strings.Contains(r.info, "3 of 4 tasks") {
		t.Errorf("%+v", r)
	}
	if r := abacus(t, c, "", "job", "status", "-w", "mine", "-o", "yaml"); r.code != 0 || !strings.Contains(r.out, "error: it broke\n") || r.info != "" {
		t.Errorf("of one that has ended: %+v", r)
	}
}

// Who interrupts a run lets go of the job; it goes on.
func TestInterruptedRun(t *testing.T) {
	c := clienttest.New(t, 1)
	var cancelled atomic.Bool
	jobs(c, func(r *job.Record) {
		cancelled.Store(cancelled.Load() || r.State == job.Cancelled)
		syscall.Kill(os.Getpid(), syscall.SIGINT)
	})
	r := abacus(t, c, "", "job", "run", "--id", "mine")
	if r.code != exitInterrupted || r.out != "" || !strings.Contains(r.info, "job mine goes on; wait for it with: ") || strings.Contains(r.info, "again within") || cancelled.Load() {
		t.Errorf("%+v", r)
	}
	if r := abacus(t, c, "", "job", "logs", "-f", "mine"); r.code != exitInterrupted || r.info != "abacus: interrupted\n" {
		t.Errorf("logs: %+v", r)
	}
	if r := abacus(t, c, "", "job", "status", "-w", "mine"); r.code != exitInterrupted || !strings.HasSuffix(r.info, "records\nabacus: interrupted\n") {
		t.Errorf("status: %+v", r)
	}
}

// Who interrupts twice cancels; once, or too late, only lets go.
func TestCancelAgain(t *testing.T) {
	again, calls, fails := make(chan os.Signal, 1), 0, error(nil)
	cancel := func() error { calls++; return fails }
	var info strings.Builder
	if err := cancelAgain(again, time.Millisecond, &info, "mine", cancel); !errors.Is(err, errInterrupted) || calls != 0 || exitCode(err) != exitInterrupted {
		t.Errorf("once: %v, %d calls", err, calls)
	}
	again <- os.Interrupt
	if err := cancelAgain(again, time.Minute, &info, "mine", cancel); exitCode(err) != exitCancelled || calls != 1 || info.String() != "job mine is cancelled\n" {
		t.Errorf("twice: %v, %d calls, %q", err, calls, info.String())
	}
	again <- os.Interrupt
	fails = errors.New("nobody answers")
	if err := cancelAgain(again, time.Minute, &info, "mine", cancel); exitCode(err) != exitFailed || !strings.Contains(err.Error(), "cancel job mine: nobody answers") {
		t.Errorf("without an answer: %v", err)
	}
}

// interrupts sends this process a Ctrl-C when it has been told of it.
type interrupts struct{ told strings.Builder }

func (w *interrupts) Write(text []byte) (int, error) {
	if w.told.Write(text); strings.Contains(string(text), "Ctrl-C again within 2s") {
		syscall.Kill(os.Getpid(), syscall.SIGINT)
	}
	return len(text), nil
}

// The offer to cancel is heard, and cancels at the cluster.
func TestOfferCancel(t *testing.T) {
	c := clienttest.New(t, 1)
	var cancelled atomic.Int32
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Args[0] != "JOB.CANCEL" || r.Args[1] != "mine" {
			return clienttest.Serve
		}
		cancelled.Add(1)
		r.Reply.SimpleString("OK")
		return clienttest.Done
	})
	a := &app{addrs: strings.Join(c.Addrs(), ","), timeout: 10 * time.Second}
	cl, err := a.open()
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	w := &interrupts{}
	if err := a.offerCancel(cl, "mine", w); exitCode(err) != exitCancelled || cancelled.Load() != 1 || !strings.HasSuffix(w.told.String(), "job mine is cancelled\n") {
		t.Errorf("%v, cancelled %d times, told %q", err, cancelled.Load(), w.told.String())
	}
}

// A pace is told from what was done since somebody looks, and told anew when the job begins again.
func TestPace(t *testing.T) {
	var p pace
	start := time.Unix(0, 0)
	rec := job.Record{State: job.Queued}
	step := func(at int, want string) {
		t.Helper()
		if got := p.look(start.Add(time.Duration(at)*time.Second), rec); got != want {
			t.Errorf("after %d s: %q, want %q", at, got, want)
		}
	}
	step(0, "waits for its turn")
	rec.State, rec.Epoch = job.Running, 1
	rec.Progress = job.Progress{Tasks: 10, TasksDone: 2, Records: 1000, Bytes: 0}
	step(5, "no rate yet")
	rec.Progress = job.Progress{Tasks: 10, TasksDone: 2, Records: 3000}
	step(7, "1,000 records/s")
	rec.Progress = job.Progress{Tasks: 10, TasksDone: 6, Records: 5000, Bytes: 4 << 20}
	step(9, "1,000 records/s, 1.0 MiB/s, 4s left")
	rec.Progress = job.Progress{Tasks: 10, TasksDone: 10, Records: 9000, Bytes: 4 << 20}
	step(13, "1,000 records/s, 512.0 KiB/s, 0s left")
	rec.Epoch, rec.Progress = 2, job.Progress{Tasks: 10, TasksDone: 3, Records: 9500}
	step(14, "no rate yet")
	rec.Progress = job.Progress{Tasks: 10, TasksDone: 4, Records: 10_000}
	step(15, "500 records/s, 6s left")
	rec.Rounds, rec.Progress = 2, job.Progress{Tasks: 10, TasksDone: 4, Records: 11_000}
	step(16, "no rate yet")
	rec.Progress = job.Progress{Tasks: 10, TasksDone: 4, Records: 12_000, Share: 0.5}
	step(17, "1,000 records/s, 5s left")
	rec.Progress = job.Progress{Tasks: 10, TasksDone: 4, Records: 10_500, Share: 0.45} // what an attempt had read is lost
	step(18, "no rate yet")
	rec.Progress = job.Progress{Tasks: 10, TasksDone: 4, Records: 11_500, Share: 0.7}
	step(20, "500 records/s, 2s left")
}

// What only the cluster finds wrong with a job is wrong usage, too, and shown with its place.
func TestFaultFoundByTheCluster(t *testing.T) {
	c := clienttest.New(t, 1)
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Args[0] != "JOB.SUBMIT" {
			return clienttest.Serve
		}
		r.Reply.Error("BADJOB map: undeclared reference to 'w' (did you mean v?)\tw.price * 2.0\t^")
		return clienttest.Done
	})
	check(t, c, "", "BADJOB map: undeclared reference to 'w' (did you mean v?)\nw.price * 2.0\n^\n", exitUsage, "job", "run", "--as", "json", "--map", "w.price * 2.0")
}

// A full queue took nothing: a script may try again.
func TestFullQueue(t *testing.T) {
	err := fmt.Errorf("submit: %w", &client.ServerError{Code: "BUSY", Message: "100 jobs are waiting; try again in 5s"})
	if got := exitCode(err); got != exitUnavailable || !errors.Is(err, client.ErrBusy) {
		t.Errorf("exit code %d for %v", got, err)
	}
}
