package sharding

import "bytes"

// SlotOf returns the hash slot of key: CRC16 (XMODEM) of the key mod 16384, and
// of the part between the first '{' and the next '}' alone if that part is not
// empty. Exactly as in Redis Cluster, because client libraries work it out too
// and send the command where their answer says.
func SlotOf(key []byte) Slot {
	if open := bytes.IndexByte(key, '{'); open >= 0 {
		if n := bytes.IndexByte(key[open+1:], '}'); n > 0 {
			key = key[open+1 : open+1+n]
		}
	}
	return crc16(key) % Slots
}

func crc16(data []byte) uint16 {
	var crc uint16
	for _, b := range data {
		crc = crc<<8 ^ crcTable[byte(crc>>8)^b]
	}
	return crc
}

// crcTable is CRC16 by the byte: polynomial 0x1021, highest bit first, start 0.
var crcTable = func() (table [256]uint16) {
	for i := range table {
		crc := uint16(i) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
		table[i] = crc
	}
	return table
}()
