package fsm

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/abacusdb/abacus/fsm/command"
)

func TestScan(t *testing.T) {
	m := newMachine(t, testConfig())
	for _, s := range []uint16{0, 3, 100, 101, 16383} {
		for _, key := range []string{"a/2", "a/1", "b/1", "a", "\xff"} {
			m.log(0, onSlot(set(key, "v"), s))
		}
	}
	m.log(0, onSlot(setTTL("a/0", "ended", 5), 3), onSlot(setTTL("a/3", "later", 50), 3))
	m.f.ApplyBatch(m.logs[1:])
	m.pass(5)
	v := m.view()
	scan := func(from, to uint16, prefix string, limit int) string {
		var got []string
		if err := v.Scan(from, to, []byte(prefix), func(slot uint16, key, value []byte) bool {
			got = append(got, fmt.Sprintf("%d:%s", slot, key))
			return len(got) < limit
		}); err != nil {
			t.Fatal(err)
		}
		return strings.Join(got, " ")
	}
	for _, tc := range []struct {
		from, to uint16
		prefix   string
		limit    int
		want     string
	}{
		{0, 16383, "a/", 99, "0:a/1 0:a/2 3:a/1 3:a/2 3:a/3 100:a/1 100:a/2 101:a/1 101:a/2 16383:a/1 16383:a/2"},
		{1, 100, "", 99, "3:a 3:a/1 3:a/2 3:a/3 3:b/1 3:\xff 100:a 100:a/1 100:a/2 100:b/1 100:\xff"},
		{1, 100, "", 2, "3:a 3:a/1"},
		{3, 3, "a/", 1, "3:a/1"},
		{0, 16383, "\xff", 99, "0:\xff 3:\xff 100:\xff 101:\xff 16383:\xff"},
		{4, 99, "", 99, ""},
		{4, 99, "a", 99, ""},
		{0, 16383, "none", 99, ""},
		{16383, 16383, "b", 99, "16383:b/1"},
	} {
		if got := scan(tc.from, tc.to, tc.prefix, tc.limit); got != tc.want {
			t.Errorf("scan %d-%d %q limit %d:\n got %s\nwant %s", tc.from, tc.to, tc.prefix, tc.limit, got, tc.want)
		}
	}
	if n, size := v.SlotCount(3); n != 6 || size != 1+3+3+3+3+1+5*1+5 {
		t.Errorf("slot 3 counts %d keys, %d bytes", n, size)
	}
	if n, _ := v.SlotCount(4); n != 0 {
		t.Errorf("slot 4 counts %d keys", n)
	}
	if _, ok := v.Get(3, []byte("a/0")); ok {
		t.Error("a key that has ended is there")
	}
}

// A scan of a prefix has what a scan of everything has with that prefix, whichever of memory, a checkpoint that is under way and the file
// have the keys, and those that are gone.
func TestScanPrefix(t *testing.T) {
	cfg := testConfig()
	hold, held := make(chan struct{}), make(chan struct{})
	cfg.OnCheckpoint = func() { held <- struct{}{}; <-hold }
	m := newMachine(t, cfg)
	rnd := rand.New(rand.NewPCG(1, 7))
	slots := []uint16{0, 1, 2, 3, 100, 101, 102, 16383}
	letters := []string{"a", "b", "c", "\x00", "\xff", "aaaaaaaa"}
	text := func(most int) (s string) {
		for range rnd.IntN(most + 1) {
			s += letters[rnd.IntN(len(letters))]
		}
		return s
	}
	change := func(n int) {
		for range n {
			c := set(text(3)+".", "v")
			if rnd.IntN(3) == 0 {
				c = cmd(command.OpDel, k(text(3)+"."))
			}
			m.apply(0, onSlot(c, slots[rnd.IntN(len(slots))]))
		}
	}
	flush := func() <-chan error { // comes back when the checkpoint is under way
		done := make(chan error, 1)
		go func() { done <- m.f.Flush() }()
		<-held
		return done
	}
	found := 0
	for range 300 {
		change(rnd.IntN(12))
		m.apply(0, set("so that there is a checkpoint", "v"))
		done := flush()
		change(rnd.IntN(12))
		v := m.view()
		for range 20 {
			from, to, prefix := slots[rnd.IntN(len(slots))], slots[rnd.IntN(len(slots))], text(2)
			var got, want []string
			_ = v.Scan(from, to, []byte(prefix), func(slot uint16, key, _ []byte) bool {
				got = append(got, fmt.Sprintf("%d:%q", slot, key))
				return true
			})
			_ = v.Scan(from, to, nil, func(slot uint16, key, _ []byte) bool {
				if strings.HasPrefix(string(key), prefix) {
					want = append(want, fmt.Sprintf("%d:%q", slot, key))
				}
				return true
			})
			if found += len(want); !slices.Equal(got, want) {
				t.Errorf("scan %d-%d %q:\n got %v\nwant %v", from, to, prefix, got, want)
			}
		}
		v.Close()
		hold <- struct{}{}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			return
		}
	}
	if found < 10_000 {
		t.Errorf("only %d keys were there to be found", found)
	}
}

// Over all pages every key that stays is seen, whatever else comes and goes
// between them; over a state at rest every key is seen just once.
func TestScanPage(t *testing.T) {
	for _, tc := range []struct {
		name  string
		slots int // how many slots the keys are in
		keys  int
		count int
		quiet bool
	}{
		{"many small slots", 300, 2000, 10, true},
		{"many small slots, churn", 300, 2000, 10, false},
		{"one large slot", 1, 3500, 10, true},
		{"one large slot, churn", 1, 3500, 10, false},
		{"two large slots, large count", 2, 5000, 1500, true},
		{"two large slots, churn", 2, 5000, 700, false},
		{"nothing", 1, 0, 10, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(7, uint64(tc.keys)))
			m := newMachine(t, testConfig())
			slot := func(i int) uint16 { return uint16(100 + i%tc.slots) }
			for i := range tc.keys {
				m.log(0, onSlot(set(fmt.Sprintf("key%06d", i), "v"), slot(i)))
			}
			m.log(0, onSlot(setTTL("ends", "v", 1), 100))
			m.log(1, onSlot(set("out of range", "v"), 9), onSlot(set("out of range", "v"), 16000))
			m.f.ApplyBatch(m.logs[1:])

			seen := map[string]int{}
			cursor, pages := uint64(0), 0
			for {
				v := m.view()
				keys, next := v.ScanPage(cursor, tc.count, [2]uint16{100, 15000}, nil, nil)
				v.Close()
				for _, k := range keys {
					seen[string(k)]++
				}
				if next == 0 {
					break
				}
				if next <= cursor || next >= 1<<62 {
					t.Fatalf("cursor %d after %d", next, cursor)
				}
				if len(keys) < tc.count {
					t.Fatalf("a page of %d keys before the end", len(keys))
				}
				cursor = next
				if pages++; pages > tc.keys+10 {
					t.Fatal("the scan does not end")
				}
				if !tc.quiet { // others come and go, so that slots grow, shrink and cross the limit
					for range 20 {
						n := r.IntN(3 * tc.keys)
						c := onSlot(set(fmt.Sprintf("other%06d", n), "v"), slot(n))
						if r.IntN(2) == 0 {
							c = onSlot(cmd(command.OpDel, k(fmt.Sprintf("other%06d", n/2))), slot(n/2))
						}
						m.log(0, c)
					}
					m.f.ApplyBatch(m.logs[m.f.Applied():])
				}
			}
			for i := range tc.keys {
				key := fmt.Sprintf("key%06d", i)
				if seen[key] == 0 || tc.quiet && seen[key] > 1 {
					t.Fatalf("%s seen %d times", key, seen[key])
				}
			}
			if tc.quiet && len(seen) != tc.keys {
				t.Fatalf("%d keys seen, %d are there", len(seen), tc.keys)
			}
			if seen["ends"]+seen["out of range"] > 0 {
				t.Error("a key that ended, or of another range, was seen")
			}
		})
	}
}

func TestScanPageFilters(t *testing.T) {
	m := newMachine(t, testConfig())
	for i := range 6000 {
		slot := uint16(100 + i%3) // two thousand keys each: paged by position
		m.log(0, onSlot(set(fmt.Sprintf("%c/%05d", 'a'+i%2, i), "v"), slot))
	}
	m.f.ApplyBatch(m.logs[1:])
	v := m.view()
	all := func(match func([]byte) bool, prefix string) []string {
		var got [][]byte
		cursor := uint64(0)
		for range 10000 {
			var keys [][]byte
			keys, cursor = v.ScanPage(cursor, 10, [2]uint16{0, 16383}, match, []byte(prefix))
			got = append(got, keys...)
			if cursor == 0 {
				return sorted(got)
			}
		}
		t.Fatal("the scan does not end")
		return nil
	}
	var want []string
	for i := 0; i < 6000; i += 2 {
		want = append(want, fmt.Sprintf("a/%05d", i))
	}
	if got := all(nil, "a/"); !slices.Equal(got, want) {
		t.Errorf("prefix: %d keys, want %d", len(got), len(want))
	}
	if got := all(func(k []byte) bool { return k[0] == 'a' }, ""); !slices.Equal(got, want) {
		t.Errorf("match: %d keys, want %d", len(got), len(want))
	}
	if got := all(func(k []byte) bool { return string(k) == "b/00777" }, "b"); !slices.Equal(got, []string{"b/00777"}) {
		t.Errorf("one key: %v", got)
	}
	if got := all(func([]byte) bool { return false }, ""); got != nil {
		t.Errorf("no key: %v", got)
	}
	// Cursors that nobody handed out do no harm.
	for _, c := range []uint64{1, 1 << 47, 5 << 48, 102<<48 | 1<<48 - 1, 16383 << 48, 1<<62 - 1, 1<<64 - 1} {
		if keys, next := v.ScanPage(c, 5, [2]uint16{100, 102}, nil, nil); next != 0 && next <= c && c>>48 >= 100 {
			t.Errorf("cursor %x: %d keys, next %x", c, len(keys), next)
		}
	}
}

// Keys at one position must come in one page. Real collisions of 48 bits do not
// turn up in a test, so limit 1 on a handful of keys checks the boundary.
func TestScanSlotBoundary(t *testing.T) {
	m := newMachine(t, testConfig())
	for i := range 50 {
		m.log(0, onSlot(set(fmt.Sprint(i), "v"), 100))
	}
	m.f.ApplyBatch(m.logs[1:])
	v := m.view()
	for limit := 1; limit <= 51; limit++ {
		var keys [][]byte
		pos, pages := uint64(0), 0
		for {
			var page [][]byte
			page, pos = v.scanSlot(nil, 100, pos, limit, nil, nil)
			keys = append(keys, page...)
			pages++
			if pos == 0 {
				break
			}
			if len(page) != limit {
				t.Fatalf("limit %d: page of %d", limit, len(page))
			}
		}
		if want := (50 + limit - 1) / limit; len(keys) != 50 || pages != want {
			t.Fatalf("limit %d: %d keys in %d pages, want %d", limit, len(keys), pages, want)
		}
	}
}

// Positions are in cursors that clients hold, across versions and replicas.
func TestScanPositionGolden(t *testing.T) {
	for key, want := range map[string]uint64{"": 0x9ce48422e8d7, "foo": 0x7518fed909c5, "user:1000": 0xf3bfae7b0b31} {
		if got := scanPosition([]byte(key)); got != want {
			t.Errorf("position of %q is %#x, want %#x", key, got, want)
		}
	}
}

func TestRandomKey(t *testing.T) {
	m := newMachine(t, testConfig())
	if _, ok := m.view().RandomKey(7); ok {
		t.Error("a key out of nothing")
	}
	for i := range 40 {
		m.log(0, onSlot(set(fmt.Sprint(i), "v"), uint16(100+i%7)))
		m.log(0, onSlot(setTTL(fmt.Sprint("t", i), "v", 10), uint16(100+i%7)))
	}
	m.f.ApplyBatch(m.logs[1:])
	m.pass(10)
	v := m.view()
	seen := map[string]bool{}
	for seed := range uint64(40) {
		key, ok := v.RandomKey(seed)
		if !ok || strings.HasPrefix(string(key), "t") {
			t.Fatalf("seed %d: %q", seed, key)
		}
		seen[string(key)] = true
	}
	if len(seen) != 40 {
		t.Errorf("40 seeds give %d of 40 keys", len(seen))
	}
}

// The hash sees every part of the state, and not what was purged.
func TestHash(t *testing.T) {
	hashes := map[uint64]string{}
	record := func(name string, m *machine) {
		h := m.hash()
		if other, ok := hashes[h]; ok {
			t.Errorf("%s and %s have one hash", name, other)
		}
		hashes[h] = name
	}
	empty := emptyMachine(t, testConfig())
	record("empty", empty)
	record("init", newMachine(t, testConfig()))
	tick := newMachine(t, testConfig())
	tick.pass(1)
	record("one tick", tick)
	one := newMachine(t, testConfig())
	one.apply(0, set("ab", "c"))
	record("ab=c", one)
	two := newMachine(t, testConfig())
	two.apply(0, set("a", "bc"))
	record("a=bc", two)
	three := newMachine(t, testConfig())
	three.apply(0, onSlot(set("a", "bc"), 6))
	record("other slot", three)
	four := newMachine(t, testConfig())
	four.apply(0, setTTL("a", "bc", 10))
	record("ttl", four)
	five := newMachine(t, testConfig())
	five.apply(0, num(cmd(command.OpRecordSet, k("a"), "bc"), 0))
	record("record", five)
	five.apply(0, num(cmd(command.OpRecordDelete, k("a")), -1))
	record("record made and deleted", five)
}
