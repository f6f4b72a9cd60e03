package crc32c

import (
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"github.com/abacusdb/abacus/fsm/guardpage"
)

// Every length up to where the library takes over and beyond, at every alignment, after every sum: the library's answer.
func TestIsTheLibrarys(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, 5000)
	for i := range buf {
		buf[i] = byte(rnd.Uint32())
	}
	for n := range 4900 {
		for at := range 8 {
			p, sum := buf[at:at+n], rnd.Uint32()
			if got, want := Update(sum, p), crc32.Update(sum, table, p); got != want {
				t.Fatalf("%d bytes at %d after %08x: %08x, want %08x", n, at, sum, got, want)
			}
			if got, want := Checksum(p), crc32.Checksum(p, table); got != want {
				t.Fatalf("%d bytes at %d: %08x, want %08x", n, at, got, want)
			}
		}
	}
	if got := Checksum([]byte("123456789")); got != 0xe3069283 { // RFC 3720's check
		t.Errorf("the check is %08x", got)
	}
}

// Nothing behind the bytes is read.
func TestStaysInside(t *testing.T) {
	buf := guardpage.Bytes(t, 2*most+100)
	for n := range len(buf) + 1 {
		Checksum(buf[len(buf)-n:])
	}
}

func FuzzIsTheLibrarys(f *testing.F) {
	f.Add(uint32(0), []byte(nil))
	f.Add(uint32(7), make([]byte, 300))
	f.Fuzz(func(t *testing.T, sum uint32, p []byte) {
		if got, want := Update(sum, p), crc32.Update(sum, table, p); got != want {
			t.Fatalf("%x after %08x: %08x, want %08x", p, sum, got, want)
		}
	})
}

// A row of 256 bytes: its key, and what is stored of it.
func BenchmarkRow(b *testing.B) {
	buf := make([]byte, 1<<20)
	for _, w := range []struct {
		name   string
		update func(uint32, []byte) uint32
	}{{"lanes", Update}, {"library", func(s uint32, p []byte) uint32 { return crc32.Update(s, table, p) }}} {
		b.Run(w.name, func(b *testing.B) {
			var sum uint32
			for i := range b.N {
				at := i * 293 & (1<<19 - 1)
				sum = w.update(w.update(sum, buf[at:at+12]), buf[at+16:at+281])
			}
		})
	}
}
