package fold

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/big"
	"os"
	"strings"
	"testing"

	"github.com/abacusdb/abacus/compute/job"
)

var rewrite = flag.Bool("rewrite", false, "write the golden tables")

// goldenRecords are of every kind; each reduce leaves out what it cannot take.
func goldenRecords() []record {
	huge := new(big.Int).Lsh(big.NewInt(-3), 90)
	records := append(values(1, -2, 300, 0.5, huge, 1e300, math.SmallestNonzeroFloat64), values("a", "\xff")...)
	for i := range records {
		records[i].group = []byte{'a' + byte(i%2)}
	}
	return records
}

// The bytes of version 1 are fixed: nodes of two releases work on one job.
func TestTableGolden(t *testing.T) {
	const path = "testdata/tables-v1.txt"
	var lines strings.Builder
	for _, name := range everyReduce {
		for _, grouped := range []bool{false, true} {
			table, _ := over(t, reduce(t, name), grouped, goldenRecords())
			fmt.Fprintf(&lines, "%s %v %x\n", name, grouped, table.AppendBinary(nil))
		}
	}
	many := NewTable(reduce(t, "distinct"), false, 0) // a sketch
	for i := range 2 * maxHashes {
		if _, err := many.Add(nil, nil, &Value{Kind: Int, Int: int64(i)}); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Fprintf(&lines, "distinct false %x\n", many.AppendBinary(nil))
	if *rewrite {
		if err := os.WriteFile(path, []byte(lines.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if lines.String() != string(want) {
		t.Errorf("encoded as\n%s, want\n%s", lines.String(), want)
	}
}

// golden hands each golden table to do.
func golden(tb testing.TB, do func(name string, grouped bool, data []byte)) {
	tb.Helper()
	f, err := os.Open("testdata/tables-v1.txt")
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		data, err := hex.DecodeString(words[2])
		if err != nil {
			tb.Fatal(err)
		}
		do(words[0], words[1] == "true", data)
	}
	if lines.Err() != nil {
		tb.Fatal(lines.Err())
	}
}

// Whatever is done to the bytes of a table, they are refused or they are those of another table.
func TestDecodeMutated(t *testing.T) {
	golden(t, func(name string, grouped bool, data []byte) {
		r := reduce(t, name)
		for n := range data {
			if _, err := DecodeTable(data[:n], r, grouped, 10); err == nil {
				t.Errorf("%s: %d of %d bytes were decoded", name, n, len(data))
			}
			if n > 100 && n%(1+len(data)/100) > 0 {
				continue // the long ones are sums and sketches, of bytes that are much alike
			}
			for _, change := range []byte{1, 0x80, 0xff} {
				mutated := bytes.Clone(data)
				mutated[n] ^= change
				checkDecode(t, r, grouped, mutated)
			}
		}
		if _, err := DecodeTable(append(data, 0), r, grouped, 10); err == nil {
			t.Errorf("%s: a byte after the end was accepted", name)
		}
	})
}

// checkDecode shows that data is refused with a typed error, or is the one form of a table, which answers and merges.
func checkDecode(t *testing.T, r job.Reduce, grouped bool, data []byte) {
	t.Helper()
	table, err := DecodeTable(data, r, grouped, 10)
	if err != nil {
		var wrong *DecodeError
		var version *job.VersionError
		if !errors.As(err, &wrong) && !errors.As(err, &version) {
			t.Fatalf("%s: %x: %v", r.Name, data, err)
		}
		return
	}
	if again := table.AppendBinary(nil); !bytes.Equal(again, data) {
		t.Fatalf("%s: %x was encoded as %x", r.Name, data, again)
	}
	_, _, _ = table.Final()
	other := NewTable(r, grouped, MaxGroups)
	_, _ = addAll(other, goldenRecords()) // not all of them fit a collect:1
	if other.Merge(table) == nil {
		_, _, _ = other.Final()
		data := other.AppendBinary(nil)
		if _, err := DecodeTable(data, r, grouped, 100); err != nil && err.Error() != "decode job table: count too large" {
			t.Fatalf("%s: merged to %x: %v", r.Name, data, err)
		}
	}
}

// What no table holds is refused, each for its own reason.
func TestDecodeRefuses(t *testing.T) {
	for reason, c := range map[string]struct {
		reduce string
		change func(s state)
	}{
		"count too large":                    {"count", func(s state) { s.(*countState).n = maxCount + 1 }},
		"length beyond the limit or the end": {"sum", func(s state) { s.(*sumState).isum.AddBig(new(big.Int).Lsh(big.NewInt(1), 8*maxSumBytes+8)) }},
		"sum too large": {"sum", func(s state) {
			s.(*sumState).fsum = FloatSum{}
			s.(*sumState).fsum.AddTotal(new(big.Int).Lsh(big.NewInt(1), 8*maxSumBytes+1))
		}},
		"a text that must be a number":            {"min", func(s state) { s.(*extremeState).number = Value{Kind: Text} }},
		"unknown kind of value":                   {"max", func(s state) { s.(*extremeState).number = Value{Kind: Other} }},
		"a float that no record is read as":       {"min", func(s state) { s.(*extremeState).number = Value{Kind: Float, Float: math.Inf(1)} }},
		"a small integer written as a large one":  {"first", func(s state) { s.(*endState).end.value = Value{Kind: Big, Big: big.NewInt(5)} }},
		"neither yes nor no":                      {"last", func(state) {}},
		"the squares of no numbers with this sum": {"variance", func(s state) { s.(*varianceState).sum.addBig(big.NewInt(1), 4000) }},
		"a bucket of no number":                   {"histogram:log2", func(s state) { s.(*log2State).buckets[8*maxBigBytes+bucketBias] = 1 }},
		"an empty bucket":                         {"histogram:log2", func(s state) { s.(*log2State).buckets[1000] = 0 }},
		"extremes of other numbers":               {"quantile:0.5", func(s state) { s.(*quantileState).low.SetInt(1) }},
		"a float among integers":                  {"quantile:0.5", func(s state) { s.(*quantileState).floats = false }},
		"values out of order":                     {"top:7", func(s state) { l := s.(*topState).list; l[0], l[1] = l[1], l[0] }},
		"other values than counted":               {"top:7", func(s state) { s.(*topState).texts++; s.(*topState).numbers-- }},
		"hashes out of order":                     {"distinct", func(s state) { h := s.(*distinctState).hashes; h[0], h[1] = h[1], h[0] }},
		"number of hashes":                        {"distinct", func(s state) { s.(*distinctState).hashes = make([]uint64, maxHashes+2) }},
		"number of values":                        {"collect:9", func(s state) { s.(*collectState).values = make([]*Value, 10); fill(s.(*collectState).values) }},
	} {
		r := reduce(t, c.reduce)
		table, _ := over(t, r, false, goldenRecords())
		c.change(table.whole)
		data := table.AppendBinary(nil)
		if reason == "neither yes nor no" {
			data[1] = 2
		}
		var wrong *DecodeError
		if _, err := DecodeTable(data, r, false, 0); !errors.As(err, &wrong) || wrong.Reason != reason {
			t.Errorf("%s of %s: %v", reason, c.reduce, err)
		}
	}
}

func fill(values []*Value) {
	for i := range values {
		values[i] = &Value{Kind: Int, Int: int64(i)}
	}
}

// Groups are checked one by one, and what they take is bounded while they are read.
func TestDecodeRefusesGroups(t *testing.T) {
	for _, c := range []struct {
		reason, reduce string
		data           []byte
	}{
		{"too many groups", "count", []byte{1, 11}},
		{"bad number", "count", []byte{1, 0x80, 0}},
		{"truncated", "first", []byte{1, 1, 1, 'a'}},
		{"length beyond the limit or the end", "count", []byte{1, 1, 0xff, 0xff, 0xff, 0xff, 0x0f}},
		{"groups out of order", "count", []byte{1, 2, 1, 'b', 1, 1, 'a', 1}},
		{"groups out of order", "count", []byte{1, 2, 1, 'a', 1, 1, 'a', 1}},
		{"a group of nothing", "count", []byte{1, 1, 1, 'a', 0}},
		{"bytes after the end", "count", []byte{1, 0, 0}},
		{"sum not in its shortest form", "sum", []byte{1, 1, 1, 'a', 0, 1, 0, 2, 2}},
		{"integer not in its shortest form", "sum", []byte{1, 1, 1, 'a', 1, 0, 4, 0, 2}},
	} {
		var wrong *DecodeError
		if _, err := DecodeTable(c.data, reduce(t, c.reduce), true, 10); !errors.As(err, &wrong) || wrong.Reason != c.reason {
			t.Errorf("%s: %v", c.reason, err)
		}
	}
	var version *job.VersionError
	if _, err := DecodeTable([]byte{2}, reduce(t, "count"), false, 0); !errors.As(err, &version) || version.Version != 2 {
		t.Errorf("version 2: %v", err)
	}

	// Two bytes of a histogram stand for eight in memory, and more.
	bounds := make([]string, job.MaxHistogramBounds)
	for i := range bounds {
		bounds[i] = fmt.Sprint(i)
	}
	r := reduce(t, "histogram:"+strings.Join(bounds, ","))
	counts := append(make([]byte, len(bounds)), 1)
	most := MaxTableBytes / (3 + groupBytes + 8*len(counts))
	for groups, want := range map[int]string{most: "", most + 1: "decode job table: larger than a table may be"} {
		data := binary.AppendUvarint([]byte{tableVersion}, uint64(groups))
		for i := range groups {
			data = append(append(data, 3, byte(i>>16), byte(i>>8), byte(i)), counts...)
		}
		if _, err := DecodeTable(data, r, true, MaxGroups); fmt.Sprint(err) != want && (err != nil || want != "") {
			t.Errorf("%d histograms: %v", groups, err)
		}
	}
}

// Whatever is decoded is encoded as the same bytes again, and merges and answers without a panic.
func FuzzDecodeTable(f *testing.F) {
	golden(f, func(name string, grouped bool, data []byte) { f.Add(name, grouped, data) })
	full := NewTable(reduce(f, "collect:1"), false, MaxGroups)
	_, _ = addAll(full, goldenRecords())
	f.Add("collect:1", false, full.AppendBinary(nil))
	f.Fuzz(func(t *testing.T, name string, grouped bool, data []byte) {
		r, err := job.ParseReduce(name)
		if err != nil {
			return
		}
		checkDecode(t, r, grouped, data)
	})
}
