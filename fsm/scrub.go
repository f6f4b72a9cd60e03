package fsm

import (
	"context"
	"fmt"
)

// scrubRows and scrubBytes bound what is checked in one transaction: an old one keeps
// pages of the file from being used again, and what is read between two pauses is
// read at the speed of the disk.
const (
	scrubRows  = 2000
	scrubBytes = 4 << 20
)

// Scrub reads the whole state file and checks every row against its checksum, in
// pieces; pause, if not nil, is called between two with the bytes just read and may wait.
// Damage is noted beside the file and goes to Config.Fatal, as when a command meets it. Returns
// ctx's error, or nil when all is well. Only pages that are in use are read.
func (f *FSM) Scrub(ctx context.Context, pause func(bytes int) error) (err error) {
	defer f.guard(&err)
	var at []byte
	for tree := 0; tree < treeCount; {
		if err := ctx.Err(); err != nil {
			return err
		}
		next, bytes, err := f.scrubPiece(tree, at)
		if err != nil {
			return fmt.Errorf("scrub: %w", err)
		}
		if at = next; at == nil {
			tree++
		}
		if pause != nil {
			if err := pause(bytes); err != nil {
				return err
			}
		}
	}
	return f.scrubRest()
}

// scrubPiece checks the rows of a tree from a key on. It returns where to go on, nil at the end.
func (f *FSM) scrubPiece(tree int, from []byte) (next []byte, bytes int, err error) {
	file, release, err := f.fileNow()
	if err != nil {
		return nil, 0, err
	}
	defer release()
	empty := newLayer()
	c := (&layers{active: empty, file: file}).cursor(tree)
	defer c.guard()()
	c.seek(from)
	for n := 0; c.k != nil; n++ {
		if n == scrubRows || bytes >= scrubBytes {
			return append([]byte{}, c.k...), bytes, nil
		}
		bytes += len(c.k) + len(c.v)
		c.next() // checks it
	}
	return nil, bytes, nil
}

// scrubRest checks what is small: the header, sessions and counts.
func (f *FSM) scrubRest() error {
	file, release, err := f.fileNow()
	if err != nil {
		return err
	}
	defer release()
	defer func() {
		if p := recover(); p != nil {
			panic(asDamage(file.path, p))
		}
	}()
	h, err := readHeader(file.tx, file.path)
	if err == nil {
		_, err = readSessions(file.tx, 0, h)
	}
	if err == nil {
		_, err = readCounts(file.tx)
	}
	if err != nil {
		panic(asDamage(file.path, err))
	}
	return nil
}
