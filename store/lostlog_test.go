package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/store/wal"
)

// Whatever is wrong with the log's file, the replica does not come back under its
// name, though its state never was durable and cannot tell that there was a log.
func TestRepairLogNeverVotesAgain(t *testing.T) { synctest.Test(t, testRepairLogNeverVotesAgain) }

func testRepairLogNeverVotesAgain(t *testing.T) {
	c := newCluster(t, 3, func(_ *node, cfg *Config) { cfg.WAL = nil })
	c.fill("k", 30)
	c.converge()
	f := c.followers()[0]
	f.kill()
	path := filepath.Join(f.config().Dir, logName)
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(f.config().Dir, stateName)); err != nil { // as if never durable
		t.Fatal(err)
	}
	for name, damage := range map[string]func(b []byte) []byte{
		"gone":           func([]byte) []byte { return nil },
		"empty":          func(b []byte) []byte { return b[:0] },
		"a quarter":      func(b []byte) []byte { return b[:len(b)/4/4096*4096] },
		"cut in a page":  func(b []byte) []byte { return b[:len(b)/3+100] },
		"no meta pages":  func(b []byte) []byte { clear(b[:8192]); return b },
		"garbled":        func(b []byte) []byte { clear(b[8192:]); return b },
		"a flipped bit":  func(b []byte) []byte { b[bytes.LastIndex(b, []byte("k17"))] ^= 1; return flipAll(b, "k17", "k57") },
		"another's file": func(b []byte) []byte { return flipAll(b, "shard-3/"+f.replica, "shard-3/n9.1") },
	} {
		b := damage(bytes.Clone(sound))
		if b == nil {
			err = os.Remove(path)
		} else {
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		err := f.open()
		if DamageOf(err) != DamageLog {
			t.Errorf("open, %s: %v", name, err)
		}
		if err == nil {
			f.kill()
		}
	}
	// The file as it was: it was never about the test.
	if err := os.WriteFile(path, sound, 0o600); err != nil {
		t.Fatal(err)
	}
	f.start()
	c.converge()
}

func flipAll(b []byte, from, to string) []byte {
	return bytes.ReplaceAll(b, []byte(from), []byte(to))
}

// A crash while the file of log and votes was being made leaves a replica that never was one.
func TestRepairUnbornLog(t *testing.T) { synctest.Test(t, testRepairUnbornLog) }

func testRepairUnbornLog(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.addNode()
	if err := os.Mkdir(n.config().Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.config().Dir, logName), make([]byte, 16<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	n.start()
	c.join(n)
	c.converge()
}

// A term below that of the vote, or of an entry, is not one that this replica had.
func TestRepairTermFell(t *testing.T) {
	for _, what := range []string{"vote", "entry"} {
		dir, self := t.TempDir(), address{3, "n1.1"}
		db, err := openBolt(filepath.Join(dir, logName))
		if err != nil {
			t.Fatal(err)
		}
		defer mustClose(t, db)
		cfg := Config{Dir: dir, Fatal: stopProcess}
		stable, err := readLog(cfg, self, db, db)
		if err != nil {
			t.Fatal(err)
		}
		var errs error
		if what == "vote" {
			errs = errors.Join(stable.SetUint64([]byte(keyCurrentTerm), 5), stable.SetUint64([]byte(keyLastVoteTerm), 5), stable.Set([]byte(keyLastVoteCand), []byte("n2")))
		} else {
			errs = errors.Join(stable.SetUint64([]byte(keyCurrentTerm), 5), boltLog{db}.StoreLogs(entries(5, 1, 3)))
		}
		if errs != nil {
			t.Fatal(errs)
		}
		if _, err := readLog(cfg, self, db, db); err != nil {
			t.Fatal(err)
		}
		if err := db.SetUint64([]byte(keyCurrentTerm), 4); err != nil {
			t.Fatal(err)
		}
		if _, err := readLog(cfg, self, db, db); DamageOf(err) != DamageLog {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A replica whose node's log was made anew, or is another node's, does not come back under its
// name; with the other kind of log it is told so.
func TestRepairOtherLog(t *testing.T) { synctest.Test(t, testRepairOtherLog) }

func testRepairOtherLog(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.fill("k", 30)
	f := c.followers()[0]
	f.stop()
	other, err := wal.Open(wal.Dir(t.TempDir()), wal.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, other)
	c.edit = func(_ *node, cfg *Config) { cfg.WAL = other }
	want := ErrLogLost
	if logKind == "boltdb" {
		want = ErrOtherLog
	}
	if err := f.open(); !errors.Is(err, want) {
		t.Errorf("opened with another log: %v", err)
	}
	if logKind == "wal" {
		c.edit = func(_ *node, cfg *Config) { cfg.WAL = nil }
		if err := f.open(); !errors.Is(err, ErrOtherLog) {
			t.Errorf("opened with a log of its own: %v", err)
		}
	}
	c.edit = nil
	f.start()
	c.converge()
}

// Each page of the log's file in turn gets a flipped byte: the start refuses it, or
// the byte did not matter. It never hangs, faults, or takes an entry that is not what was written.
func TestRepairLogEveryPage(t *testing.T) { synctest.Test(t, testRepairLogEveryPage) }

func testRepairLogEveryPage(t *testing.T) {
	dir := t.TempDir()
	self := address{3, "n1.1"}
	path := filepath.Join(dir, logName)
	db, err := openBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	stable, err := readLog(Config{Dir: dir, Fatal: stopProcess}, self, db, db)
	if err != nil {
		t.Fatal(err)
	}
	if err := stable.SetUint64([]byte(keyCurrentTerm), 2); err != nil {
		t.Fatal(err)
	}
	l := newLogStore(boltLog{db}, logName, stopProcess, newCluster(t, 0, nil).log)
	var want []*raft.Log
	for i := uint64(1); i <= 200; i++ {
		want = append(want, &raft.Log{Index: i, Term: 2, Type: raft.LogCommand, Data: bytes.Repeat([]byte{byte(i)}, 100)})
	}
	if err := l.StoreLogs(want); err != nil {
		t.Fatal(err)
	}
	mustClose(t, db)
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for at := 0; at < len(sound); at += 509 {
		bad := bytes.Clone(sound)
		bad[at] ^= 0x11
		other := filepath.Join(t.TempDir(), logName) // a panic in bbolt leaves its lock
		if err := os.WriteFile(other, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := openBolt(other)
		if err == nil {
			_, err = readLog(Config{Dir: filepath.Dir(other), Fatal: stopProcess}, self, db, db)
		}
		if err != nil {
			refused++
			if DamageOf(err) != DamageLog {
				t.Errorf("byte %d: %v", at, err)
			}
			continue
		}
		for _, w := range want {
			var got raft.Log
			if err := db.GetLog(w.Index, &got); err != nil || unseal(w.Index, &got) != nil || !bytes.Equal(got.Data, w.Data) || got.Term != w.Term {
				t.Errorf("byte %d is wrong: entry %d is %+v, %v", at, w.Index, got, err)
			}
		}
		mustClose(t, db)
	}
	t.Logf("refused %d of %d", refused, len(sound)/509)
	if refused < 20 {
		t.Errorf("only %d flips were noticed", refused)
	}
}

// The file of log and votes is cut at each page, after its metas, and within each: where all that is cut off
// was never in use, nothing is lost; anything else is noticed, free pages too.
func TestRepairLogCut(t *testing.T) {
	path := filepath.Join(t.TempDir(), logName)
	db, err := openBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	for term := range uint64(20) { // the first pages are free again
		if err := db.SetUint64([]byte(keyCurrentTerm), term); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, db)
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	inUse := int64(binary.NativeEndian.Uint64(sound[16+40:]))
	if other := int64(binary.NativeEndian.Uint64(sound[os.Getpagesize()+16+40:])); other > inUse {
		inUse = other
	}
	inUse *= int64(os.Getpagesize())
	if inUse < 5*4096 || int64(len(sound)) <= inUse {
		t.Fatalf("%d bytes in use in a file of %d show nothing", inUse, len(sound))
	}
	for at := int64(17); at < int64(len(sound)); at += 2048 {
		if err := os.WriteFile(path, sound[:at], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := checkBolt(path); errors.Is(err, ErrLogDamaged) != (at < inUse) {
			t.Errorf("cut at byte %d, with %d in use: %v", at, inUse, err)
		}
	}
}
