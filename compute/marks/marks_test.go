package marks

import (
	"math/rand/v2"
	"os"
	"testing"

	"github.com/abacusdb/abacus/fsm/guardpage"
)

// check compares with one byte at a time, both ways that there are.
func check(t *testing.T, p []byte) {
	t.Helper()
	want := 0
	for want < len(p) && p[want] != '"' && p[want] != '\\' && p[want] >= ' ' {
		want++
	}
	if got := Index(p); got != want {
		t.Fatalf("Index says %d, want %d: %q", got, want, p)
	}
	if got := indexWords(p); got != want {
		t.Fatalf("indexWords says %d, want %d: %q", got, want, p)
	}
}

func TestEveryByteAtEveryPlace(t *testing.T) {
	for _, n := range []int{1, 7, 8, 31, 32, 33, 63, 64, 65, 96, 100} {
		for at := range n {
			for c := range 256 {
				p := make([]byte, n)
				for i := range p {
					p[i] = 'x'
				}
				p[at] = byte(c)
				check(t, p)
			}
		}
	}
}

// Plain bytes up to a mark, other marks behind it, and marks right before and behind the text, which are not its own.
func TestEveryLength(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	buf := make([]byte, 400)
	for n := range 300 {
		for first := range n + 1 {
			for i := range buf {
				buf[i] = "\"\\ \n\x00\x1f"[rnd.IntN(6)]
			}
			p := buf[n%32+1:][:n]
			for i := range first {
				p[i] = " !#[]\x7f\x80\xa2\xdc\xff"[rnd.IntN(10)]
			}
			check(t, p)
		}
	}
}

// Nothing behind the bytes is read, nor before them: they begin and end with pages that cannot be.
func TestStaysInside(t *testing.T) {
	buf := guardpage.Bytes(t, os.Getpagesize())
	for i := range buf {
		buf[i] = 'x'
	}
	for n := range 300 {
		if got := Index(buf[len(buf)-n:]); got != n {
			t.Fatalf("%d plain bytes: %d", n, got)
		}
		if got := Index(buf[:n]); got != n {
			t.Fatalf("the first %d plain bytes: %d", n, got)
		}
	}
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte(`some text of more than one step, and then a "`))
	f.Fuzz(func(t *testing.T, p []byte) { check(t, p) })
}

// A long string, and what it takes by words of eight bytes.
func BenchmarkIndex(b *testing.B) {
	p := make([]byte, 220)
	for i := range p {
		p[i] = 'x'
	}
	p[len(p)-1] = '"'
	b.Run("wide", func(b *testing.B) {
		for b.Loop() {
			Index(p)
		}
	})
	b.Run("words", func(b *testing.B) {
		for b.Loop() {
			indexWords(p)
		}
	})
}
