package wal

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/hashicorp/raft"
)

// TestReplay shows what records do, one commit after the other, and which cannot follow each other.
func TestReplay(t *testing.T) {
	entry := func(kind byte, log uint32, i, term uint64) []byte {
		return appendEntry(nil, kind, log, &raft.Log{Index: i, Term: term, Data: []byte("data")})
	}
	join := func(list ...[]byte) []byte { return slices.Concat(list...) }
	name := Name{1, "a"}
	empty := appendManifest(nil, nil)
	three := join(empty, appendDefine(nil, 1, name), entry(recEntry, 1, 4, 1), entry(recEntry, 1, 5, 1), entry(recEntry, 1, 6, 1))
	promise := func(first, last uint64) []byte { return appendManifest(nil, []manifestLog{{1, name, first, last}}) }
	for what, c := range map[string]struct {
		commits [][]byte
		first   uint64
		terms   []uint64 // 99: damage
	}{
		"nothing":                       {[][]byte{empty}, 0, nil},
		"entries":                       {[][]byte{three}, 4, terms(3, 1)},
		"a copy":                        {[][]byte{three, entry(recCopy, 1, 5, 2)}, 4, []uint64{1, 2, 1}},
		"a copy of what is gone":        {[][]byte{three, appendMark(nil, recFirst, 1, 5), entry(recCopy, 1, 4, 2)}, 5, terms(2, 1)},
		"a copy of what was cut":        {[][]byte{three, appendMark(nil, recTruncate, 1, 6), entry(recCopy, 1, 6, 2)}, 4, terms(2, 1)},
		"a copy of what was cleared":    {[][]byte{three, appendMark(nil, recClear, 1, 0), entry(recCopy, 1, 5, 2)}, 0, nil},
		"cut and again":                 {[][]byte{three, appendMark(nil, recTruncate, 1, 5), entry(recEntry, 1, 5, 2)}, 4, []uint64{1, 2}},
		"cut to nothing":                {[][]byte{three, appendMark(nil, recTruncate, 1, 4), entry(recEntry, 1, 9, 2)}, 9, []uint64{2}},
		"cut below the first":           {[][]byte{three, appendMark(nil, recTruncate, 1, 2)}, 0, nil},
		"all gone":                      {[][]byte{three, appendMark(nil, recFirst, 1, 7), entry(recEntry, 1, 9, 2)}, 9, []uint64{2}},
		"first again":                   {[][]byte{three, appendMark(nil, recFirst, 1, 6), appendMark(nil, recFirst, 1, 5)}, 6, terms(1, 1)},
		"cleared, then first":           {[][]byte{three, appendMark(nil, recClear, 1, 0), appendMark(nil, recFirst, 1, 5)}, 0, nil},
		"dropped":                       {[][]byte{three, appendMark(nil, recDrop, 1, 0)}, 0, nil},
		"dropped, defined again":        {[][]byte{three, appendMark(nil, recDrop, 1, 0), join(appendDefine(nil, 1, name), entry(recEntry, 1, 1, 2))}, 1, []uint64{2}},
		"a promise kept by copies":      {[][]byte{promise(4, 5), entry(recCopy, 1, 5, 2), entry(recCopy, 1, 4, 2)}, 4, terms(2, 2)},
		"a promise taken back":          {[][]byte{promise(4, 1<<40), entry(recCopy, 1, 1<<40, 2), appendMark(nil, recFirst, 1, 1<<40)}, 1 << 40, []uint64{2}},
		"a manifest that agrees":        {[][]byte{three, promise(4, 6)}, 4, terms(3, 1)},
		"a manifest with a later first": {[][]byte{three, promise(6, 6)}, 6, terms(1, 1)},
		"a manifest of an empty log":    {[][]byte{three, promise(0, 0)}, 0, nil},

		"no manifest":                    {[][]byte{appendDefine(nil, 1, name)}, 0, []uint64{99}},
		"a promise not kept":             {[][]byte{promise(4, 5), entry(recCopy, 1, 5, 2)}, 0, []uint64{99}},
		"a gap":                          {[][]byte{three, entry(recEntry, 1, 8, 2)}, 0, []uint64{99}},
		"an entry twice":                 {[][]byte{three, entry(recEntry, 1, 6, 2)}, 0, []uint64{99}},
		"entry 0":                        {[][]byte{join(empty, appendDefine(nil, 1, name), entry(recEntry, 1, 0, 2))}, 0, []uint64{99}},
		"an entry of no log":             {[][]byte{three, entry(recEntry, 2, 7, 2)}, 0, []uint64{99}},
		"an entry of a dropped log":      {[][]byte{three, appendMark(nil, recDrop, 1, 0), entry(recEntry, 1, 7, 2)}, 0, []uint64{99}},
		"a number defined twice":         {[][]byte{three, appendDefine(nil, 1, Name{2, "b"})}, 0, []uint64{99}},
		"a name defined twice":           {[][]byte{three, appendDefine(nil, 2, name)}, 0, []uint64{99}},
		"first above the end":            {[][]byte{three, appendMark(nil, recFirst, 1, 8)}, 0, []uint64{99}},
		"cut above the end":              {[][]byte{three, appendMark(nil, recTruncate, 1, 8)}, 0, []uint64{99}},
		"a manifest with another last":   {[][]byte{three, promise(4, 7)}, 0, []uint64{99}},
		"a manifest with an older first": {[][]byte{three, promise(3, 6)}, 0, []uint64{99}},
		"a manifest without the log":     {[][]byte{three, empty}, 0, []uint64{99}},
		"a manifest of another name":     {[][]byte{three, appendManifest(nil, []manifestLog{{1, Name{1, "b"}, 4, 6}})}, 0, []uint64{99}},
		"a manifest upside down":         {[][]byte{promise(5, 4)}, 0, []uint64{99}},
		"an unknown record":              {[][]byte{three, {77}}, 0, []uint64{99}},
		"a record cut short":             {[][]byte{three, appendMark(nil, recFirst, 1, 5)[:12]}, 0, []uint64{99}},
		"an entry cut short":             {[][]byte{three, entry(recEntry, 1, 7, 1)[:entryHead+2]}, 0, []uint64{99}},
	} {
		fs, _ := logOf(t, c.commits...)
		w, err := Open(fs, Config{SegmentBytes: 16 << 10})
		if slices.Equal(c.terms, []uint64{99}) {
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("%s: %v", what, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		want(t, w.Replica(name), c.first, c.terms...)
		must(t, w.Close())
	}
}

// logOf is a WAL of one segment with these commits, of so many bytes. Entries get the right checksums.
func logOf(t *testing.T, commits ...[]byte) (*memFS, int) {
	fs := newMemFS()
	must(t, writeHead(fs, head{wal: 77, seq: 1}))
	h := segmentHeader{wal: 77, seq: 1, salt: 88, size: 64 << 10}
	seg := h.encode()
	synced := position{1, headerBytes}
	for i, records := range commits {
		commit := append(make([]byte, commitBytes), records...)
		for at := commitBytes; at < len(commit); {
			n := 1
			switch commit[at] {
			case recEntry, recCopy:
				if m, err := entryLength(commit[at:]); err == nil {
					n = m
					sealEntry(commit[at:at+n], h.salt)
				}
			case recDefine:
				n = 11
				if at+n <= len(commit) {
					n += int(binary.BigEndian.Uint16(commit[at+9:]))
				}
			case recFirst, recTruncate, recClear, recDrop:
				n = markBytes
			}
			at += n
		}
		sealCommit(commit, h.salt, int64(len(seg)), commitHeader{number: uint64(i + 1), synced: synced})
		seg = append(seg, commit...)
		seg = append(seg, make([]byte, align(int64(len(seg)))-int64(len(seg)))...)
		synced.off = uint64(len(seg))
	}
	seg = append(seg, make([]byte, max(0, 64<<10-len(seg)))...)
	h.size = uint64(len(seg))
	copy(seg, h.encode())
	fs.edit(segmentName(1), func([]byte) []byte { return seg })
	return fs, len(seg)
}
