//go:build amd64 || arm64

package lookahead

// prefetch has the processor load so many lines of 64 bytes, at least one, and does not wait. An address where nothing is does no harm.
//
//go:noescape
func prefetch(addr, lines uintptr)
