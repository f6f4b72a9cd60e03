package job

import (
	"bytes"
	"encoding/json"
	"testing"
)

// FuzzParseSpec shows that no text breaks the parser, and that what it takes says the same when it is written and read again.
func FuzzParseSpec(f *testing.F) {
	for _, s := range []string{
		`{"prefix":"a/","as":"int","map":"square","reduce":"sum"}`, `{"as":"json","filter":"json:age range 18..65.5 and key re '^a'","group_by":"json:c","reduce":"top:3","max_groups":5}`,
		`{"flat_map":"v.split(' ')","group_by":"key-part:/:-1","on_error":"count","max_errors":7,"priority":"low","cache":"off","timeout_ms":1}`, `{"map":"cel:\u00fc"}`, `{`, `[]`, `{"prefix":7}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseSpec(data)
		if err != nil {
			return
		}
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseSpec(text)
		if err != nil || again != s {
			t.Fatalf("%s\nread again: %+v, %v, want %+v", text, again, err, s)
		}
	})
}

// FuzzDecodeRecord shows the same of records.
func FuzzDecodeRecord(f *testing.F) {
	n := Number("1")
	raw, err := Record{ID: "x", Spec: Spec{}.WithDefaults(), State: Succeeded, Result: &n, Shards: []ShardReport{{Shard: 1, Tasks: []TaskReport{{Node: "n1"}}}}, Events: []Event{{1, "began"}}}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte{})
	f.Add([]byte{recordVersion, '{', '}'})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := DecodeRecord(data)
		if err != nil {
			return
		}
		raw, err := r.Encode()
		if err != nil {
			return // too large
		}
		again, err := DecodeRecord(raw)
		if err != nil {
			t.Fatal(err)
		}
		if more, err := again.Encode(); err != nil || !bytes.Equal(more, raw) {
			t.Fatalf("%q\nread and written again: %q, %v", raw, more, err)
		}
	})
}
