package fsm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/abacusdb/abacus/fsm/command"
)

func readStream(t *testing.T, f *FSM) ([]byte, uint64) {
	t.Helper()
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	size, index, r, err := f.OpenStream(StreamSparse)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(data)) != size {
		t.Fatalf("stream has %d bytes, announced %d", len(data), size)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return data, index
}

func reader(data []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(data)) }

func files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func wantFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	if got := files(t, dir); !slices.Equal(got, want) {
		t.Errorf("files are %v, want %v", got, want)
	}
}

// Persist makes durable what raft is about to forget, and writes nothing.
func TestSnapshotIsMetadata(t *testing.T) {
	m := newMachine(t, testConfig())
	m.apply(0, set("a", "1"))
	m.apply(7, get("a"))
	snap, err := m.f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	m.apply(7, get("a"))
	if m.f.DurableIndex() != 0 {
		t.Fatalf("durable %d before the snapshot", m.f.DurableIndex())
	}
	if err := snap.Persist(nil); err != nil { // a sink that is nil cannot be written to
		t.Fatal(err)
	}
	snap.Release()
	if m.f.DurableIndex() < 3 {
		t.Errorf("durable %d after a snapshot at 3", m.f.DurableIndex())
	}
	if err := m.f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := snap.Persist(nil); !errors.Is(err, ErrClosed) {
		t.Errorf("persist after close: %v", err)
	}
}

// A restored replica has the state, the index and the identity, keeps them over a
// restart, and goes on by the log.
func TestRestore(t *testing.T) {
	m := newMachine(t, testConfig())
	for i := range 300 {
		m.log(1, onSlot(set(fmt.Sprint("k", i), fmt.Sprint("v", i)), uint16(100+i)), setTTL("t", "x", 1000))
	}
	m.f.ApplyBatch(m.logs[1:])
	m.apply(0, num(cmd(command.OpRecordSet, k("r"), "record"), 0))
	data, index := readStream(t, m.f)
	if index != m.f.Applied() {
		t.Fatalf("stream at index %d, applied %d", index, m.f.Applied())
	}

	f := emptyMachine(t, testConfig())
	f.logs = m.logs[:2]
	f.f.ApplyBatch(f.logs)
	old := f.view()
	before := contents(old)
	if err := f.f.Restore(reader(data)); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, f.dir, "state-1.db", "state-2.db") // a view still reads the first
	if got := contents(old); !maps.Equal(got, before) || old.Index() != 2 {
		t.Errorf("the view from before shows %d keys at index %d", len(got), old.Index())
	}
	old.Close()
	wantFiles(t, f.dir, "state-2.db")
	if f.f.Applied() != index || f.f.DurableIndex() != index || f.f.LastTerm() != 1 {
		t.Errorf("applied %d, durable %d, term %d", f.f.Applied(), f.f.DurableIndex(), f.f.LastTerm())
	}
	if in, ok := f.f.Init(); !ok || in.ClusterID != "test" {
		t.Errorf("identity is %+v", in)
	}
	if f.hash() != m.hash() {
		t.Error("hashes differ")
	}
	f.checkFile()

	f.logs = slices.Clone(m.logs)
	f.reopen(0)
	for _, x := range []*machine{m, f} {
		x.apply(2000, set("after", "1"))
		x.checkFile()
	}
	if f.hash() != m.hash() {
		t.Error("hashes differ after going on")
	}
	wantFiles(t, f.dir, "state-2.db")
}

// Raft does not compare: a late snapshot must not take back what was applied.
func TestRestoreRefusesStale(t *testing.T) {
	m := newMachine(t, testConfig())
	m.apply(0, set("a", "1"))
	data, index := readStream(t, m.f)

	for _, ahead := range []int{0, 1} {
		for range ahead {
			m.apply(0, get("a")) // applied in memory only: it counts all the same
		}
		hash := m.hash()
		err := m.f.Restore(reader(data))
		var stale *StaleSnapshotError
		if !errors.Is(err, ErrStaleSnapshot) || !errors.As(err, &stale) {
			t.Fatalf("restore at index %d of a snapshot at %d: %v", m.f.Applied(), index, err)
		}
		if stale.Snapshot != index || stale.Applied != m.f.Applied() {
			t.Errorf("error says %+v", stale)
		}
		if m.hash() != hash {
			t.Error("the state changed")
		}
		wantFiles(t, m.dir, "state-1.db")
	}
	m.apply(0, set("b", "1"))
	m.wantContents(map[string]string{"5/a": "1", "5/b": "1"})
}

// Whatever arrives instead of a stream is refused and leaves the state as it was.
func TestRestoreRefusesDamage(t *testing.T) {
	source := newMachine(t, testConfig())
	for i := range 50 {
		source.apply(0, set(fmt.Sprint("k", i), "v"))
	}
	good, _ := readStream(t, source.f)
	flip := func(at int) []byte {
		out := bytes.Clone(good)
		out[at] ^= 0x10
		return out
	}
	foreign := emptyMachine(t, testConfig())
	in := testInit()
	in.Shard = 2
	for range 100 {
		foreign.apply(0, command.Command{Op: command.OpInit, Values: [][]byte{in.Encode()}})
	}
	foreign.apply(0, set("a", "1"))
	other, _ := readStream(t, foreign.f)

	m := newMachine(t, testConfig())
	m.apply(0, set("mine", "1"))
	hash := m.hash()
	var corrupt *CorruptError
	var format *FormatError
	for _, tc := range []struct {
		name string
		data []byte
		want any
	}{
		{"nothing", nil, nil},
		{"a cut head", good[:5], nil},
		{"a version from the future", flip(0), &format},
		{"a cut file", good[:len(good)/2], &corrupt},
		{"a cut checksum", good[:len(good)-1], &corrupt},
		{"a flipped bit in the meta page", flip(9 + 30), &corrupt},
		{"a flipped bit in the last page", flip(len(good) - 100), &corrupt},
		{"a flipped bit in the checksum", flip(len(good) - 1), &corrupt},
		{"a negative size", append([]byte{1, 0xff}, good[2:]...), &corrupt},
	} {
		err := m.f.Restore(reader(tc.data))
		if err == nil || tc.want != nil && !errors.As(err, tc.want) {
			t.Errorf("%s: error is %v", tc.name, err)
		}
	}
	if err := m.f.Restore(reader(other)); !errors.Is(err, ErrForeignSnapshot) {
		t.Errorf("another shard's: error is %v", err)
	}
	if m.hash() != hash {
		t.Error("the state changed")
	}
	wantFiles(t, m.dir, "state-1.db")
	m.apply(0, set("mine", "2"))
	if err := m.f.Restore(reader(good)); err != nil {
		t.Errorf("the good stream after all: %v", err)
	}
}

// A crash leaves .tmp files and, between rename and removal, two generations:
// the highest complete one counts.
func TestOpenAfterCrash(t *testing.T) {
	m := newMachine(t, testConfig())
	m.apply(0, set("a", "1"))
	data, _ := readStream(t, m.f)
	old, err := os.ReadFile(generationPath(m.dir, 1))
	if err != nil {
		t.Fatal(err)
	}
	f := emptyMachine(t, testConfig())
	if err := f.f.Restore(reader(data)); err != nil {
		t.Fatal(err)
	}
	if err := f.f.Close(); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"state-1.db":     old,
		"state-3.db.tmp": data[:100],
		"state-x.db":     []byte("not ours"),
	} {
		if err := os.WriteFile(filepath.Join(f.dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.open()
	wantFiles(t, f.dir, "state-2.db", "state-x.db")
	if f.hash() != m.hash() {
		t.Error("hashes differ")
	}
}

// A stream is one state even while the writer goes on, and can be left half read.
func TestStreamBesideWriter(t *testing.T) {
	m := newMachine(t, testConfig())
	for i := range 200 {
		m.log(0, onSlot(set(fmt.Sprint("k", i), "before"), uint16(100+i)))
	}
	m.f.ApplyBatch(m.logs[1:])
	if err := m.f.Flush(); err != nil {
		t.Fatal(err)
	}
	hash := m.hash()
	size, index, r, err := m.f.OpenStream(StreamSparse)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	for got.Len() < int(size) {
		if _, err := io.CopyN(&got, r, min(10_000, size-int64(got.Len()))); err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			m.apply(1, onSlot(set(fmt.Sprint("k", i), fmt.Sprint("after", got.Len())), uint16(100+i)))
		}
		if err := m.f.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("after the end: %d bytes, %v", n, err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	f := emptyMachine(t, testConfig())
	if err := f.f.Restore(io.NopCloser(&got)); err != nil {
		t.Fatal(err)
	}
	if f.f.Applied() != index || f.hash() != hash {
		t.Errorf("restored index %d, want %d; same state: %v", f.f.Applied(), index, f.hash() == hash)
	}

	_, _, r, err = m.f.OpenStream(StreamSparse)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 5000)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // Close may be called twice
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A copy is as large as what is in it, whatever the file has held before, and equal in all that counts; in the older form it is as
// large as the file.
func TestSparseStream(t *testing.T) {
	m := newMachine(t, testConfig())
	value := strings.Repeat("v", 2000)
	for i := range 3000 {
		m.apply(0, set(fmt.Sprintf("k%04d", i), value))
	}
	if err := m.f.Flush(); err != nil {
		t.Fatal(err)
	}
	full := m.f.FileBytes()
	for i := range 3000 {
		if i%50 > 0 {
			m.apply(0, command.Command{Op: command.OpDel, Keys: [][]byte{fmt.Appendf(nil, "k%04d", i)}, Slot: 5})
		}
	}
	if err := m.f.Flush(); err != nil {
		t.Fatal(err)
	}
	used := m.f.FileBytes()
	if used > full/4 {
		t.Fatalf("%d bytes in use of %d before, though nearly all was deleted", used, full)
	}
	for form, least := range map[StreamForm]int64{StreamSparse: used, StreamWhole: full} {
		size, index, r, err := m.f.OpenStream(form)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil || int64(len(data)) != size || StreamForm(data[0]) != form {
			t.Fatalf("form %d: %d bytes of %d, %v", form, len(data), size, err)
		}
		if size < least || size > least+least/10 {
			t.Errorf("form %d: a stream of %d bytes, %d are in use", form, size, least)
		}
		other := emptyMachine(t, testConfig())
		if err := other.f.Restore(reader(data)); err != nil {
			t.Fatal(err)
		}
		if other.hash() != m.hash() || other.f.Applied() != index {
			t.Errorf("form %d: another state", form)
		}
		if err := other.f.Scrub(t.Context(), nil); err != nil {
			t.Errorf("form %d: %v", form, err)
		}
		// It can be written on: what is free there is free.
		for i := range 500 {
			other.apply(0, set(fmt.Sprintf("n%04d", i), value))
		}
		if err := errors.Join(other.f.Flush(), other.f.Scrub(t.Context(), nil)); err != nil {
			t.Errorf("form %d: %v", form, err)
		}
	}
}

// What is not understood of a file's list of free pages makes the copy whole.
func TestRunsOfOddFiles(t *testing.T) {
	torn := false
	page := func(edit func(b []byte)) *bytes.Reader {
		b := make([]byte, 8*4096)
		le := binary.LittleEndian
		for i := range 2 {
			m := b[i*4096+boltPageHead:]
			le.PutUint32(m, boltMagic)
			le.PutUint32(m[4:], boltFormat)
			le.PutUint64(m[32:], 3)
			le.PutUint64(m[48:], uint64(7-i))
		}
		seal := func() {
			for i := range 2 {
				m := b[i*4096+boltPageHead:][:boltMetaBytes]
				sum := fnv.New64a()
				sum.Write(m[:56])
				le.PutUint64(m[56:], sum.Sum64())
			}
		}
		p := b[3*4096:]
		le.PutUint64(p, 3)
		le.PutUint16(p[8:], flagFreelist)
		le.PutUint16(p[10:], 2)
		le.PutUint64(p[16:], 4)
		le.PutUint64(p[24:], 6)
		edit(b)
		if seal(); torn {
			b[16+57] ^= 1
		}
		return bytes.NewReader(b)
	}
	free := func(r *bytes.Reader) ([]uint64, bool) {
		at, ok := freelistOf(r, 4096, 7)
		if !ok {
			return nil, false
		}
		return freePages(r, 4096, at, 8)
	}
	if got, ok := free(page(func([]byte) {})); !ok || !slices.Equal(got, []uint64{4, 6}) {
		t.Fatalf("%v, %v", got, ok)
	}
	torn = true
	if got, ok := free(page(func([]byte) {})); ok {
		t.Errorf("a meta page that is being written: %v", got)
	}
	torn = false
	for name, edit := range map[string]func(b []byte){
		"another magic":        func(b []byte) { b[16] ^= 1; b[4096+16] ^= 1 },
		"neither meta is ours": func(b []byte) { b[16+48] = 9 },
		"no list":              func(b []byte) { copy(b[16+32:], bytes.Repeat([]byte{0xff}, 8)) },
		"list beyond the end":  func(b []byte) { b[16+32] = 9 },
		"another page":         func(b []byte) { b[3*4096] = 5 },
		"no list there":        func(b []byte) { b[3*4096+8] = 2 },
		"more than pages":      func(b []byte) { b[3*4096+10] = 200 },
		"out of order":         func(b []byte) { b[3*4096+16] = 7 },
		"twice":                func(b []byte) { b[3*4096+16] = 6 },
		"a meta page":          func(b []byte) { b[3*4096+16] = 1 },
		"itself":               func(b []byte) { b[3*4096+16] = 3 },
		"beyond the end":       func(b []byte) { b[3*4096+24] = 8 },
	} {
		if got, ok := free(page(edit)); ok {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Runs that overlap, go back, or reach beyond the file are refused.
func TestMalformedRuns(t *testing.T) {
	runs := func(list ...int64) io.Reader {
		var b []byte
		for i := 0; i < len(list); i += 2 {
			b = binary.BigEndian.AppendUint64(b, uint64(list[i]))
			b = binary.BigEndian.AppendUint64(b, uint64(list[i+1]))
			b = append(b, make([]byte, min(max(list[i+1], 0), 100))...)
		}
		return bytes.NewReader(b)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := readRuns(f, runs(0, 10, 20, 10, 0, 0), 40); err != nil {
		t.Error(err)
	}
	if info, _ := f.Stat(); info.Size() != 40 {
		t.Errorf("%d bytes", info.Size())
	}
	for name, r := range map[string]io.Reader{
		"overlap": runs(0, 10, 5, 10, 0, 0), "back": runs(20, 10, 0, 10, 0, 0), "beyond": runs(30, 11, 0, 0), "far beyond": runs(1<<62, 10, 0, 0),
		"negative": runs(0, -1, 0, 0), "negative offset": runs(-10, 5, 0, 0), "no end": runs(0, 10), "cut": runs(0, 1000),
	} {
		if err := readRuns(f, r, 40); !errors.Is(err, errRuns) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
