// Package crc32c is hash/crc32's sum by Castagnoli's polynomial, quicker over some hundred bytes, which is what a row is.
//
// The processor's instruction for it waits three cycles for the one before it, and could begin one in each. The library
// has three sums side by side from half a kilobyte on; joined by a carry-less multiplication instead
// of tables they are worth it from some seventy bytes (V. Gopal et al., Fast CRC Computation for iSCSI Polynomial Using
// CRC32 Instruction, Intel 2011). There is one answer, whatever the processor can do.
package crc32c

import "hash/crc32"

var table = crc32.MakeTable(crc32.Castagnoli)

// Checksum is crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)).
func Checksum(p []byte) uint32 { return Update(0, p) }

// Update is crc32.Update, likewise: the sum of what sum is of, and p after it.
func Update(sum uint32, p []byte) uint32 {
	if inLanes && len(p) < most {
		return updateLanes(sum, p)
	}
	return crc32.Update(sum, table, p)
}
