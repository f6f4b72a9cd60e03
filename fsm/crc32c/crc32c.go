// Package crc32c is hash/crc32's sum by Castagnoli's polynomial, quicker over some hundred bytes, which is what a row is.
//
// The processor's instruction for it waits three cycles for the one before it, and could begin one in each. The library
// has three sums side by side from half a kilobyte on; joined by a carry-less multiplication instead
// of tables they are worth it from some seventy bytes (V. Gopal et al., Fast CRC Computation for iSCSI Polynomial Using
// CRC32 Instruction, Intel 2011). There is one answer, whatever the processor can do.
package crc32c

import "hash/crc32"

var table = crc32.MakeTable(crc32.Castagnoli)

// Checksum is that of a key and what follows it, as if they were one: crc32.Update(crc32.Checksum(key, table), table, rest). The
// key is taken for short.
func Checksum(key, rest []byte) uint32 {
	if inLanes && len(rest) < most {
		return sumInLanes(key, rest)
	}
	return crc32.Update(crc32.Checksum(key, table), table, rest)
}
