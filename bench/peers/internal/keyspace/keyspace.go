// Package keyspace says which key an operation takes and which slot a key is in.
package keyspace

import (
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"strings"
)

// Generator draws key numbers in [0, n). Not for several goroutines.
type Generator func() int

// New makes a generator. The same seed draws the same keys.
func New(dist string, n int, seed uint64) (Generator, error) {
	r := rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15))
	switch dist {
	case "uniform":
		return func() int { return r.IntN(n) }, nil
	case "zipfian":
		return func() int { return int(fnv64(zipfRank(r.Float64())) % uint64(n)) }, nil
	}
	return nil, fmt.Errorf("distribution %q: want uniform or zipfian", dist)
}

// The constants of YCSB's ScrambledZipfianGenerator: ranks are drawn out of 10^10
// items whatever the key space, so that zetan, their sum of i^-theta, is a constant
// and the hottest key has 1/zetan = 3.8 % of the load in a small key space as in a large one.
const (
	zipfTheta = 0.99
	zipfItems = 10_000_000_000
	zipfZetaN = 26.46902820178302
)

var (
	zipfHalf  = math.Pow(0.5, zipfTheta)
	zipfAlpha = 1 / (1 - zipfTheta)
	zipfEta   = (1 - math.Pow(2.0/zipfItems, 1-zipfTheta)) / (1 - (1+zipfHalf)/zipfZetaN)
)

// zipfRank turns u, uniform in [0, 1), into a rank by Zipf's law. After Gray et
// al., "Quickly Generating Billion-Record Synthetic Databases", as YCSB does.
func zipfRank(u float64) uint64 {
	switch uz := u * zipfZetaN; {
	case uz < 1:
		return 0
	case uz < 1+zipfHalf:
		return 1
	}
	return uint64(zipfItems * math.Pow(zipfEta*u-zipfEta+1, zipfAlpha))
}

// fnv64 is YCSB's hash of a rank, which spreads the hot keys over the key space.
func fnv64(v uint64) uint64 {
	h := uint64(0xcbf29ce484222325)
	for range 8 {
		h ^= v & 0xff
		h *= 1099511628211
		v >>= 8
	}
	if int64(h) < 0 { // YCSB takes Math.abs
		h = -h
	}
	return h
}

// Permutation returns a function that maps 0…n-1 onto 0…n-1 in an order that looks
// random, each exactly once, without keeping a table.
func Permutation(n int, seed uint64) func(int) int {
	width := max(2, bits.Len(uint(n-1)))
	mask, half := uint64(1)<<width-1, width/2
	r := rand.New(rand.NewPCG(seed, 1))
	var odd [3]uint64
	for i := range odd {
		odd[i] = r.Uint64() | 1
	}
	return func(i int) int {
		x := uint64(i)
		for {
			for _, m := range odd { // an odd factor and a shift to the right each can be undone
				x = (x*m + m>>7) & mask
				x ^= x >> half
			}
			if x < uint64(n) {
				return int(x)
			}
		}
	}
}

// Slots is the number of hash slots.
const Slots = 16384

// Slot is a key's hash slot, as in Redis Cluster: CRC16 (XMODEM) of what stands
// between the first { and the next }, if that is not empty, and else of the key.
func Slot(key string) int {
	if _, after, ok := strings.Cut(key, "{"); ok {
		if tag, _, ok := strings.Cut(after, "}"); ok && tag != "" {
			key = tag
		}
	}
	return int(CRC16(key)) % Slots
}

// CRC16 has the polynomial 0x1021, highest bit first, start 0.
func CRC16(s string) (crc uint16) {
	for i := range len(s) {
		crc = crc<<8 ^ crcTable[byte(crc>>8)^s[i]]
	}
	return crc
}

var crcTable = func() (t [256]uint16) {
	for i := range t {
		c := uint16(i) << 8
		for range 8 {
			if c&0x8000 != 0 {
				c = c<<1 ^ 0x1021
			} else {
				c <<= 1
			}
		}
		t[i] = c
	}
	return
}()
