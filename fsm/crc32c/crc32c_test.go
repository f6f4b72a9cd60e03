package crc32c

import (
	"hash/crc32"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/abacusdb/abacus/fsm/guardpage"
)

// library is the sum as hash/crc32 has it.
func library(key, rest []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, table), table, rest)
}

// Every length up to where the library takes over and beyond, at every alignment, behind keys of many lengths: the library's answer.
func TestIsTheLibrarys(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, 5000)
	for i := range buf {
		buf[i] = byte(rnd.Uint32())
	}
	for n := range 4900 {
		for at := range 8 {
			key, p := buf[1000+at:][:rnd.IntN(40)], buf[at:at+n]
			if got, want := Checksum(key, p), library(key, p); got != want {
				t.Fatalf("%d bytes at %d behind %d: %08x, want %08x", n, at, len(key), got, want)
			}
		}
	}
	for n := range 600 { // of the key, however long
		for at := range 8 {
			key, p := buf[at:at+n], buf[2000:2000+rnd.IntN(100)]
			if got, want := Checksum(key, p), library(key, p); got != want {
				t.Fatalf("%d bytes behind %d at %d: %08x, want %08x", len(p), n, at, got, want)
			}
		}
	}
	for n := range 10 {
		if got := Checksum([]byte("123456789"[:n]), []byte("123456789"[n:])); got != 0xe3069283 { // RFC 3720's check
			t.Errorf("the check is %08x", got)
		}
	}
}

// Nothing behind the bytes is read, nor before them: they lie between pages that cannot be.
func TestStaysInside(t *testing.T) {
	buf := guardpage.Bytes(t, (2*most/os.Getpagesize()+1)*os.Getpagesize())
	for n := range len(buf) + 1 {
		head, tail := buf[:n], buf[len(buf)-n:]
		for _, p := range [][]byte{head, tail} {
			Checksum(nil, p)
			Checksum(p, nil)
			Checksum(p[:min(n, 20)], p)
		}
	}
}

func FuzzIsTheLibrarys(f *testing.F) {
	f.Add([]byte(nil), []byte(nil))
	f.Add([]byte("a key"), make([]byte, 300))
	f.Fuzz(func(t *testing.T, key, rest []byte) {
		if got, want := Checksum(key, rest), library(key, rest); got != want {
			t.Fatalf("%x behind %x: %08x, want %08x", rest, key, got, want)
		}
	})
}

// A row of 256 bytes: its key, and what is stored of it.
func BenchmarkRow(b *testing.B) {
	buf := make([]byte, 1<<20)
	for _, w := range []struct {
		name string
		sum  func(key, rest []byte) uint32
	}{{"lanes", Checksum}, {"library", library}} {
		b.Run(w.name, func(b *testing.B) {
			at := 0
			for b.Loop() {
				at = (at + 293) & (1<<19 - 1)
				w.sum(buf[at:at+12], buf[at+16:at+281])
			}
		})
	}
}
