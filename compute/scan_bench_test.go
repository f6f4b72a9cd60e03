package compute

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	bolt "go.etcd.io/bbolt"

	"github.com/abacusdb/abacus/compute/fold"
	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
)

// What a worker makes of a shard's records, beside a plain bbolt cursor that walks the very same rows on one core and does the same
// with them: a million JSON records of 256 bytes. x-cursor is the worker's rate to the cursor's, 1 if all that the worker adds (the check of each row, three
// layers, a callback, what the job's spec may ask for) is free. Both are timed in turn, so that a slow moment of the machine hits both.
//
// With -short they are a thousand, which shows that it works and measures nothing.
func BenchmarkScanSum(b *testing.B) {
	records := 1_000_000
	if testing.Short() {
		records = 1_000
	}
	rows := newScanRows(b, records)
	sum := spec("json", "json:n", "sum")
	prefixed := sum
	prefixed.Prefix = "k"
	same := func() func([]byte) int64 {
		var d document
		path := compilePath("n")
		return func(value []byte) int64 {
			var it fold.Value
			if d.valid = false; !d.read(value, &path, &it) {
				return 0 // and the sum is wrong
			}
			return it.Int
		}
	}
	for _, c := range []struct {
		name  string
		spec  job.Spec
		plain func() func(value []byte) int64 // what the cursor adds up
	}{
		// Parsing costs most. The same parser on both sides: a path of a document that is checked to its end.
		{"json/parser=same", sum, same},
		// The cursor checks each row, too.
		{"json/parser=same/checked", sum, same},
		// A prefix, which all keys have here, is sought in each slot; the cursor walks all the same.
		{"json/parser=same/prefix", prefixed, same},
		// The least that finds the number: it believes that this is a document, and knows its form.
		{"json/parser=least", sum, func() func([]byte) int64 { return leastParser }},
		// Nothing is parsed: what a worker adds to a walk. The cursor does not even touch the value.
		{"count", spec("string", "value", "count"), func() func([]byte) int64 { return func([]byte) int64 { return 1 } }},
	} {
		b.Run(c.name, func(b *testing.B) {
			w, plain := rows.worker(c.spec), c.plain()
			rows.checked = strings.HasSuffix(c.name, "checked")
			want := rows.cursor(b, plain) // also brings the pages into memory
			if got := w(b); got != want {
				b.Fatalf("the worker has %d, the cursor %d", got, want)
			}
			var worker, cursor time.Duration
			for b.Loop() {
				t := time.Now()
				w(b)
				worker += time.Since(t)
				t = time.Now()
				rows.cursor(b, plain)
				cursor += time.Since(t)
			}
			each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / float64(b.N) / float64(records) }
			b.ReportMetric(0, "ns/op") // of both together: no figure
			b.ReportMetric(each(worker), "ns/record")
			b.ReportMetric(each(cursor), "ns/record-cursor")
			b.ReportMetric(each(cursor)/each(worker), "x-cursor")
		})
	}
}

func leastParser(value []byte) (n int64) {
	name := []byte(`"n":`)
	i := bytes.Index(value, name)
	if i < 0 {
		return 0
	}
	for i += len(name); i < len(value) && value[i] >= '0' && value[i] <= '9'; i++ {
		n = 10*n + int64(value[i]-'0')
	}
	return n
}

// scanRows are a shard's records twice: in a state machine, and in a copy of its file.
type scanRows struct {
	machine *fsm.FSM
	file    *bolt.DB
	checked bool // by the cursor
}

func newScanRows(b *testing.B, records int) *scanRows {
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	dir := b.TempDir()
	f, err := fsm.Open(dir, fsm.Config{})
	must(err)
	b.Cleanup(func() {
		if err := f.Close(); err != nil {
			b.Error(err)
		}
	})
	index := uint64(0)
	apply := func(cmds ...command.Command) {
		index++
		batch := command.Batch{Commands: cmds}
		f.ApplyBatch([]*raft.Log{{Index: index, Type: raft.LogCommand, Data: batch.AppendTo(nil)}})
	}
	in := command.Init{ClusterID: "bench", Slots: []command.SlotRange{{From: 0, To: sharding.Slots - 1}}, Limits: command.Limits{MaxKey: 64, MaxValue: 4096}}
	apply(command.Command{Op: command.OpInit, Values: [][]byte{in.Encode()}})
	var cmds []command.Command
	for n, i := range rand.New(rand.NewPCG(1, 1)).Perm(records) { // as clients come: a file that is filled in order is packed more tightly
		key := fmt.Appendf(nil, "k%09d", i)
		value := fmt.Appendf(make([]byte, 0, 256), `{"id":%d,"grp":"g%d","n":%d,"pad":"`, i, i%100, i%1000)
		value = append(append(value, bytes.Repeat([]byte{'x'}, 254-len(value))...), `"}`...)
		cmds = append(cmds, command.Command{Op: command.OpSet, Slot: uint16(sharding.SlotOf(key)), Keys: [][]byte{key}, Values: [][]byte{value}})
		if len(cmds) == 1000 || n == records-1 {
			apply(cmds...)
			cmds = nil
		}
	}
	must(f.Flush())
	names, err := filepath.Glob(filepath.Join(dir, "state-*.db"))
	if must(err); len(names) != 1 {
		b.Fatalf("state files %v, want one", names)
	}
	// bbolt locks a file that is open for writing against all others.
	copied := filepath.Join(b.TempDir(), "copy.db")
	from, err := os.Open(names[0])
	must(err)
	defer from.Close()
	to, err := os.Create(copied)
	must(err)
	_, err = io.Copy(to, from)
	must(err)
	must(to.Close())
	db, err := bolt.Open(copied, 0, &bolt.Options{ReadOnly: true})
	must(err)
	b.Cleanup(func() { db.Close() })
	return &scanRows{machine: f, file: db}
}

// worker returns what does a task over all slots, as a worker does one that a master has sent it.
func (r *scanRows) worker(s job.Spec) func(*testing.B) int64 {
	w := &Worker{views: r, log: slog.New(slog.DiscardHandler), admission: testAdmission(1)}
	req := &taskRequest{From: 0, To: sharding.Slots - 1, Spec: s}
	return func(b *testing.B) int64 {
		fn, err := compile(s)
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(context.Background())
		defer cancel(nil)
		_, p, err := w.run(ctx, req, fn, &running{cancel: cancel, to: req.To})
		if err != nil {
			b.Fatal(err)
		}
		v, _, err := p.Final(s)
		if err != nil {
			b.Fatal(err)
		}
		n, err := strconv.ParseInt(v.String(), 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		return n
	}
}

// cursor walks the stored rows, whose values have a checksum, a kind and an index before them.
func (r *scanRows) cursor(b *testing.B, add func(value []byte) int64) (sum int64) {
	const head = 4 + 1 + 8
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	if err := r.file.View(func(tx *bolt.Tx) error {
		c := tx.Bucket([]byte("keys")).Cursor()
		for k, v := c.First(); k != nil; k, v = c.Next() {
			if r.checked && crc32.Update(crc32.Checksum(k, castagnoli), castagnoli, v[4:]) != binary.BigEndian.Uint32(v) {
				b.Fatalf("row %q is damaged", k)
			}
			sum += add(v[head:])
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	return sum
}

func (r *scanRows) View(context.Context, uint32, uint64) (View, error) {
	v, err := r.machine.View()
	return scanView{v}, err
}

func (r *scanRows) Pinned(ctx context.Context, shard uint32, _ Pin) (View, error) {
	return r.View(ctx, shard, 0)
}

func (r *scanRows) Renew(uint32, Pin) {}

func (r *scanRows) Hosts(uint32) bool { return true }

type scanView struct{ *fsm.View }

func (v scanView) Slots() (out []sharding.SlotRange) {
	for _, s := range v.View.Slots() {
		out = append(out, sharding.SlotRange{From: s.From, To: s.To})
	}
	return out
}
