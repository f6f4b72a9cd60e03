package node

import (
	"context"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// spaceEvery is how often to look at the free space.
	spaceEvery = time.Second
	// reserve is what --min-free-disk is by default, but for a small file system, of
	// which it is reservePercent. It is what the log and one checkpoint may still need
	// when nothing is let in any more: a checkpoint of 10 MiB of small rows can dirty as many
	// pages as 250 MiB of file. One is written at a time.
	reserve        = 256 << 20
	reservePercent = 5
)

// space is what the file system of the data directory has left. Four marks, so that
// neither refusals nor leaderships go back and forth: below 1.5 times the least, this
// node hands its leaderships over, to take them again above twice the least; below
// the least, it refuses what adds data, until there is 1.25 times the least. So a disk
// that fills slowly is left by the leaders before any client hears of it.
type space struct {
	dir   string
	least uint64 // 0: by the size of the file system
	now   atomic.Pointer[spaceNow]
}

// spaceNow is what was seen last. Immutable.
type spaceNow struct {
	free, least uint64 // bytes
	size        uint64 // of the file system, in bytes
	low, full   bool
}

func newSpace(dir string, least uint64) (*space, error) {
	s := &space{dir: dir, least: least}
	s.now.Store(&spaceNow{})
	return s, s.look()
}

// look asks the file system. What only root may use does not count: whoever runs
// as root is not to fill that, either.
func (s *space) look() error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.dir, &st); err != nil {
		return fmt.Errorf("free space of %s: %w", s.dir, err)
	}
	unit := uint64(st.Bsize)
	least := s.least
	if least == 0 {
		least = leastFree(st.Blocks * unit)
	}
	next := s.now.Load().next(st.Bavail*unit, least)
	next.size = st.Blocks * unit
	s.now.Store(&next)
	return nil
}

// leastFree is the default of --min-free-disk for a file system of a size.
func leastFree(total uint64) uint64 { return min(reserve, total/100*reservePercent) }

// next is the state after seeing so much free.
func (was spaceNow) next(free, least uint64) spaceNow {
	return spaceNow{
		free: free, least: least,
		low:  free < least+least/2 || was.low && free < 2*least,
		full: free < least || was.full && free < least+least/4,
	}
}

// low: this node should not lead. full: nothing may be added here.
func (s *space) low() bool  { return s.now.Load().low }
func (s *space) full() bool { return s.now.Load().full }

// room says whether so many bytes more would leave this node its leaderships: what is written for a job's sake is not to cost them.
func (s *space) room(bytes int64) bool {
	now := s.now.Load()
	return !now.low && now.free >= uint64(bytes)+now.least+now.least/2
}

// problem says in words that the disk is full, or "".
func (now *spaceNow) problem() string {
	if !now.full {
		return ""
	}
	return diskProblem(now.free)
}

func diskProblem(free uint64) string {
	return fmt.Sprintf("the disk is nearly full (%d MiB free): writes that add data are refused, deletes and reads go on", free>>20)
}

// runSpace watches the free space. A node that starts on a full disk says so, too.
func (n *Node) runSpace(ctx context.Context) error {
	tick := time.NewTicker(spaceEvery)
	defer tick.Stop()
	was := &spaceNow{}
	for {
		now := n.space.now.Load()
		switch {
		case now.full && !was.full:
			n.log.Warn("disk nearly full: writes that add data are refused", "dir", n.space.dir, "free_bytes", now.free, "least_bytes", now.least)
		case now.low && !was.low:
			n.log.Warn("disk fills: handing leaderships over", "dir", n.space.dir, "free_bytes", now.free, "least_bytes", now.least)
		case was.full && !now.full:
			n.log.Info("disk has room again: all writes are taken", "dir", n.space.dir, "free_bytes", now.free)
		case was.low && !now.low:
			n.log.Info("disk has room again: leading again", "dir", n.space.dir, "free_bytes", now.free)
		}
		was = now
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := n.space.look(); err != nil {
			n.log.Error("look at the disk", "err", err)
		}
	}
}
