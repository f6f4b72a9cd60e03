package keyspace

import (
	"math"
	"slices"
	"testing"
)

// The two hottest ranks have their shares by Zipf's law, and the rest of the load is
// as uneven as a sum of i^-0.99 says.
func TestZipfianSkew(t *testing.T) {
	const n, draws = 20_000, 2_000_000
	g, err := New("zipfian", n, 1)
	if err != nil {
		t.Fatal(err)
	}
	count := make([]int, n)
	for range draws {
		count[g()]++
	}
	// Of the ranks beyond the hottest, about 1/n falls on each key by the hash.
	near := func(what string, got, want, within float64) {
		t.Helper()
		if math.Abs(got-want) > within {
			t.Errorf("%s: share %.4f, want %.4f", what, got, want)
		}
	}
	near("rank 0", float64(count[fnv64(0)%n])/draws, 1/zipfZetaN, .001)
	near("rank 1", float64(count[fnv64(1)%n])/draws, zipfHalf/zipfZetaN, .001)
	slices.SortFunc(count, func(a, b int) int { return b - a })
	top, harmonic := 0, 0.0
	for i := range 200 {
		top += count[i]
		harmonic += math.Pow(float64(i+1), -zipfTheta)
	}
	// The ranks after the 200th fall on the hot keys too, a hundredth of them.
	share := harmonic / zipfZetaN
	near("hottest 200 keys", float64(top)/draws, share+(1-share)/100, .02)
}

// The hash is YCSB's: FNV-1a over the eight bytes, lowest first, made positive.
func TestFNVOfYCSB(t *testing.T) {
	if got := fnv64(0); got != 0x573807cdd7e5c63b { // the bits 0xa8c7…, negative as Java's long
		t.Errorf("fnv64(0) = %#x", got)
	}
	for v := range uint64(100_000) {
		if int64(fnv64(v)) < 0 {
			t.Fatalf("fnv64(%d) is negative", v)
		}
	}
}

func TestGeneratorsStayInRangeAndRepeat(t *testing.T) {
	for _, dist := range []string{"uniform", "zipfian"} {
		for _, n := range []int{1, 2, 3, 1000} {
			a, _ := New(dist, n, 7)
			b, _ := New(dist, n, 7)
			for range 10_000 {
				k := a()
				if k < 0 || k >= n {
					t.Fatalf("%s of %d: drew %d", dist, n, k)
				}
				if k != b() {
					t.Fatalf("%s of %d: same seed, other keys", dist, n)
				}
			}
		}
	}
	if _, err := New("pareto", 1, 1); err == nil {
		t.Error("no error for a distribution that does not exist")
	}
}

func TestUniformIsEven(t *testing.T) {
	g, _ := New("uniform", 100, 3)
	count := make([]int, 100)
	for range 1_000_000 {
		count[g()]++
	}
	for k, n := range count {
		if n < 9_400 || n > 10_600 {
			t.Errorf("key %d: drawn %d times of about 10,000", k, n)
		}
	}
}

// Every key once, and not in an order that a tree would like.
func TestPermutation(t *testing.T) {
	for _, n := range []int{1, 2, 3, 5, 100, 4096, 100_003} {
		p := Permutation(n, 42)
		seen := make([]bool, n)
		ascents := 0
		last := 0
		for i := range n {
			k := p(i)
			if k < 0 || k >= n || seen[k] {
				t.Fatalf("n=%d: %d maps to %d, out of range or twice", n, i, k)
			}
			seen[k] = true
			if k > last {
				ascents++
			}
			last = k
		}
		if n >= 1000 && (ascents < n*45/100 || ascents > n*55/100) {
			t.Errorf("n=%d: %d ascents: not like random", n, ascents)
		}
	}
}

func TestSlot(t *testing.T) {
	if got := CRC16("123456789"); got != 0x31c3 {
		t.Errorf("CRC16 = %#x, want 0x31c3", got)
	}
	for _, tc := range []struct {
		key  string
		want int
	}{
		{"", 0},
		{"123456789", 0x31c3},
		{"foo", 12182},
		{"bar", 5061},
		{"hello", 866},
		{"a{foo}b", 12182},
		{"{foo}{bar}", 12182},
		{"}{foo}", 12182},
		{"foo{{bar}}zap", Slot("{bar")},
		{"foo{}{bar}", int(CRC16("foo{}{bar}")) % Slots}, // an empty tag is none
		{"foo{bar", int(CRC16("foo{bar")) % Slots},
		{"foo}bar{", int(CRC16("foo}bar{")) % Slots},
	} {
		if got := Slot(tc.key); got != tc.want {
			t.Errorf("Slot(%q) = %d, want %d", tc.key, got, tc.want)
		}
	}
}

func BenchmarkZipfian(b *testing.B) {
	g, _ := New("zipfian", 20_000, 1)
	for b.Loop() {
		g()
	}
}
