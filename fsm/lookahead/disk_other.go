//go:build !linux

package lookahead

var (
	missed   = func() missCount { return missCount{} }
	willNeed = func(addr, size uintptr) {}
)
