package crc32c

import (
	"unsafe"

	"golang.org/x/sys/cpu"
)

const (
	// least bytes are summed in three lanes; of fewer, putting the lanes together costs more than they save.
	least = 72
	// most is where the library is as quick.
	most = 2048
)

var inLanes = cpu.X86.HasSSE42 && cpu.X86.HasPCLMULQDQ

// lane is what joins three lanes of some length n: a sum goes past n bytes when it is multiplied by x to the 8n-th,
// modulo the polynomial. Multiplication and reduction add 33 to the exponent.
type lane struct{ past1, past2 uint64 }

// lanes are by words of eight bytes.
var lanes = func() (l [most/24 + 1]lane) {
	var powers [2 * len(l)]uint32 // of x to the 64i-33-th, reflected
	p := uint32(1) << 31          // x to the 0th
	for e := range 64*len(powers) - 33 {
		if (e+33)%64 == 0 {
			powers[(e+33)/64] = p
		}
		if p&1 != 0 {
			p = p>>1 ^ 0x82f63b78
		} else {
			p >>= 1
		}
	}
	for n := 1; n < len(l); n++ {
		l[n] = lane{uint64(powers[n]), uint64(powers[2*n])}
	}
	return l
}()

func sumInLanes(key, rest []byte) uint32 {
	words := 0
	if len(rest) >= least {
		words = len(rest) / 24
	}
	l := &lanes[words]
	return sum(unsafe.SliceData(key), len(key), unsafe.SliceData(rest), len(rest), words, l.past1, l.past2)
}

// sum sums up the key, three lanes of so many words, and then what is left.
//
//go:noescape
func sum(key *byte, keySize int, rest *byte, size, words int, past1, past2 uint64) uint32
