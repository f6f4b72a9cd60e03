package fsm

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
)

// A pin ends when nobody has used it for its time to live. To open a view, to close it, and to have it open, are uses.
func TestPinIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t, testConfig())
		m.one(pinCmd(1, minute))
		at := m.f.Applied()
		most := time.Minute - time.Millisecond
		time.Sleep(most)
		v := m.pinned(1, at)
		time.Sleep(2 * time.Minute)
		if n := m.f.Pins(); n.Live != 1 || n.Oldest != 3*time.Minute-time.Millisecond {
			t.Fatalf("while it is read: %+v", n)
		}
		v.Close()
		time.Sleep(most)
		m.pinned(1, at).Close()
		time.Sleep(time.Minute)
		synctest.Wait()
		m.wantGone(1, at, PinIdle)
		if n := m.f.Pins(); n.Live != 0 || n.Ended[PinIdle] != 1 {
			t.Fatalf("afterwards: %+v", n)
		}
	})
}

// However much a pin is used, it ends at an age. Who reads it then, reads on.
func TestPinAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.Pins.Age = 5 * time.Minute
		m := newMachine(t, cfg)
		m.apply(0, set("a", "1"), pinCmd(1, 60*minute))
		at := m.f.Applied()
		v := m.pinned(1, at)
		time.Sleep(5*time.Minute - time.Nanosecond)
		synctest.Wait()
		m.pinned(1, at).Close()
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		m.wantGone(1, at, PinAge)
		m.one(set("a", "2"))
		if err := m.f.Flush(); err != nil {
			t.Fatal(err)
		}
		if got, _ := v.Get(5, []byte("a")); string(got) != "1" {
			t.Fatalf("the last reader sees %q", got)
		}
		v.Close()
	})
}

// A replica has so many pins and no more; when one ends, there is room for another.
func TestPinNumber(t *testing.T) {
	m := newMachine(t, testConfig())
	for id := range int64(10) {
		m.one(pinCmd(id+1, minute))
	}
	for id := range uint64(10) {
		if id < 8 {
			m.pinned(id+1, id+2).Close()
		} else {
			m.wantGone(id+1, id+2, PinNumber)
		}
	}
	m.apply(0, unpin(3), pinCmd(11, minute))
	m.pinned(11, m.f.Applied()).Close()
	m.wantGone(3, 4, PinUnpinned)
	if n := m.f.Pins(); n.Live != 8 || n.Ended[PinNumber] != 2 || n.Ended[PinUnpinned] != 1 {
		t.Fatalf("%+v", n)
	}
	for id := range int64(100) {
		m.apply(0, unpin(11), pinCmd(1000+id, minute), unpin(1000+id))
	}
	m.wantGone(9, 10, "") // long forgotten why
}

// One pin is read by many at once, while entries are applied and checkpoints written, and is closed by each on its own. The race detector looks on.
func TestPinManyReaders(t *testing.T) {
	m := newMachine(t, testConfig())
	fill(m, 300, 1)
	m.apply(0, onSlot(setTTL("ends", "soon", 10), 9), pinCmd(1, minute))
	at := m.f.Applied()
	first := m.pinned(1, at)
	want, size := first.Hash(), len(contents(first))
	first.Close()
	var readers sync.WaitGroup
	for g := range 6 {
		readers.Go(func() {
			for range 15 {
				v, err := m.f.Pinned(1, at)
				if err != nil {
					t.Error(err)
					return
				}
				n := 0
				_ = v.Scan(0, command.Slots-1, nil, func(slot uint16, key, value []byte) bool {
					n++
					got, ok := v.Get(slot, key)
					return ok && string(got) == string(value)
				})
				if records, _ := v.Counts(); n != size || records != int64(size) || g%2 == 0 && v.Hash() != want {
					t.Errorf("reader %d sees %d keys of %d, counts %d", g, n, size, records)
				}
				v.Close()
				v.Close()
			}
		})
	}
	for i := range 20 {
		fill(m, 100, i)
		if err := m.f.Flush(); err != nil {
			t.Error(err)
		}
	}
	readers.Wait()
	m.one(unpin(1))
	m.wantGone(1, at, PinUnpinned)
}

// fill sets n keys, each in an entry with others.
func fill(m *machine, n, seed int) {
	m.t.Helper()
	r := rand.New(rand.NewPCG(uint64(seed), 1))
	for range n / 20 {
		var cmds []command.Command
		for range 20 {
			cmds = append(cmds, onSlot(set(fmt.Sprint("key", r.IntN(2000)), strings.Repeat("v", 1+r.IntN(200))), uint16(100+r.IntN(300))))
		}
		m.apply(1, cmds...)
	}
}

// A state from another replica takes the place of ours under a pin, which keeps the old file until its last reader is gone.
func TestPinOutlivesRestore(t *testing.T) {
	m, other := newMachine(t, testConfig()), newMachine(t, testConfig())
	fill(m, 200, 1)
	if err := m.f.Flush(); err != nil { // both files are at the same transaction now, by its number
		t.Fatal(err)
	}
	m.one(pinCmd(1, minute))
	at := m.f.Applied()
	v := m.pinned(1, at)
	want := v.Hash()
	fill(other, 400, 2)
	if err := other.f.Flush(); err != nil {
		t.Fatal(err)
	}
	_, _, stream, err := other.f.OpenStream(StreamWhole)
	if err == nil {
		err = m.f.Restore(stream)
	}
	if err != nil {
		t.Fatal(err)
	}
	m.logs = other.logs
	old := generationPath(m.dir, 1)
	if _, err := os.Stat(old); err != nil {
		t.Fatalf("the file of a pin: %v", err)
	}
	m.wantGone(1, m.f.Applied(), "")
	again := m.pinned(1, at)
	if again.Hash() != want || v.Hash() != want {
		t.Fatal("the pin has changed")
	}
	again.Close()
	m.one(pinCmd(2, minute))
	next := m.pinned(2, m.f.Applied())
	if next.Hash() != m.hash() {
		t.Fatal("a pin after the restore shows another state")
	}
	next.Close()
	m.one(unpin(1))
	if v.Hash() != want {
		t.Fatal("the pin has changed for its last reader")
	}
	v.Close()
	waitGone(t, old)
}

// waitGone waits until a file was removed, which the goroutine of the pins may have yet to do.
func waitGone(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("%s is still there: %v", path, err)
		}
	}
}

// Close ends pins at once; a reader is waited for as any view is, and may close late.
func TestPinsAtClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.CloseTimeout = 3 * time.Second
		m := newMachine(t, cfg)
		m.one(pinCmd(1, minute))
		began := time.Now()
		m.reopen(0)
		if took := time.Since(began); took > 0 {
			t.Fatalf("closing took %v", took)
		}
		v := m.pinned(1, 2) // the entry was applied again
		began = time.Now()
		if err := m.f.Close(); !errors.Is(err, ErrViewsOpen) || time.Since(began) != 3*time.Second {
			t.Fatalf("closed with %v after %v", err, time.Since(began))
		}
		if _, err := m.f.Pinned(1, 2); err != ErrClosed {
			t.Fatal(err)
		}
		if v.Index() != 2 || len(contents(v)) != 0 {
			t.Fatal("the reader's view has changed")
		}
		v.Close()
		m.open()
	})
}

func TestPinVerdict(t *testing.T) {
	const far = 1 << 40
	for _, tc := range []struct {
		w    weight
		most int64
		want pinVerdict
	}{
		{weight{spare: far}, 100, pinsFine},
		{weight{pages: 60, memory: 40, spare: far}, 100, pinsFine},
		{weight{pages: 60, memory: 41, spare: far}, 100, pinsCopy},
		{weight{pages: 200, spare: far}, 100, pinsCopy},
		{weight{pages: 201, spare: far}, 100, pinsEnd},
		{weight{memory: 201, spare: far}, 100, pinsEnd},
		{weight{pages: 10, spare: 20}, 100, pinsFine},
		{weight{pages: 11, spare: 20}, 100, pinsCopy},
		{weight{pages: 21, spare: 20}, 100, pinsEnd},
		{weight{}, 100, pinsFine}, // a full map is no pin's fault
	} {
		if got := tc.w.verdict(tc.most); got != tc.want {
			t.Errorf("%+v of %d: %d, want %d", tc.w, tc.most, got, tc.want)
		}
	}
}

// A pin for whose sake the file would grow and grow is given a copy, from which it is read on as it was; the file's pages are used again then. Readers
// stay with what they have. The copy goes with the pin.
func TestPinIsCopied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.Pins.HeldBytes = 3 << 20
		cfg.Pins.CopyBytes = 700 << 10 // so that it takes seconds
		m := newMachine(t, cfg)
		flush := func() {
			if err := m.f.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		for seed := range 3 { // so that there are free pages, which a copy leaves out
			fill(m, 2000, seed)
			flush()
		}
		m.apply(0, onSlot(setTTL("ends", "soon", 10_000), 9), set("memory", "only"), pinCmd(1, minute), pinCmd(2, minute))
		at := m.f.Applied()
		v := m.pinned(1, at)
		want, wantKeys := v.Hash(), contents(v)
		if held := m.f.Pins().HeldBytes; held > 10<<10 {
			t.Fatalf("%d bytes are held before any checkpoint", held)
		}
		churn := func() {
			fill(m, 400, int(time.Now().UnixNano()%1000))
			flush()
			time.Sleep(pinLook)
			synctest.Wait()
		}
		rounds := 0
		for m.f.Pins().Copied == 0 {
			if churn(); rounds > 50 {
				t.Fatalf("not copied: %+v", m.f.Pins())
			}
			rounds++
		}
		if n := m.f.Pins(); n.Copied != 2 || n.Live != 2 {
			t.Fatalf("copied: %+v", n)
		}
		copies, _ := filepath.Glob(filepath.Join(m.dir, pinPrefix+"*"))
		if len(copies) != 1 {
			t.Fatalf("copies: %v", copies)
		}
		var st syscall.Stat_t
		if err := syscall.Stat(copies[0], &st); err != nil || st.Blocks*512 > m.f.FileBytes()*5/4 || st.Size < st.Blocks*512*3/2 {
			t.Fatalf("the copy takes %d bytes of its %d, %d are in use: %v", st.Blocks*512, st.Size, m.f.FileBytes(), err)
		}
		before := m.f.Pins().HeldBytes
		if churn(); m.f.Pins().HeldBytes < before {
			t.Fatalf("the file is let go under a reader")
		}
		for id := range uint64(2) {
			own := m.pinned(id+1, at)
			if got := contents(own); own.Hash() != want || len(got) != len(wantKeys) || own.gen == v.gen {
				t.Fatalf("the copy has %d keys of %d", len(got), len(wantKeys))
			}
			own.Close()
		}
		if v.Hash() != want {
			t.Fatal("the view of before has changed")
		}
		v.Close()
		churn()
		if n := m.f.Pins(); n.HeldBytes > 100<<10 {
			t.Fatalf("pages are held for a copied pin: %+v", n)
		}
		m.one(unpin(1))
		m.one(unpin(2))
		synctest.Wait()
		if _, err := os.Stat(copies[0]); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("the copy of no pin: %v", err)
		}
	})
}

// Where a pin cannot be copied it ends: for want of room, or when it is too slow for what is kept meanwhile. A copy that has no room any more ends, too.
func TestPinEndsForItsWeight(t *testing.T) {
	for _, tc := range []struct {
		name      string
		copyBytes int64
		room      func(copied bool, bytes int64) bool
		copied    bool
		want      PinReason
	}{
		{"no room for a copy", 1 << 30, func(_ bool, bytes int64) bool { return bytes < 100<<10 }, false, PinDisk},
		{"no room while it is copied", 100 << 10, nil, false, PinDisk},
		{"no room for the copy later", 1 << 30, func(copied bool, _ int64) bool { return !copied }, true, PinDisk},
		{"copied too slowly", 1 << 10, func(bool, int64) bool { return true }, false, PinBytes},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := testConfig()
				cfg.Pins.HeldBytes = 200 << 10
				cfg.Pins.CopyBytes = tc.copyBytes
				var m *machine
				var mu sync.Mutex
				copied, asked := false, false
				cfg.Room = func(bytes int64) bool {
					mu.Lock()
					defer mu.Unlock()
					if tc.room == nil { // there is, until it was begun
						was := asked
						asked = asked || bytes > 0
						return !was
					}
					return tc.room(copied, bytes)
				}
				m = newMachine(t, cfg)
				fill(m, 2000, 1)
				if err := m.f.Flush(); err != nil {
					t.Fatal(err)
				}
				m.one(pinCmd(1, 60*minute))
				at := m.f.Applied()
				for range 60 {
					if m.f.Pins().Live == 0 {
						break
					}
					fill(m, 400, int(time.Now().UnixNano()%1000))
					if err := m.f.Flush(); err != nil {
						t.Fatal(err)
					}
					time.Sleep(pinLook)
					synctest.Wait()
					mu.Lock()
					copied = copied || m.f.Pins().Copied > 0
					mu.Unlock()
				}
				m.wantGone(1, at, tc.want)
				if copied != tc.copied {
					t.Fatalf("copied: %v", copied)
				}
				time.Sleep(2 * pinLook)
				synctest.Wait()
				if left, _ := filepath.Glob(filepath.Join(m.dir, pinPrefix+"*")); len(left) > 0 {
					t.Fatalf("left behind: %v", left)
				}
			})
		})
	}
}

// As long as a reader of a pin that has ended keeps pages, younger pins are not ended for them: it would free little. When it has closed, the next is looked at for what it keeps itself.
func TestPinIsNotBlamedForAnothers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.Pins.HeldBytes = 200 << 10
		cfg.Pins.CopyBytes = 1 << 10 // too slow
		m := newMachine(t, cfg)
		churn := func() {
			fill(m, 400, int(time.Now().UnixNano()%1000))
			if err := m.f.Flush(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(pinLook)
			synctest.Wait()
		}
		fill(m, 2000, 1)
		churn()
		m.one(pinCmd(1, 60*minute))
		first := m.f.Applied()
		v := m.pinned(1, first)
		for range 4 {
			churn()
		}
		m.wantGone(1, first, PinBytes)
		m.one(pinCmd(2, 60*minute))
		second := m.f.Applied()
		for range 4 {
			churn()
		}
		m.pinned(2, second).Close()
		v.Close()
		time.Sleep(pinLook)
		synctest.Wait()
		m.pinned(2, second).Close() // nobody knows yet what it keeps
		churn()
		m.wantGone(2, second, PinBytes)
	})
}

// A start removes what pins of an earlier life have left.
func TestPinCopiesOfBefore(t *testing.T) {
	m := newMachine(t, testConfig())
	left := filepath.Join(m.dir, pinPrefix+"1-7.db")
	for _, path := range []string{left, left + damagedSuffix} {
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m.reopen(0)
	if got, _ := filepath.Glob(left + "*"); len(got) > 0 {
		t.Fatalf("left behind: %v", got)
	}
}
