//go:build unix

// Package guardpage gives tests memory that has edges: to touch what is beyond them is a fault. No program links it.
package guardpage

import (
	"syscall"
	"testing"
)

// Bytes returns so many bytes with nothing behind them, and nothing before the page that the first is on.
func Bytes(t testing.TB, size int) []byte {
	t.Helper()
	const edge = 64 << 20 // more than any count of what reads them reaches
	page := syscall.Getpagesize()
	whole := (size + page - 1) / page * page
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	all, err := syscall.Mmap(-1, 0, edge+whole+edge, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	must(err)
	t.Cleanup(func() { must(syscall.Munmap(all)) })
	must(syscall.Mprotect(all[:edge], syscall.PROT_NONE))
	must(syscall.Mprotect(all[edge+whole:], syscall.PROT_NONE))
	return all[edge+whole-size : edge+whole : edge+whole]
}
