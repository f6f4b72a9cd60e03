package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/client/clienttest"
)

func TestScanAndExport(t *testing.T) {
	c := clienttest.New(t, 2)
	want := ""
	for i := range 300 {
		c.Put(fmt.Sprintf("a/%03d", i), fmt.Sprint(i))
		want += fmt.Sprintf("a/%03d\t%d\n", i, i)
	}
	c.Put("b", "\x00\xff")
	check(t, c, "b\n", "", 0, "scan", "--prefix", "b")
	check(t, c, want, "", 0, "scan", "--prefix", "a/", "--values")
	check(t, c, want, "exported 300 keys", 0, "export", "--prefix", "a/")
	if r := abacus(t, c, "", "scan", "--limit", "7"); strings.Count(r.out, "\n") != 7 || r.code != 0 {
		t.Errorf("scan with a limit: %+v", r)
	}
	check(t, c, `{"key":"b","value_base64":"AP8="}`+"\n", "exported 1 key", 0, "export", "--format", "jsonl", "--prefix", "b")
	check(t, c, `{"key":"b","value_base64":"AP8="}`+"\n", "exported 1 key", 0, "export", "-o", "json", "--prefix", "b")
	check(t, c, `{"key":"b","value_base64":"AP8="}`+"\n", "", 0, "scan", "-o", "json", "--prefix", "b", "--values")

	c.Put("a/newline", "x\ny")
	if r := abacus(t, c, "", "export", "--prefix", "a/"); r.code != 1 || !strings.Contains(r.info, "jsonl") {
		t.Errorf("export of what does not fit: %+v", r)
	}
}

// What export writes, import reads back, whatever bytes there are.
func TestExportAndImportGoRound(t *testing.T) {
	from, to := clienttest.New(t, 1), clienttest.New(t, 2)
	for _, k := range []string{"plain", "tab\tkey", "new\nline", "\xff\x00", "\"quoted\" <&>\u2028"} {
		from.Put(k, "value of "+k)
	}
	from.Put("empty", "")
	r := abacus(t, from, "", "export", "--format", "jsonl")
	if r.code != 0 {
		t.Fatal(r)
	}
	if r := abacus(t, to, r.out, "import", "-", "--format", "jsonl", "--key", "key", "--value", "value"); r.code != 0 {
		t.Fatal(r)
	}
	if from.Len() != to.Len() {
		t.Errorf("%d keys became %d", from.Len(), to.Len())
	}
	for _, k := range []string{"plain", "tab\tkey", "new\nline", "\xff\x00", "\"quoted\" <&>\u2028"} {
		if v, _ := to.Value(k); v != "value of "+k {
			t.Errorf("%q became %q", k, v)
		}
	}
}

func TestImport(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		args     []string
		want     map[string]string
		info     string // of an import that fails
	}{
		{"lines", "one\ntwo\r\n\nfour", []string{"--prefix", "w/"},
			map[string]string{"w/000000001": "one", "w/000000002": "two", "w/000000003": "", "w/000000004": "four"}, ""},
		{"lines, width", "one\n", []string{"--key-width", "2"}, map[string]string{"01": "one"}, ""},
		{"nothing", "", nil, map[string]string{}, ""},
		{"kv", "a\t1\nb\t\nc\tx\ty\r\n", []string{"--format", "kv", "--prefix", "p/"},
			map[string]string{"p/a": "1", "p/b": "", "p/c": "x\ty\r"}, ""},
		{"kv without TAB", "a\t1\nb\n", []string{"--format", "kv"}, map[string]string{"a": "1"}, "line 2: no TAB"},
		{"kv without key", "\t1\n", []string{"--format", "kv"}, map[string]string{}, "line 1: the key is empty"},
		{"csv", "\ufeffname,n,x\r\n\"Köln, <D>\",1085664,-1.50e3\n,007,0x1\n", []string{"--format", "csv", "--prefix", "c/"},
			map[string]string{"c/000000001": `{"name":"Köln, <D>","n":1085664,"x":-1.50e3}`, "c/000000002": `{"name":"","n":"007","x":"0x1"}`}, ""},
		{"csv with key", "id,n\na,1\nb,123456789012345678901234567890\na,3\n", []string{"--format", "csv", "--key", "id"},
			map[string]string{"a": `{"id":"a","n":3}`, "b": `{"id":"b","n":123456789012345678901234567890}`}, ""},
		{"csv with value", "id,n\na,1\n", []string{"--format", "csv", "--key", "id", "--value", "n"}, map[string]string{"a": "1"}, ""},
		{"csv without header", "", []string{"--format", "csv"}, map[string]string{}, "header"},
		{"csv, header twice", "a,a\n", []string{"--format", "csv"}, map[string]string{}, "twice"},
		{"csv, no such column", "a,b\n1,2\n", []string{"--format", "csv", "--key", "c"}, map[string]string{}, "there are a, b"},
		{"csv, short row", "a,b\n1,2\n3\n", []string{"--format", "csv"}, map[string]string{"000000001": `{"a":1,"b":2}`}, "line 3: not as many cells"},
		{"csv, open quote", "a\n1\n\"x\n", []string{"--format", "csv"}, map[string]string{"000000001": `{"a":1}`}, "line 3"},
		{"csv, not UTF-8", "a\nM\xfcnchen\n", []string{"--format", "csv"}, map[string]string{}, "line 2: column \"a\" is not UTF-8"},
		{"jsonl", "{\"id\":7,\"s\":\"x\"}\n\n  {\"id\":\"8\"}  \n", []string{"--format", "jsonl", "--key", "id", "--prefix", "j/"},
			map[string]string{"j/7": `{"id":7,"s":"x"}`, "j/8": `{"id":"8"}`}, ""},
		{"jsonl, numbers", "1\n[2]\n", []string{"--format", "jsonl"}, map[string]string{"000000001": "1", "000000002": "[2]"}, ""},
		{"jsonl, broken", "{}\n{\"a\":\n", []string{"--format", "jsonl"}, map[string]string{"000000001": "{}"}, "line 2: not a JSON"},
		{"jsonl, no key", "{\"b\":1}\n", []string{"--format", "jsonl", "--key", "a"}, map[string]string{}, "line 1: no field \"a\""},
		{"jsonl, no object", "5\n", []string{"--format", "jsonl", "--key", "a"}, map[string]string{}, "line 1: not a JSON object"},
		{"too large", "ok\n" + strings.Repeat("x", 1<<20+1) + "\n", nil, map[string]string{"000000001": "ok"}, "line 2: key 000000002, value of 1048577 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, packed := range []bool{false, true} {
				c := clienttest.New(t, 2)
				in := tc.in
				if packed {
					in = gz(t, in)
				}
				r := abacus(t, c, in, append([]string{"import", "-"}, tc.args...)...)
				if strings.Contains(tc.name, "no such column") && r.code != exitUsage {
					t.Errorf("exit %d, want %d", r.code, exitUsage)
				}
				if (r.code != 0) != (tc.info != "") || !strings.Contains(r.info, tc.info) || r.out != "" {
					t.Errorf("packed %v: exit %d, stdout %q, stderr %q", packed, r.code, r.out, r.info)
				}
				for k, want := range tc.want {
					if v, ok := c.Value(k); !ok || v != want {
						t.Errorf("packed %v: %s is %q, want %q", packed, k, v, want)
					}
				}
				if c.Len() != len(tc.want) {
					t.Errorf("packed %v: %d keys, want %d", packed, c.Len(), len(tc.want))
				}
			}
		})
	}
}

func gz(t *testing.T, s string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write([]byte(s))
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// A large import with faults of every kind: all records are there, and of
// those with one key the last, however batches were repeated.
func TestImportUnderFaults(t *testing.T) {
	c := clienttest.New(t, 3)
	var mu sync.Mutex
	n := 0
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Args[0] != "SET" {
			return clienttest.Serve
		}
		mu.Lock()
		defer mu.Unlock()
		switch n++; {
		case n%20_011 == 0:
			return clienttest.Lose
		case n%20_021 == 0:
			r.Reply.Error("UNCERTAIN maybe")
			return clienttest.Done
		case n%5_003 == 0:
			r.Reply.Error("TRYAGAIN later")
			return clienttest.Done
		case n%10_007 == 0:
			c.SetLeader(n % 3)
		}
		return clienttest.Serve
	})
	var in strings.Builder
	const records, keys = 60_000, 25_000
	for i := range records {
		fmt.Fprintf(&in, "k%d\t%d\n", i%keys, i)
	}
	r := abacus(t, c, in.String(), "import", "-", "--format", "kv", "-o", "json")
	var got struct{ Records, Bytes int }
	if err := json.Unmarshal([]byte(r.out), &got); err != nil || r.code != 0 || got.Records != records || !strings.Contains(r.info, "imported 60,000 records") {
		t.Fatalf("%+v, %v", r, err)
	}
	for k := range keys {
		want := k
		for want+keys < records {
			want += keys
		}
		if v, _ := c.Value(fmt.Sprint("k", k)); v != fmt.Sprint(want) {
			t.Fatalf("k%d is %s, want %d", k, v, want)
		}
	}
}

// Progress is what the cluster has acknowledged, not what was read ahead.
func TestImportProgress(t *testing.T) {
	c := clienttest.New(t, 1)
	cl, err := client.Open(client.Config{Addrs: c.Addrs()})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	in := strings.Repeat("k\tv\n", 3*batchRecords)
	for _, refuse := range []bool{false, true} {
		c.Hook(func(r *clienttest.Request) clienttest.Fate {
			if refuse && r.Args[0] == "SET" {
				r.Reply.Error("ERR full")
				return clienttest.Done
			}
			return clienttest.Serve
		})
		file := &countedReader{r: strings.NewReader(in)}
		next, err := newRecords(file, recordOptions{format: "kv", width: 9})
		if err != nil {
			t.Fatal(err)
		}
		var last pumped
		total, err := pump(t.Context(), cl, next, file.count, func(p pumped) { last = p })
		want := pumped{3 * batchRecords, 3 * batchRecords * 2, int64(len(in))}
		if refuse {
			want = pumped{}
		}
		if (err != nil) != refuse || total != want || last != want {
			t.Errorf("refused %v: %+v, reported %+v, want %+v, %v", refuse, total, last, want, err)
		}
	}
}
