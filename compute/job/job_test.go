package job

import (
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseSpecDefaults(t *testing.T) {
	got, err := ParseSpec([]byte(`{"prefix":"num/"}`))
	if err != nil {
		t.Fatal(err)
	}
	want := Spec{Prefix: "num/", As: "string", Map: "value", Reduce: "count", OnError: "fail"}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got.Timeout() != DefaultTimeout {
		t.Errorf("timeout %s, want %s", got.Timeout(), DefaultTimeout)
	}
	got, err = ParseSpec([]byte(`{"id":"a.B_1-","name":"squares","prefix":"","as":"int","map":"square","reduce":"sum","on_error":"skip","timeout_ms":1500,"tasks_per_replica":3}`))
	if err != nil {
		t.Fatal(err)
	}
	want = Spec{ID: "a.B_1-", Name: "squares", As: "int", Map: "square", Reduce: "sum", OnError: "skip", TimeoutMillis: 1500, TasksPerReplica: 3}
	if got != want || got.Timeout() != 1500*time.Millisecond {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// Each bad spec names the field that is wrong.
func TestParseSpecRefuses(t *testing.T) {
	for _, c := range []struct{ spec, field string }{
		{``, "spec"},
		{`null`, "spec"},
		{`[]`, "spec"},
		{`"x"`, "spec"},
		{`{"prefix":"a"} {"prefix":"b"}`, "spec"},
		{`{"prefix":"a"`, "spec"},
		{"{\"prefix\":\"\xff\"}", "spec"},
		{`{"prefix":"` + strings.Repeat("a", MaxSpecBytes) + `"}`, "spec"},
		{`{"Prefix":"a"}`, "Prefix"},
		{`{"reducer":"sum"}`, "reducer"},
		{`{"prefix":7}`, "prefix"},
		{`{"timeout_ms":"5s"}`, "timeout_ms"},
		{`{"timeout_ms":1.5}`, "timeout_ms"},
		{`{"timeout_ms":-1}`, "timeout_ms"},
		{`{"timeout_ms":3600001}`, "timeout_ms"},
		{`{"tasks_per_replica":17}`, "tasks_per_replica"},
		{`{"tasks_per_replica":-1}`, "tasks_per_replica"},
		{`{"id":"a b"}`, "id"},
		{`{"id":"a/b"}`, "id"},
		{`{"id":"` + strings.Repeat("a", 65) + `"}`, "id"},
		{`{"name":"` + strings.Repeat("a", 129) + `"}`, "name"},
		{`{"prefix":"` + strings.Repeat("a", 1025) + `"}`, "prefix"},
		{`{"as":"integer"}`, "as"},
		{`{"map":"cube"}`, "map"},
		{`{"map":"json:"}`, "map"},
		{`{"as":"json","map":"json:@pretty"}`, "map"},
		{`{"as":"json","map":"json:a|b"}`, "map"},
		{`{"as":"json","map":"json:{a,b}"}`, "map"},
		{`{"as":"json","map":"json:` + strings.Repeat("a", 1025) + `"}`, "map"},
		{`{"reduce":"median"}`, "reduce"},
		{`{"on_error":"ignore"}`, "on_error"},
		// Combinations that no data could answer.
		{`{"as":"int","map":"json:a"}`, "map"},
		{`{"as":"string","map":"square"}`, "map"},
		{`{"as":"json","map":"square"}`, "map"},
		{`{"as":"string","reduce":"sum"}`, "reduce"},
		{`{"reduce":"mean"}`, "reduce"},
		{`{"as":"int","map":"key","reduce":"sum"}`, "reduce"},
	} {
		_, err := ParseSpec([]byte(c.spec))
		var wrong *SpecError
		if !errors.As(err, &wrong) {
			t.Errorf("%.80s: error %v, want a SpecError", c.spec, err)
		} else if wrong.Field != c.field || wrong.Reason == "" {
			t.Errorf("%.80s: %v, want field %s", c.spec, wrong, c.field)
		}
	}
}

func TestParseSpecAccepts(t *testing.T) {
	for _, spec := range []string{
		`{}`,
		`{"as":"json","map":"json:a.0.b"}`,
		`{"as":"json","map":"json:tags.#","reduce":"sum"}`,
		`{"as":"json","map":"json:\\@type","reduce":"max"}`,
		`{"as":"json","reduce":"sum"}`,
		`{"map":"len","reduce":"mean"}`,
		`{"map":"key","reduce":"max"}`,
		`{"as":"float","map":"square","reduce":"mean"}`,
	} {
		if _, err := ParseSpec([]byte(spec)); err != nil {
			t.Errorf("%s: %v", spec, err)
		}
	}
}

func TestValue(t *testing.T) {
	for _, c := range []struct {
		v    Value
		json string
		text string
	}{
		{Number("285"), `285`, "285"},
		{Number("340282366920938463463374607431768211456"), `340282366920938463463374607431768211456`, "340282366920938463463374607431768211456"},
		{Number("-1.5e+300"), `-1.5e+300`, "-1.5e+300"},
		{Text("12"), `"12"`, "12"},
		{Text(`a "quoted" ü`), `"a \"quoted\" ü"`, `a "quoted" ü`},
		{Text(""), `""`, ""},
		{Document(`{"0.5":12345678901234567890123,"b":[1.50,{}]}`), `{"0.5":12345678901234567890123,"b":[1.50,{}]}`, `{"0.5":12345678901234567890123,"b":[1.50,{}]}`},
		{Document(`[]`), `[]`, `[]`},
		// What encoding/json escapes is printed as it was; what only looks like an escape stays.
		{Document(`["<a&b>","\\u003c","\""]`), `["\u003ca\u0026b\u003e","\\u003c","\""]`, `["<a&b>","\\u003c","\""]`},
	} {
		data, err := json.Marshal(c.v)
		if err != nil || string(data) != c.json {
			t.Errorf("%v: marshalled as %s, %v; want %s", c.v, data, err, c.json)
		}
		var back Value
		if err := json.Unmarshal(data, &back); err != nil || back != c.v || back.String() != c.text {
			t.Errorf("%s: read back as %+v, %v", data, back, err)
		}
	}
	for _, bad := range []string{`true`, `null`, `{`, `[1`, `[1,]`} {
		if err := json.Unmarshal([]byte(bad), new(Value)); err == nil {
			t.Errorf("%s was read as a value", bad)
		}
	}
}

func sampleRecord() Record {
	result := Number("285")
	return Record{
		ID: "j1", Spec: Spec{ID: "j1", Prefix: "num/", As: "int", Map: "square", Reduce: "sum", OnError: "fail"},
		State: Succeeded, Epoch: 2, Coordinator: "n1", SubmittedMillis: 1000, StartedMillis: 1001, FinishedMillis: 1100,
		Result: &result, Progress: Progress{Shards: 1, ShardsDone: 1, Tasks: 1, TasksDone: 1, Records: 10}, Records: 10,
		Shards: []ShardReport{{Shard: 0, Master: "n1", Index: 42, Done: true, Attempts: 1, Tasks: []TaskReport{
			{ID: 0, From: 0, To: 16383, Done: true, Node: "n2", Role: RoleFollower, Index: 43, Attempts: 2, FailedOn: []string{"n3"}, Records: 10, Millis: 7}}}},
	}
}

// The stored form is fixed: a record written by an older release must stay readable.
func TestRecordGolden(t *testing.T) {
	rec := sampleRecord()
	data, err := rec.Encode()
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/record-v1")
	if err != nil {
		t.Fatal(err)
	}
	if string(data) != strings.TrimSuffix(string(want), "\n") {
		t.Errorf("encoded as\n%q, want\n%q", data, want)
	}
	back, err := DecodeRecord(data)
	if err != nil || !reflect.DeepEqual(back, rec) {
		t.Errorf("read back as %+v, %v", back, err)
	}
}

func TestDecodeRecordRefuses(t *testing.T) {
	var version *VersionError
	if _, err := DecodeRecord([]byte("\x02{}")); !errors.As(err, &version) || version.Version != 2 {
		t.Errorf("version 2: %v", err)
	}
	for _, bad := range []string{"", "\x01", "\x01{", "\x01[]"} {
		if _, err := DecodeRecord([]byte(bad)); err == nil {
			t.Errorf("%q was decoded", bad)
		}
	}
}

// A record that would not fit the ledger loses its tasks' reports, counted, and nothing else.
func TestEncodeLeavesOutTasks(t *testing.T) {
	rec := sampleRecord()
	task := rec.Shards[0].Tasks[0]
	for range 5000 {
		rec.Shards[0].Tasks = append(rec.Shards[0].Tasks, task)
	}
	data, err := rec.Encode()
	if err != nil || len(data) > MaxRecordBytes {
		t.Fatalf("%d bytes, %v", len(data), err)
	}
	back, err := DecodeRecord(data)
	if err != nil || back.TasksOmitted != 5001 || len(back.Shards[0].Tasks) != 0 || back.Result.String() != "285" {
		t.Errorf("read back %+v, %v", back, err)
	}
	if len(rec.Shards[0].Tasks) != 5001 || rec.TasksOmitted != 0 {
		t.Error("Encode changed the caller's record")
	}
	rec.Note = strings.Repeat("x", MaxRecordBytes)
	if _, err := rec.Encode(); err == nil {
		t.Error("a record over the limit was encoded")
	}
}

func TestRecordErr(t *testing.T) {
	for _, c := range []struct {
		rec  Record
		want error
	}{
		{Record{State: Succeeded}, nil},
		{Record{State: Queued}, ErrUnfinished},
		{Record{State: Running}, ErrUnfinished},
		{Record{State: Cancelled}, ErrCancelled},
		{Record{State: Failed, Code: CodeNoRecords}, ErrNoRecords},
		{Record{State: Failed, Code: CodeTimeout}, ErrTimeout},
	} {
		if err := c.rec.Err(); !errors.Is(err, c.want) {
			t.Errorf("%s %s: %v, want %v", c.rec.State, c.rec.Code, err, c.want)
		}
	}
	failed := Record{ID: "j1", State: Failed, Code: CodeBadRecords, Error: "3 bad"}
	var e *FailedError
	if !errors.As(failed.Err(), &e) || e.Code != CodeBadRecords || e.Reason != "3 bad" {
		t.Errorf("failed job: %v", failed.Err())
	}
}

// The share is of slots, so that a task that is cut in two leaves it as it is; and of all when all is done.
func TestSumOfShares(t *testing.T) {
	r := Record{Shards: []ShardReport{{Tasks: []TaskReport{{From: 0, To: 99, Done: true, Records: 7, Bytes: 70}, {From: 100, To: 199, Share: 0.5, Records: 3, Bytes: 30}}}, {}}}
	want := Progress{Shards: 2, Tasks: 2, TasksDone: 1, Records: 10, Bytes: 100, Share: 0.375}
	if r.Sum(); r.Progress != want {
		t.Errorf("%+v, want %+v", r.Progress, want)
	}
	tasks := &r.Shards[0].Tasks
	(*tasks)[1].To, (*tasks)[1].Share = 174, 2.0/3
	*tasks = append(*tasks, TaskReport{From: 175, To: 199})
	want.Tasks = 3
	if r.Sum(); r.Progress != want {
		t.Errorf("cut in two: %+v, want %+v", r.Progress, want)
	}
	before := r
	if r.DropRunning(); r.Progress != (Progress{Shards: 2, Tasks: 3, TasksDone: 1, Records: 7, Bytes: 70, Share: 0.25}) {
		t.Errorf("of what is done: %+v", r.Progress)
	}
	if before.Shards[0].Tasks[1].Records != 3 {
		t.Error("a copy has changed")
	}
	for n := range 30 {
		if all := (Record{Shards: slices.Repeat([]ShardReport{{Done: true}}, n)}); n > 0 {
			if all.Sum(); all.Progress.Share != 1 {
				t.Errorf("%d shards are done: %v", n, all.Progress.Share)
			}
		}
	}
}
