package backup

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/abacusdb/abacus/sharding"
)

var rewrite = flag.Bool("rewrite", false, "write testdata anew")

// ordered returns keys in the order of a shard.
func ordered(keys ...string) []string {
	slices.SortFunc(keys, func(a, b string) int {
		if d := int(sharding.SlotOf([]byte(a))) - int(sharding.SlotOf([]byte(b))); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	return keys
}

// sample writes a backup of two shards: 0 with three keys in two blocks, of which the first attempt was lost, and 1 with one block.
func sample(t testing.TB, path string) *Manifest {
	t.Helper()
	w, err := newWriter(path)
	if err != nil {
		t.Fatal(err)
	}
	defer w.abort()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	m := &Manifest{Format: Format, ClusterID: "c1", Version: "v9", Level: 1, Epoch: 7, Began: at, Ended: at.Add(time.Second)}
	half := sharding.Slot(sharding.Slots / 2)
	for id, slots := range []sharding.SlotRange{{From: 0, To: half - 1}, {From: half, To: sharding.Slots - 1}} {
		var keys []string
		for i := 0; len(keys) < 3; i++ {
			k := fmt.Sprintf("key/%d", i)
			if s := sharding.SlotOf([]byte(k)); slots.From <= s && s <= slots.To {
				keys = append(keys, k)
			}
		}
		keys = ordered(keys...)
		check := newChecker([]sharding.SlotRange{slots})
		h := header{shard: uint32(id), attempt: 1}
		put := func(records ...Record) {
			t.Helper()
			var b []byte
			for _, r := range records {
				b = AppendRecord(b, r)
			}
			h.number, h.records = check.blocks, uint32(len(records))
			if h.attempt == 1 && id == 0 { // lost
				if err := w.block(h, b); err != nil {
					t.Fatal(err)
				}
				return
			}
			if _, err := check.block(b, nil); err != nil {
				t.Fatal(err)
			}
			if err := w.block(h, b); err != nil {
				t.Fatal(err)
			}
		}
		first := []Record{{Key: []byte(keys[0]), Value: []byte("one")}, {Key: []byte(keys[1]), Value: nil, Left: 90_000}}
		if put(first...); id == 0 {
			h.attempt = 2
			put(first...)
		}
		put(Record{Key: []byte(keys[2]), Value: bytes.Repeat([]byte{0, 0xff}, 20)})
		s := Shard{ID: uint32(id), Slots: fmt.Sprintf("%d-%d", slots.From, slots.To), Index: 40 + uint64(id), Term: 3, At: at, Node: "n1", Attempt: h.attempt,
			Blocks: check.blocks, Records: check.records, Bytes: check.bytes, SHA256: check.hash()}
		m.Shards = append(m.Shards, s)
		m.Records += s.Records
		m.Bytes += s.Bytes
	}
	if err := w.commit(m); err != nil {
		t.Fatal(err)
	}
	return m
}

func verify(path string) error {
	b, err := Open(path)
	if err != nil {
		return err
	}
	return b.Verify(context.Background(), nil)
}

// What is written is read, from a file and from a directory, and nothing is left beside it.
func TestWriteAndRead(t *testing.T) {
	for _, name := range []string{"b.abk", "dir/"} {
		parent := t.TempDir()
		path := parent + "/" + name
		want := sample(t, path)
		b, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := json.Marshal(b.Manifest); string(got) != mustJSON(t, want) {
			t.Errorf("%s: manifest\n%s\nwant\n%s", name, got, mustJSON(t, want))
		}
		var got []string
		var last int64
		err = b.Each(t.Context(), func(n int64) { last = n }, func(s Shard, r Record) error {
			got = append(got, fmt.Sprintf("%d %d %d", s.ID, len(r.Value), r.Left))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{"0 3 0", "0 0 90000", "0 40 0", "1 3 0", "1 0 90000", "1 40 0"}; !slices.Equal(got, want) {
			t.Errorf("%s: records %q, want %q", name, got, want)
		}
		if size, err := b.Size(); err != nil || name == "dir/" && size != last || size < last {
			t.Errorf("%s: size %d, read %d, %v", name, size, last, err)
		}
		mine := errors.New("mine")
		if err := b.Each(t.Context(), nil, func(Shard, Record) error { return mine }); err != mine {
			t.Errorf("%s: the error of a callback came back as %v", name, err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(mine)
		if err := b.Verify(ctx, nil); err != mine {
			t.Errorf("%s: cancelled: %v", name, err)
		}
		entries, err := os.ReadDir(parent)
		if err != nil || len(entries) != 1 {
			t.Errorf("%s: beside it: %v, %v", name, entries, err)
		}
		if _, err := newWriter(path); !errors.Is(err, ErrExists) {
			t.Errorf("%s: a second one: %v", name, err)
		}
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A backup that is not finished leaves nothing.
func TestAbort(t *testing.T) {
	for _, name := range []string{"b.abk", "dir/"} {
		parent := t.TempDir()
		w, err := newWriter(parent + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.block(header{shard: 3}, []byte("x")); err != nil {
			t.Fatal(err)
		}
		w.abort()
		if entries, err := os.ReadDir(parent); err != nil || len(entries) != 0 {
			t.Errorf("%s: left: %v, %v", name, entries, err)
		}
	}
}

// The bytes are those of every version to come.
func TestGolden(t *testing.T) {
	path := filepath.Join(t.TempDir(), "b.abk")
	sample(t, path)
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	golden := "testdata/v1.abk.hex"
	if *rewrite {
		if err := os.WriteFile(golden, []byte(hex.Dump(got)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if hex.Dump(got) != string(want) {
		t.Errorf("the bytes are others than in %s (-rewrite writes it anew, if the format has a new number):\n%s", golden, hex.Dump(got))
	}
}

// Whatever is cut off or flipped, in a file or in any file of a directory, is noticed, with an error of a type.
func TestDamage(t *testing.T) {
	typed := func(err error) bool {
		var version *VersionError
		return errors.Is(err, ErrTruncated) || errors.Is(err, ErrDamaged) || errors.Is(err, ErrNotBackup) || errors.As(err, &version)
	}
	for _, name := range []string{"b.abk", "dir/"} {
		path := t.TempDir() + "/" + name
		sample(t, path)
		files := []string{path}
		if entries, err := os.ReadDir(path); err == nil {
			files = nil
			for _, e := range entries {
				files = append(files, filepath.Join(path, e.Name()))
			}
			if len(files) != 4 {
				t.Fatalf("files %q", files)
			}
		}
		for _, f := range files {
			whole, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			try := func(what string, b []byte, want error) {
				t.Helper()
				if err := os.WriteFile(f, b, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := verify(path); err == nil || !typed(err) || want != nil && !errors.Is(err, want) {
					t.Errorf("%s, %s: %v", f, what, err)
				}
			}
			step := max(1, len(whole)/400)
			for n := 0; n < len(whole); n += step {
				want := ErrTruncated
				if n < len(magicHead) {
					want = ErrNotBackup
				}
				if filepath.Ext(f) != ".abk" {
					want = nil
				}
				try(fmt.Sprintf("cut off at %d", n), whole[:n], want)
			}
			for n := 0; n < len(whole); n += step {
				b := bytes.Clone(whole)
				b[n] ^= 0x40
				try(fmt.Sprintf("byte %d flipped", n), b, nil)
			}
			if err := os.Remove(f); err != nil {
				t.Fatal(err)
			}
			if err := verify(path); err == nil || !typed(err) && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s removed: %v", f, err)
			}
			if err := os.WriteFile(f, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := verify(path); err != nil {
				t.Fatalf("%s put back: %v", f, err)
			}
		}
	}
}

// What is whole by itself and not what the manifest says is noticed: a block that is gone, or another backup's.
func TestOtherThanTheManifest(t *testing.T) {
	for name, change := range map[string]func(m *Manifest){
		"a block too few":  func(m *Manifest) { m.Shards[1].Blocks++ },
		"a record too few": func(m *Manifest) { m.Shards[0].Records++; m.Records++ },
		"a byte too many":  func(m *Manifest) { m.Shards[0].Bytes--; m.Bytes-- },
		"another hash":     func(m *Manifest) { m.Shards[1].SHA256 = m.Shards[0].SHA256 },
		"another attempt":  func(m *Manifest) { m.Shards[0].Attempt = 7 },
		"other slots":      func(m *Manifest) { m.Shards[0].Slots, m.Shards[1].Slots = m.Shards[1].Slots, m.Shards[0].Slots },
		"slots twice":      func(m *Manifest) { m.Shards[0].Slots = m.Shards[1].Slots },
		"a wrong sum":      func(m *Manifest) { m.Records++ },
		"a shard twice":    func(m *Manifest) { m.Shards[1].ID = 0 },
		"another shard":    func(m *Manifest) { m.Shards[1].ID = 5 },
		"a file elsewhere": func(m *Manifest) { m.Shards[1].File = "../x" },
	} {
		path := filepath.Join(t.TempDir(), "b.abk")
		m := sample(t, path)
		change(m)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		at, err := parseTrailer(path, whole[len(whole)-trailerBytes:])
		if err != nil {
			t.Fatal(err)
		}
		text, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		forged := appendTrailer(appendBlock(bytes.Clone(whole[:at]), header{kind: blockManifest}, text), at)
		if err := os.WriteFile(path, forged, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := verify(path); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A version to come is named.
func TestNewerFormat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "b.abk")
	b := appendHead(nil, kindArchive)
	b[9]++
	b = binary.BigEndian.AppendUint32(b[:12], crc32.Checksum(b[:12], castagnoli))
	if err := os.WriteFile(path, append(b, make([]byte, 100)...), 0o600); err != nil {
		t.Fatal(err)
	}
	var version *VersionError
	if err := verify(path); !errors.As(err, &version) || version.Got != 2 {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(path, []byte("key\tvalue\nkey\tvalue\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := verify(path); !errors.Is(err, ErrNotBackup) {
		t.Errorf("%v", err)
	}
}

func TestPartition(t *testing.T) {
	for _, tc := range []struct {
		parts []string
		want  string
	}{
		{[]string{"0-16383"}, ""},
		{[]string{"8192-16383", "0-8191"}, ""},
		{[]string{"0-99,200-16383", "", "100-199"}, ""},
		{[]string{"0-8191", "8191-16383"}, "slot 8191 is in two"},
		{[]string{"0-8190", "8192-16383"}, "slot 8191 is in none"},
		{[]string{"1-16383"}, "slot 0 is in none"},
		{[]string{"0-16382"}, "slot 16383 is in none"},
		{[]string{""}, "slot 0 is in none"},
	} {
		var parts [][]sharding.SlotRange
		for _, p := range tc.parts {
			r, err := parseSlots(p)
			if err != nil {
				t.Fatal(err)
			}
			parts = append(parts, r)
		}
		err := partition(parts)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: %v, want %q", tc.parts, err, tc.want)
		}
	}
	for _, bad := range []string{"x", "5-", "7-6", "0-16384", "1,,2", "-1"} {
		if r, err := parseSlots(bad); err == nil {
			t.Errorf("%q gives %v", bad, r)
		}
	}
}

// A shard's records are in order, none twice, and all its own.
func TestChecker(t *testing.T) {
	a, b := ordered("a", "b")[0], ordered("a", "b")[1]
	rec := func(keys ...string) (out []byte) {
		for _, k := range keys {
			out = AppendRecord(out, Record{Key: []byte(k), Value: []byte("v")})
		}
		return out
	}
	all := []sharding.SlotRange{{From: 0, To: sharding.Slots - 1}}
	foreign := []sharding.SlotRange{{From: sharding.SlotOf([]byte(b)), To: sharding.Slots - 1}}
	for _, tc := range []struct {
		name  string
		slots []sharding.SlotRange
		block []byte
		want  string
	}{
		{"in order", all, rec(a, b), ""},
		{"twice", all, rec(a, a), "comes behind"},
		{"backwards", all, rec(b, a), "comes behind"},
		{"foreign", foreign, rec(a), "not the shard's"},
		{"cut", all, rec(a, b)[:9], "does not fit"},
		{"empty key", all, AppendRecord(nil, Record{Value: []byte("v")}), "does not fit"},
		{"a length beyond all", all, append([]byte{1}, bytes.Repeat([]byte{0xff}, 8)...), "does not fit"},
	} {
		_, err := newChecker(tc.slots).block(tc.block, nil)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

// The readers take anything: they return an error, and never more than there is.
func FuzzArchive(f *testing.F) {
	path := filepath.Join(f.TempDir(), "b.abk")
	sample(f, path)
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add(appendTrailer(appendHead(nil, kindArchive), headBytes))
	f.Fuzz(func(t *testing.T, b []byte) {
		archiveManifest("b", bytes.NewReader(b), int64(len(b)))
		r := &blockReader{path: "b", r: bytes.NewReader(b)}
		if r.head(kindArchive) != nil {
			return
		}
		for {
			h, payload, _, err := r.next()
			if err != nil {
				break
			}
			if len(payload) != int(h.length) || r.at > int64(len(b)) {
				t.Fatalf("%d bytes of %d, at %d of %d", len(payload), h.length, r.at, len(b))
			}
			newChecker([]sharding.SlotRange{{From: 0, To: sharding.Slots - 1}}).block(payload, nil)
		}
	})
}

// A record that is cut off a block is the one that was put there.
func FuzzRecord(f *testing.F) {
	f.Add(AppendRecord(nil, Record{Key: []byte("k"), Value: []byte("v"), Left: 5}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 1, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, rest, err := cutRecord(b)
		if err != nil {
			return
		}
		again, none, err := cutRecord(AppendRecord(nil, r))
		if err != nil || len(none) != 0 || !bytes.Equal(again.Key, r.Key) || !bytes.Equal(again.Value, r.Value) || again.Left != r.Left {
			t.Fatalf("%+v became %+v, %v", r, again, err)
		}
		if len(rest)+len(r.Key)+len(r.Value) > len(b) {
			t.Fatalf("%d bytes made of %d", len(rest)+len(r.Key)+len(r.Value), len(b))
		}
	})
}
