package lookahead

import (
	"syscall"
	"testing"
)

// guard returns so many bytes, whole pages, with nothing before and behind them: to touch that is a fault.
func guard(t testing.TB, size int) []byte {
	t.Helper()
	const edge = 64 << 20 // more than any count reaches
	all, err := syscall.Mmap(-1, 0, edge+size+edge, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	must(t, err)
	t.Cleanup(func() { must(t, syscall.Munmap(all)) })
	must(t, syscall.Mprotect(all[:edge], syscall.PROT_NONE))
	must(t, syscall.Mprotect(all[edge+size:], syscall.PROT_NONE))
	return all[edge : edge+size]
}
