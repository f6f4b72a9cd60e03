package fsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	bolt "go.etcd.io/bbolt"
)

// A flipped bit in a value is found when it is read, by whichever way, goes to Fatal, and
// keeps the file out of use afterwards.
func TestDamagedValue(t *testing.T) {
	value := bytes.Repeat([]byte("precious"), 50)
	for name, read := range map[string]func(m *machine){
		"query": func(m *machine) { _, _, _ = m.f.Query([]command.Command{get("a")}) },
		"apply": func(m *machine) { m.apply(0, cmd(command.OpAppend, k("a"), "x")) },
		"view":  func(m *machine) { v := m.view(); defer v.Close(); v.Get(5, []byte("a")) },
		"scan":  func(m *machine) { v := m.view(); defer v.Close(); contents(v) },
		"scrub": func(m *machine) { _ = m.f.Scrub(context.Background(), nil) },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			var fatal error
			cfg.Fatal = func(err error) { fatal = err; panic(err) }
			m := newMachine(t, cfg)
			m.apply(0, set("a", string(value)))
			for i := range 50 { // bbolt reads a bucket that fits into a page of another one only once
				m.apply(0, set(fmt.Sprint(i), string(value[:150])))
			}
			if err := m.f.Flush(); err != nil {
				t.Fatal(err)
			}
			path := generationPath(m.dir, 1)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			at := bytes.LastIndex(data, value) // the live page is the last one written
			w, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.WriteAt([]byte("X"), int64(at+100)); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			func() {
				defer func() { _ = recover() }()
				read(m)
			}()
			var corrupt *CorruptError
			if !errors.As(fatal, &corrupt) || corrupt.Path != path {
				t.Fatalf("fatal is %v", fatal)
			}
			if err := m.f.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(m.dir, testConfig()); !errors.As(err, &corrupt) {
				t.Errorf("opened again: %v", err)
			}
		})
	}
}

func TestOpenErrors(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "none"), testConfig()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}

	m := newMachine(t, testConfig())
	if _, err := Open(m.dir, testConfig()); err == nil {
		t.Error("two processes on one directory")
	}
	if err := m.f.Close(); err != nil {
		t.Fatal(err)
	}
	edit := func(key, value []byte) {
		t.Helper()
		db, err := bolt.Open(generationPath(m.dir, 1), 0o600, &bolt.Options{Timeout: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Put(key, value) }); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	edit(metaFormat, []byte{9})
	var badFormat *FormatError
	if _, err := Open(m.dir, testConfig()); !errors.As(err, &badFormat) || badFormat.Got != 9 {
		t.Errorf("format 9: %v", err)
	}
	edit(metaFormat, []byte{format})
	edit(metaState, []byte("short"))
	var corrupt *CorruptError
	if _, err := Open(m.dir, testConfig()); !errors.As(err, &corrupt) {
		t.Errorf("broken header: %v", err)
	}
}

// A damaged file is an error that names it, whichever of its pages is damaged or
// missing; bbolt alone would panic, or fault and end the process.
func TestOpenDamaged(t *testing.T) {
	m := newMachine(t, testConfig())
	for i := range 300 {
		m.apply(0, set(fmt.Sprint(i), "v"))
	}
	if err := m.f.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := m.f.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(generationPath(m.dir, 1))
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	used := len(bytes.TrimRight(good, "\x00"))
	good = good[:(used+page-1)/page*page] // the rest was never written
	if len(good) > 100*page {
		t.Fatalf("%d bytes are too many for this test", len(good))
	}
	dir, refused := t.TempDir(), 0
	path := generationPath(dir, 1)
	try := func(what string, data []byte, must bool) {
		t.Helper()
		// A new file: the damaged one before may still be locked.
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := Open(dir, testConfig())
		var corrupt *CorruptError
		switch {
		case err == nil && must:
			t.Errorf("%s: opened", what)
		case err == nil:
		case !errors.As(err, &corrupt) || corrupt.Path != path:
			t.Errorf("%s: error is %v", what, err)
		default:
			refused++
		}
		if err == nil {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	for _, size := range []int{0, 1, 100, page, 2 * page, 2*page + 8} {
		try(fmt.Sprintf("cut to %d bytes", size), good[:size], true)
	}
	try("no bbolt file", bytes.Repeat([]byte("x"), len(good)), true)
	for at := 0; at+page <= len(good); at += page {
		for _, junk := range []byte{0, 0x55, 0xff} {
			bad := bytes.Clone(good)
			copy(bad[at:], bytes.Repeat([]byte{junk}, page))
			// Pages that are free or not read by Open go unnoticed.
			try(fmt.Sprintf("page %d of %#x", at/page, junk), bad, false)
		}
	}
	t.Logf("%d damaged files refused", refused)
}

// A flipped bit in a file's header or in its format is damage, whichever it is: the format must not look like another version's, which ends the
// node for good, and an applied index that is another would have it skip entries, or apply them twice.
func TestDamagedHeader(t *testing.T) {
	m := newMachine(t, testConfig())
	for i := range 20 {
		m.apply(0, set(fmt.Sprint(i), "v"))
	}
	head := m.f.ap.header()
	if err := errors.Join(m.f.Flush(), m.f.Close()); err != nil {
		t.Fatal(err)
	}
	path := generationPath(m.dir, 1)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, pattern []byte, from, to int) {
		t.Helper()
		if bytes.Count(good, pattern) == 0 {
			t.Fatalf("no %s in the file", what)
		}
		for bit := from * 8; bit < to*8; bit++ {
			flipped := bytes.Clone(pattern)
			flipped[bit/8] ^= 1 << (bit % 8)
			if err := os.WriteFile(path, bytes.ReplaceAll(good, pattern, flipped), 0o600); err != nil {
				t.Fatal(err)
			}
			var corrupt *CorruptError
			if f, err := Open(m.dir, testConfig()); !errors.As(err, &corrupt) {
				if err == nil {
					f.Close()
				}
				t.Fatalf("bit %d of the %s: %v", bit, what, err)
			}
			// What was found is marked; the next try begins anew.
			left, _ := filepath.Glob(filepath.Join(m.dir, "*"))
			for _, name := range left {
				if name != path {
					os.Remove(name)
				}
			}
		}
	}
	v := head.encode(nil)
	try("header", v, 0, len(v))
	try("format", append([]byte("format"), format), len("format"), len("format")+1)
}

// A header that v0.4 has written over one with a checksum is taken as it is: the checksum is of an earlier transaction.
func TestHeaderWithoutChecksum(t *testing.T) {
	m := newMachine(t, testConfig())
	m.apply(0, set("a", "1"))
	if err := errors.Join(m.f.Flush(), m.f.Close()); err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(generationPath(m.dir, 1), 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		v := bytes.Clone(meta.Get(metaState))
		h := decodeHeader(v)
		h.applied += 5
		return meta.Put(metaState, h.encode(nil))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	f, err := Open(m.dir, testConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
}
