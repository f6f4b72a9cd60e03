package main

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/client/clienttest"
	"github.com/abacusdb/abacus/compute/job"
)

// These tests run the program as main does, against a cluster in memory: what
// comes on stdout, what on stderr, and the exit code.

type ran struct {
	out, info string
	code      int
}

func abacus(t *testing.T, c *clienttest.Cluster, stdin string, args ...string) ran {
	t.Helper()
	if c != nil {
		args = append([]string{"--addr", strings.Join(c.Addrs(), ",")}, args...)
	}
	var out, info bytes.Buffer
	code := run(args, strings.NewReader(stdin), &out, &info)
	return ran{out.String(), info.String(), code}
}

// check runs the program and compares stdout and the exit code; stderr must
// contain info, or be empty.
func check(t *testing.T, c *clienttest.Cluster, out, info string, code int, args ...string) {
	t.Helper()
	r := abacus(t, c, "", args...)
	if r.out != out || r.code != code || !strings.Contains(r.info, info) || (info == "" && r.info != "") {
		t.Errorf("abacus %q\nexit %d, want %d\nstdout %q\nwant   %q\nstderr %q\nwant   %q", args, r.code, code, r.out, out, r.info, info)
	}
}

func TestKeysAndValues(t *testing.T) {
	c := clienttest.New(t, 3)
	check(t, c, "", "no such key: greeting", 1, "get", "greeting")
	check(t, c, "OK\n", "", 0, "put", "greeting", "hello")
	check(t, c, "hello", "", 0, "get", "greeting")
	check(t, c, "{\n  \"key\": \"greeting\",\n  \"value\": \"hello\"\n}\n", "", 0, "get", "greeting", "-o", "json")
	check(t, c, "OK\n", "", 0, "put", "minus", "--", "-5")
	check(t, c, "-5", "", 0, "get", "minus")
	check(t, c, "-4\n", "", 0, "incr", "minus")
	check(t, c, "-14\n", "", 0, "incr", "minus", "--", "-10")
	check(t, c, "{\n  \"value\": -13\n}\n", "", 0, "incr", "minus", "-o", "json")
	check(t, c, "", "incr greeting: value is not an integer", 1, "incr", "greeting")
	check(t, c, "", "not replaced", 1, "cas", "greeting", "bye", "x")
	check(t, c, "OK\n", "", 0, "cas", "greeting", "hello", "bye")
	check(t, c, "", "exists already", 1, "put", "--if-absent", "greeting", "x")
	check(t, c, "", "does not exist", 1, "put", "--if-present", "other", "x")
	check(t, c, "2\n", "", 0, "del", "greeting", "minus", "none")
	check(t, c, "", "received 4", 2, "put", "a", "b", "c", "d")
	if r := abacus(t, c, "a\x00b\xff\n", "put", "bytes", "-"); r.code != 0 {
		t.Errorf("put from stdin: %+v", r)
	}
	check(t, c, "a\x00b\xff\n", "", 0, "get", "bytes")
	if r := abacus(t, c, "", "get", "bytes", "-o", "json"); !strings.Contains(r.out, `"value_base64": "YQBi/wo="`) {
		t.Errorf("get of bytes as JSON: %+v", r)
	}
	file := filepath.Join(t.TempDir(), "v")
	if err := os.WriteFile(file, []byte("from a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	check(t, c, "OK\n", "", 0, "put", "f", "--file", file, "--ttl", "1h")
	check(t, c, "from a file", "", 0, "get", "f")
}

func TestUsage(t *testing.T) {
	for _, tc := range []struct {
		info string
		args []string
	}{
		{"unknown command \"nosuch\" for \"abacus\"", []string{"nosuch"}},
		{"unknown command \"nosuch\" for \"abacus dev\"", []string{"dev", "nosuch"}},
		{"usage: abacus job COMMAND", []string{"job", "nosuch", "--", "more"}},
		{"dev up takes no arguments, received 3", []string{"dev", "up", "3"}},
		{"unknown command", []string{"completion", "nosuch"}},
		{"unknown command", []string{"help", "nosuch"}},
		{"unknown command", []string{"help", "job", "nosuch"}},
		{"--nodes 0", []string{"dev", "up", "--nodes", "0"}},
		{"from 30s to 720h, or off", []string{"node", "dead-after", "29s"}},
		{"want a time such as 10m", []string{"node", "dead-after", "soon"}},
		{"--replicas 0", []string{"dev", "up", "--replicas", "0"}},
		{"--base-port", []string{"dev", "up", "--base-port", "65300"}},
		{"unknown flag", []string{"get", "k", "--nosuch"}},
		{"did you mean --prefix?", []string{"job", "run", "--prefx", "a/"}},
		{"did you mean --prefix? (a value that begins with - goes behind --", []string{"job", "run", "-prefix", "a/"}},
		{"unknown shorthand flag: 'm' in -map: did you mean --map?", []string{"job", "run", "-map", "len"}},
		{"unknown flag: --nam: did you mean --name?", []string{"job", "run", "--nam", "x"}},
		{"unknown flag: --mpa\n", []string{"job", "run", "--mpa", "len"}},
		{"unknown command \"res\" for \"abacus job\": did you mean result?", []string{"job", "res", "j1"}},
		{"unknown command \"rum\" for \"abacus job\": did you mean run?", []string{"job", "rum", "--prefix", "a/"}},
		{"unknown command \"rum\" for \"abacus job\": did you mean run?", []string{"job", "rum"}},
		{"usage: abacus get KEY", []string{"get"}},
		{"del takes 1 argument or more, received none", []string{"del"}},
		{"dev kill takes 1 argument or more, received none", []string{"dev", "kill"}},
		{"the key is empty", []string{"put", "", "v"}},
		{"the key is empty", []string{"del", "a", ""}},
		{"--id: must be 1 to 64 of a-z A-Z 0-9 . _ -\n", []string{"job", "run", "--id", "a b"}},
		{"--tasks-per-replica: must be", []string{"job", "run", "--tasks-per-replica", "99"}},
		{"put greeting 'still here'", []string{"put", "greeting", "still", "here"}},
		{"did you mean --prefix num/?", []string{"scan", "num/"}},
		{"did you mean --prefix num/?", []string{"export", "num/"}},
		{"did you mean --prefix num/?", []string{"job", "run", "num/"}},
		{"-o \"csv\": it must be table, json, yaml or name", []string{"job", "submit", "-o", "csv"}},
		{"--group-by", []string{"job", "run", "--key", "user"}},
		{"--for done", []string{"job", "wait", "x", "--for", "done"}},
		{"--state over: it must be one of queued, running", []string{"job", "list", "--state", "over"}},
		{"--id: must be 1 to 64", []string{"job", "retry", "x", "--id", "a b"}},
		{"--priority: unknown \"urgent\"", []string{"job", "run", "--priority", "urgent"}},
		{"--max-groups: there are no groups", []string{"job", "run", "--max-groups", "7"}},
		{"--filter: character 5: unknown \"sufix\" (one of prefix, suffix, re, range comes here; quote a text that has \" and \" in it)\nkey sufix .jpg\n    ^\n", []string{"job", "run", "--filter", "key sufix .jpg"}},
		{"job delete takes 1 argument or more", []string{"job", "delete"}},
		{"takes no arguments", []string{"status", "foo"}},
		{"begins with -", []string{"incr", "k", "-5"}},
		{"table or json", []string{"-o", "xml", "get", "k"}},
		{"--timeout", []string{"--timeout", "0s", "get", "k"}},
		{"host:port", []string{"--addr", "nowhere", "get", "k"}},
		{"no value given", []string{"put", "k"}},
		{"--ttl", []string{"put", "k", "v", "--ttl", "-1s"}},
		{"either", []string{"put", "k", "v", "--file", "x"}},
		{"exclude", []string{"put", "k", "v", "--if-absent", "--if-present"}},
		{"64-bit", []string{"incr", "k", "many"}},
		{"--limit", []string{"scan", "--limit", "-1"}},
		{"--consistency", []string{"get", "k", "--consistency", "fresh"}},
		{"--consistency", []string{"scan", "--consistency", "stale:soon"}},
		{"--consistency", []string{"export", "--consistency", "linearizable:1s"}},
		{"--format", []string{"export", "--format", "xml"}},
		{"--format", []string{"import", "-", "--format", "xml"}},
		{"--key and --value", []string{"import", "-", "--key", "k"}},
		{"--key-width", []string{"import", "-", "--key-width", "0"}},
		{"--map", []string{"job", "run", "--map", "cube"}},
		{"--on-error", []string{"job", "run", "--on-error", "cry"}},
		{"--reduce", []string{"job", "run", "--reduce", "sum"}}, // of strings
		{"--timeout", []string{"job", "run", "--timeout", "2h"}},
		{"unknown field", []string{"job", "submit", "--file", "-"}},
		{"--file and --prefix", []string{"job", "submit", "--file", "-", "--prefix", "p"}},
		{"--file and --timeout", []string{"job", "submit", "--file", "-", "--timeout", "5s"}},
		{"exclude", []string{"export", "-o", "json", "--format", "kv"}},
		{"op \"fly\"", []string{"bench", "--op", "fly"}},
		{"--conns", []string{"bench", "--conns", "0"}},
	} {
		r := abacus(t, nil, `{"nosuch":1}`, tc.args...)
		if r.code != exitUsage || r.out != "" || !strings.Contains(r.info, tc.info) {
			t.Errorf("abacus %q: exit %d, stdout %q, stderr %q, want %q", tc.args, r.code, r.out, r.info, tc.info)
		}
	}
}

// A file that cannot be opened is no mistake in the command line.
func TestFilesThatCannotBeOpened(t *testing.T) {
	for _, args := range [][]string{{"put", "k", "--file", "/does/not/exist"}, {"import", "/does/not/exist"}, {"import", "/"}, {"job", "submit", "--file", "/does/not/exist"}, {"put", "k", "--file", "/"}, {"job", "submit", "--file", "/"}} {
		r := abacus(t, nil, "", args...)
		if r.code != exitFailed || !strings.Contains(r.info, "open "+args[len(args)-1]) || strings.Contains(r.info, "usage") {
			t.Errorf("abacus %q: exit %d, stderr %q", args, r.code, r.info)
		}
	}
}

// The shell is told which words fit, and that file names do not.
func TestCompletionOfValues(t *testing.T) {
	const noFiles = ":4\n"
	for want, args := range map[string][]string{
		"fail\nskip\ncount\n" + noFiles:                             {"job", "submit", "--on-error", ""},
		"low\nnormal\nhigh\n" + noFiles:                             {"job", "run", "--priority", ""},
		"words\n" + noFiles:                                         {"job", "run", "--flat-map", ""},
		"succeeded\nfinished\n" + noFiles:                           {"job", "wait", "--for", ""},
		"queued\nrunning\nsucceeded\nfailed\ncancelled\n" + noFiles: {"job", "list", "--state", ""},
		"table\njson\nwide\nyaml\ncsv\nname\n" + noFiles:            {"job", "list", "-o", ""},
		"lines\ncsv\njsonl\nkv\n" + noFiles:                         {"import", "--format", ""},
		"kv\njsonl\n" + noFiles:                                     {"export", "--format", ""},
		"table\njson\n" + noFiles:                                   {"get", "-o", ""},
		"uniform\nzipfian\n" + noFiles:                              {"bench", "--dist", ""},
		noFiles:                                                     {"get", ""},
		":0\n":                                                      {"import", ""},
	} {
		if r := abacus(t, nil, "", append([]string{"__complete"}, args...)...); r.out != want {
			t.Errorf("%q completes to %q, want %q", args, r.out, want)
		}
	}
}

// The help lists flags without what pflag adds to those that take no value.
func TestHelpIsPlain(t *testing.T) {
	r := abacus(t, nil, "", "put", "--help")
	for _, want := range []string{"\n  -h, --help           help for put\n", "\n      --if-absent      store", "\n      --ttl duration   let"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("the help has no line %q:\n%s", want, r.out)
		}
	}
	if r := abacus(t, nil, "", "del", "--help"); !strings.Contains(r.out, "\n  -h, --help   help for del\n") {
		t.Errorf("the help of del:\n%s", r.out)
	}
}

// A command that only has subcommands is no mistake without one, nor is help.
func TestHelp(t *testing.T) {
	for _, args := range [][]string{{}, {"dev"}, {"job"}, {"completion"}, {"help"}, {"help", "job"}, {"help", "job", "run"}, {"job", "--help"}} {
		if r := abacus(t, nil, "", args...); r.code != 0 || !strings.Contains(r.out, "Usage:") || r.info != "" {
			t.Errorf("abacus %q: exit %d, stdout %q, stderr %q", args, r.code, r.out, r.info)
		}
	}
}

// A node that the cluster does not have is a mistake in the arguments.
func TestDevNodeThatIsNone(t *testing.T) {
	dir := t.TempDir()
	c, err := proc.Create(proc.Config{Dir: dir, Abacusd: "abacusd", Nodes: 3})
	if err != nil {
		t.Fatal(err)
	}
	c.Release()
	check(t, nil, "", "\"9\" is no node: they are numbered 1 to 3", exitUsage, "dev", "kill", "9", "--dir", dir)
	if err := os.MkdirAll(filepath.Join(c.Node(1).DataDir(), "x"), 0o755); err != nil { // it was started once
		t.Fatal(err)
	}
	check(t, nil, "", "with --nodes 3", exitUsage, "dev", "up", "--nodes", "4", "--dir", dir)
	check(t, nil, "", "no node was running; \"abacus dev up --dir ", 0, "dev", "down", "--dir", dir)
	if r := abacus(t, nil, "", "dev", "status", "--dir", dir); r.code != exitFailed || !strings.Contains(r.info, "no node is running; start them with: abacus dev up --dir ") {
		t.Errorf("status of a cluster that is down: %+v", r)
	}
}

func TestFaultsHaveExitCodes(t *testing.T) {
	c := clienttest.New(t, 2)
	c.SetLeader(-1)
	check(t, c, "", "cluster unavailable", exitUnavailable, "--timeout", "1s", "put", "k", "v")
	check(t, c, "", "a majority of its replicas", exitUnavailable, "--timeout", "1s", "get", "k")
	c.SetLeader(0)
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Args[0] == "INCRBY" {
			return clienttest.Lose
		}
		return clienttest.Serve
	})
	check(t, c, "", "outcome unknown", exitUncertain, "incr", "k")
	c.Hook(nil)
	for _, n := range c.Nodes {
		n.Stop()
	}
	check(t, c, "", "abacus dev up", exitUnavailable, "--timeout", "1s", "get", "k")
	check(t, nil, "", "check the address", exitUnavailable, "--timeout", "1s", "get", "k", "--addr", "nosuch.invalid:7401")
	check(t, nil, "", "abacus dev up", exitUnavailable, "--timeout", "1s", "get", "k", "--addr", c.Nodes[0].Client)
}

// A node that takes no more clients says so and closes, having read nothing.
func TestFullNode(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			nc.Write([]byte("-ERR max number of clients reached\r\n"))
			nc.Close()
		}
	}()
	check(t, nil, "", "--max-clients", exitUnavailable, "--addr", l.Addr().String(), "--timeout", "1s", "incr", "k")
}

func TestStatus(t *testing.T) {
	c := clienttest.New(t, 2)
	r := abacus(t, c, "", "status")
	if r.code != 0 || !strings.Contains(r.out, "all is well") || !strings.Contains(r.out, c.Nodes[1].Client) {
		t.Errorf("status of a healthy cluster: %+v", r)
	}
	sick := `{"cluster_id":"x","node":"n1","replicas_wanted":3,"nodes":[{"id":"n1","alive":true,"leads":1},{"id":"n2"}],
		"shards":[{"id":3,"leader":"n1","records":5,"healthy":false,"problem":"replica n2.1 is down"},{"id":5,"leader":"n1","records":6,"healthy":false,"problem":"replica n2.1 is down"},
		{"id":4,"slots":"0-16383","leader":"","replicas":[{"id":"n1.1","node":"n1","state":"leader","voter":true,"lag":0},
		{"id":"n2.1","node":"n2","state":"down","voter":true,"lag":12}],"healthy":false,"problem":"no leader"}],"healthy":false,"notes":["a note"],"problems":["node n2 is down","shard 3: replica n2.1 is down","shard 5: replica n2.1 is down","shard 4: no leader"]}`
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Args[0] != "ABACUS.STATUS" {
			return clienttest.Serve
		}
		r.Reply.BulkString(sick)
		return clienttest.Done
	})
	r = abacus(t, c, "", "status")
	for _, want := range []string{"DOWN", "2 of 3", "n1* n2(down,-12)", " SICK\n", "at least 11 keys (1 shard not counted)", "4      0-16383  -       ?     ?",
		"\nnote: a note\nsick:\n  node n2 is down\n  shards 3, 5: replica n2.1 is down\n  shard 4: no leader\n"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("status does not say %q:\n%s", want, r.out)
		}
	}
	if r.code != 1 || r.info != "abacus: the cluster is not well\n" {
		t.Errorf("exit %d, stderr %q", r.code, r.info)
	}
	if r := abacus(t, c, "", "status", "-o", "json"); r.code != 1 || !json.Valid([]byte(r.out)) || !strings.Contains(r.info, "node n2 is down; shards 3, 5: replica n2.1 is down; and 1 more") {
		t.Errorf("as JSON: %+v", r)
	}
}

// jobs answers JOB.* with a record that ends as told at the second poll.
func jobs(c *clienttest.Cluster, end func(*job.Record)) {
	var mu sync.Mutex
	known := map[string]*job.Record{}
	polls := 0
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		mu.Lock()
		defer mu.Unlock()
		if !strings.HasPrefix(r.Args[0], "JOB.") {
			return clienttest.Serve
		}
		if r.Args[0] == "JOB.SUBMIT" {
			spec, err := job.ParseSpec([]byte(r.Args[1]))
			if err != nil {
				r.Reply.Error("BADJOB " + err.Error())
				return clienttest.Done
			}
			known[spec.ID] = &job.Record{ID: spec.ID, Spec: spec, State: job.Running}
			r.Reply.BulkString(spec.ID)
			return clienttest.Done
		}
		if r.Args[0] == "JOB.LIST" {
			list := []job.Record{}
			for _, rec := range known {
				list = append(list, *rec)
			}
			text, _ := json.Marshal(list)
			r.Reply.Bulk(text)
			return clienttest.Done
		}
		if r.Args[0] == "JOB.EXPLAIN" {
			spec, err := job.ParseSpec([]byte(r.Args[1]))
			if err != nil {
				r.Reply.Error("BADJOB " + err.Error())
				return clienttest.Done
			}
			text, _ := json.Marshal(job.Explanation{Spec: spec, Records: 2_000_000, Bytes: 3 << 20, Tasks: 5, Nodes: []string{"n1", "n2"}, Notes: []string{"worth knowing"},
				Shards: []job.ExplainedShard{{Shard: 7, Slots: "0-99", Master: "n1", Nodes: []string{"n1", "n2"}, Records: 2_000_000, Bytes: 3 << 20, Tasks: 5}}})
			r.Reply.Bulk(text)
			return clienttest.Done
		}
		rec := known[r.Args[1]]
		if rec == nil {
			r.Reply.Error("NOTFOUND no such job")
			return clienttest.Done
		}
		switch r.Args[0] {
		case "JOB.RETRY":
			known[r.Args[2]] = &job.Record{ID: r.Args[2], Spec: rec.Spec, State: job.Running}
			r.Reply.BulkString(r.Args[2])
			return clienttest.Done
		case "JOB.DELETE":
			if !rec.State.Finished() {
				r.Reply.Error("ERR job " + rec.ID + " has not ended, it is running: cancel it first")
				return clienttest.Done
			}
			delete(known, rec.ID)
			r.Reply.SimpleString("OK")
			return clienttest.Done
		case "JOB.CANCEL":
			rec.State = job.Cancelled
			r.Reply.SimpleString("OK")
			return clienttest.Done
		case "JOB.RESULT":
			if polls++; polls >= 2 {
				end(rec)
			}
		}
		text, _ := json.Marshal(rec)
		r.Reply.Bulk(text)
		return clienttest.Done
	})
}

func TestJobRun(t *testing.T) {
	value := job.Number("285")
	for _, tc := range []struct {
		name      string
		end       func(*job.Record)
		out, info string
		code      int
	}{
		{"success", func(r *job.Record) { r.State, r.Result = job.Succeeded, &value }, "285\n", "", 0},
		{"a note", func(r *job.Record) { r.State, r.Result, r.Note = job.Succeeded, &value, "no keys" }, "285\n", "note: no keys", 0},
		{"skipped", func(r *job.Record) {
			r.State, r.Result, r.Records, r.Bad, r.BadKeys = job.Succeeded, &value, 1000, 2, []string{"a", "b"}
		}, "285\n", "2 records of 1,000 did not parse and were left out, for example a, b", 0},
		{"failure", func(r *job.Record) { r.State, r.Error, r.Code = job.Failed, "it broke", job.CodeFailed }, "", "it broke", 1},
		{"no records", func(r *job.Record) { r.State, r.Code = job.Failed, job.CodeNoRecords }, "", "no records", 1},
		{"cancelled", func(r *job.Record) { r.State = job.Cancelled }, "", "cancelled", 3},
		{"time-out", func(r *job.Record) { r.State, r.Error, r.Code = job.Failed, "it took too long", job.CodeTimeout }, "", "too long", 124},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := clienttest.New(t, 2)
			jobs(c, tc.end)
			args := []string{"job", "run", "--prefix", "num/", "--as", "int", "--map", "square", "--reduce", "sum"}
			check(t, c, tc.out, tc.info, tc.code, args...)
			r := abacus(t, c, "", append(args, "-o", "json")...)
			var rec job.Record
			if err := json.Unmarshal([]byte(r.out), &rec); err != nil || r.code != tc.code || rec.Spec.Map != "square" {
				t.Errorf("as JSON: %+v, %v", r, err)
			}
		})
	}
}

// That there are no keys is said once.
func TestNoRecordsIsSaidOnce(t *testing.T) {
	c := clienttest.New(t, 1)
	jobs(c, func(r *job.Record) {
		r.State, r.Code, r.Note = job.Failed, job.CodeNoRecords, `no key begins with "none/"`
	})
	r := abacus(t, c, "", "job", "run", "--prefix", "none/", "--map", "len", "--reduce", "max")
	if r.code != exitFailed || strings.Count(r.info, "no key begins with") != 1 {
		t.Errorf("%+v", r)
	}
}

func TestJobCommands(t *testing.T) {
	c := clienttest.New(t, 2)
	value := job.Number("7")
	jobs(c, func(r *job.Record) {
		if r.State == job.Cancelled {
			return
		}
		r.State, r.Result = job.Succeeded, &value
		r.Shards = []job.ShardReport{{Shard: 3, Master: "n1", Index: 42, Done: true, Tasks: []job.TaskReport{{ID: 1, From: 0, To: 99, Done: true, Node: "n2", Role: job.RoleFollower, Attempts: 2, FailedOn: []string{"n3"}, Records: 10}}}}
	})
	check(t, c, "mine\n", "", 0, "job", "submit", "--id", "mine", "--name", "a name")
	if r := abacus(t, c, `{"id":"other","prefix":"p"}`, "job", "submit", "--file", "-"); r.out != "other\n" || r.code != 0 {
		t.Errorf("submit of a file: %+v", r)
	}
	check(t, c, "", "job wait mine", 1, "job", "result", "mine")
	check(t, c, "7\n", "", 0, "job", "wait", "mine")
	check(t, c, "7\n", "", 0, "job", "result", "mine")
	for want, args := range map[string][]string{
		"0-99   n2    follower  10       0    0   2         n3":                            {"--tasks"},
		"n2    1       0                1            0        1           10       0    0": nil,
		"name       a name":    nil,
		"state      succeeded": nil,
		`"failed_on": [`:       {"-o", "json"},
	} {
		if r := abacus(t, c, "", append([]string{"job", "status", "mine"}, args...)...); !strings.Contains(r.out, want) {
			t.Errorf("job status %v does not say %q:\n%s", args, want, r.out)
		}
	}
	if r := abacus(t, c, "", "__complete", "--addr", strings.Join(c.Addrs(), ","), "job", "status", ""); !strings.Contains(r.out, "mine\tsucceeded a name\n") {
		t.Errorf("the shell is offered %q", r.out)
	}
	check(t, c, "OK\n", "", 0, "job", "cancel", "other")
	check(t, c, "", "cancelled", 3, "job", "wait", "other")
	if r := abacus(t, c, "", "job", "list"); strings.Count(r.out, "\n") != 3 || !strings.Contains(r.out, "cancelled") {
		t.Errorf("job list:\n%s", r.out)
	}
	for _, verb := range []string{"status", "wait", "result", "cancel"} {
		check(t, c, "", "no such job", 4, "job", verb, "nosuch")
		check(t, c, "", "abacus job list", 4, "job", verb, "nosuch")
	}
}

func TestJobWaitGivesUp(t *testing.T) {
	c := clienttest.New(t, 1)
	jobs(c, func(*job.Record) {})
	check(t, c, "long\n", "", 0, "job", "submit", "--id", "long")
	check(t, c, "", "abacus job wait long", 124, "job", "wait", "long", "--timeout", "1s")
}

func TestBench(t *testing.T) {
	c := clienttest.New(t, 2)
	r := abacus(t, c, "", "bench", "--op", "mixed", "--keys", "50", "--clients", "4", "--warmup", "0s", "--duration", "100ms")
	if r.code != 0 || !strings.Contains(r.out, "p99.9") || c.Len() != 50 {
		t.Errorf("%+v, %d keys", r, c.Len())
	}
	r = abacus(t, c, "", "bench", "--op", "incr", "--rate", "500", "--prefix", "n/", "--keys", "50", "--warmup", "0s", "--duration", "200ms", "-o", "json")
	var got struct {
		Loop string
		Ops  int
	}
	if err := json.Unmarshal([]byte(r.out), &got); err != nil || got.Loop != "open" || got.Ops < 50 || got.Ops > 101 {
		t.Errorf("%+v, %v", r, err)
	}
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Args[0] == "SET" {
			r.Reply.Error("ERR full")
			return clienttest.Done
		}
		return clienttest.Serve
	})
	if r := abacus(t, c, "", "bench", "--warmup", "0s", "--duration", "50ms"); r.code != 1 || !strings.Contains(r.out, "refused: ERR") {
		t.Errorf("with nothing but errors: %+v", r)
	}
}

func TestCompletionAndVersion(t *testing.T) {
	if r := abacus(t, nil, "", "completion", "bash"); r.code != 0 || !strings.Contains(r.out, "abacus") {
		t.Errorf("completion: exit %d, %d bytes", r.code, len(r.out))
	}
	if r := abacus(t, nil, "", "version"); r.code != 0 || !strings.HasPrefix(r.out, "abacus ") {
		t.Errorf("version: %+v", r)
	}
}

func TestShownIsHarmless(t *testing.T) {
	for in, want := range map[string]string{"plain ü": "plain ü", "\x1b[31m": `"\x1b[31m"`, "a\tb": `"a\tb"`, "\xff": `"\xff"`, "": ""} {
		if got := shown(in); got != want {
			t.Errorf("%q is shown as %s, want %s", in, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", -1234567: "-1,234,567"} {
		if got := count(n); got != want {
			t.Errorf("%d is shown as %s", n, got)
		}
	}
}
