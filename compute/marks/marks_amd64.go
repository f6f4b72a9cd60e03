package marks

import "golang.org/x/sys/cpu"

// width is how many bytes index looks at in one step.
const width = 32

var wide = cpu.X86.HasAVX2

// index is the place of the first mark in the first n &^ 31 bytes from p, n if there is none. n is at least 32, or it runs away.
//
//go:noescape
func index(p *byte, n int) int
