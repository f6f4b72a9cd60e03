package backup

import (
	"encoding/binary"
	"errors"
)

// Record is a key with its value.
type Record struct {
	Key, Value []byte
	// Left is how long the key had yet to live when the backup was made, in milliseconds; 0: for ever.
	Left int64
}

// AppendRecord appends a record as it stands in a block: the lengths of key and value and the time left as uvarints, then key and value.
func AppendRecord(buf []byte, r Record) []byte {
	buf = binary.AppendUvarint(buf, uint64(len(r.Key)))
	buf = binary.AppendUvarint(buf, uint64(len(r.Value)))
	buf = binary.AppendUvarint(buf, uint64(r.Left))
	buf = append(buf, r.Key...)
	return append(buf, r.Value...)
}

var errRecord = errors.New("a record does not fit its block")

// cutRecord takes the first record off a block. Key and value lie in the block.
func cutRecord(block []byte) (r Record, rest []byte, err error) {
	var n [3]uint64
	for i := range n {
		size := 0
		if n[i], size = binary.Uvarint(block); size <= 0 {
			return Record{}, nil, errRecord
		}
		block = block[size:]
	}
	key, value, left := n[0], n[1], n[2]
	if key == 0 || key > uint64(len(block)) || value > uint64(len(block))-key || left > maxLeft {
		return Record{}, nil, errRecord
	}
	r = Record{Key: block[:key:key], Value: block[key : key+value : key+value], Left: int64(left)}
	return r, block[key+value:], nil
}

// maxLeft is the longest time that a record may have left: a deadline is a positive int64, so nothing real is longer.
const maxLeft = 1<<63 - 1
