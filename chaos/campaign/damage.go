//go:build linux

package campaign

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// failingDisk has every write and sync of a node's files fail with EIO, as strace does it. The node ends.
func (s *siege) failingDisk() (*fault, error) {
	n := s.leader()
	pid := s.b.node(n).Pid()
	if pid == 0 {
		return nil, fmt.Errorf("n%d does not run", n)
	}
	s.b.excuse(n)
	s.b.rob(n)
	s.b.hold(n)
	ctx, cancel := context.WithCancel(context.Background())
	trace := exec.CommandContext(ctx, "strace", "-f", "-qq", "-o", os.DevNull, "-p", strconv.Itoa(pid),
		"-e", "trace=pwrite64,fdatasync,fsync", "-e", "inject=pwrite64,fdatasync,fsync:error=EIO")
	if err := trace.Start(); err != nil {
		cancel()
		return nil, fmt.Errorf("strace: %w", err)
	}
	return &fault{
		detail: fmt.Sprintf("n%d", n), nodes: []int{n},
		bit: func() (bool, error) {
			ended := !s.b.node(n).Running() && s.b.node(n).Ended()
			if code := s.b.node(n).ExitCode(); ended && code != exitFatal {
				s.b.accuse("n%d, whose disk fails, ended with code %d: %s", n, code, lastWords(s.b.node(n).LogTail(50)))
			}
			return ended, nil
		},
		mend: func() error {
			cancel()
			_ = trace.Wait()
			err := s.b.release(n)
			s.b.acquit(n)
			return err
		},
	}, nil
}

// fullDisk fills a node's disk to the last byte.
func (s *siege) fullDisk() (*fault, error) {
	n := s.leader()
	s.b.excuse(n)
	s.b.rob(n)
	said := s.b.saidSoFar(n)
	filler := filepath.Join(s.b.disk(n).Path(), "filler")
	if err := fill(filler); err != nil {
		return nil, errors.Join(err, os.Remove(filler))
	}
	return &fault{
		detail: fmt.Sprintf("n%d", n), nodes: []int{n},
		// It refuses what adds data, or ends at something that found no room before it had looked.
		bit: func() (bool, error) {
			log := s.b.logSince(n, said)
			return strings.Contains(log, "disk nearly full") || tellsNoRoom(log), nil
		},
		mend: func() error {
			err := os.Remove(filler)
			s.b.acquit(n)
			return err
		},
	}, nil
}

// fill writes a file until there is no room.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	// Blocks without bytes are room enough to take away.
	for at, size := int64(0), int64(64<<20); size >= 4096; {
		switch err := syscall.Fallocate(int(f.Fd()), 0, at, size); {
		case err == nil:
			at += size
		case errors.Is(err, syscall.ENOSPC):
			size /= 2
		default:
			return err
		}
	}
	return nil
}

// hungDisk freezes a node's file system for longer than it puts up with.
func (s *siege) hungDisk() (*fault, error) {
	n := s.leader()
	s.b.excuse(n)
	s.b.rob(n)
	at := s.b.disk(n).Path()
	said := s.b.saidSoFar(n)
	if out, err := exec.Command("fsfreeze", "--freeze", at).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("freeze %s: %w: %s", at, err, out)
	}
	return &fault{
		detail: fmt.Sprintf("n%d", n), nodes: []int{n},
		// A process that waits for a frozen disk is there until the thaw, but says that it ends.
		bit: func() (bool, error) {
			return !s.b.node(n).Running() || s.b.saidSince(n, said) != noLastWords, nil
		},
		mend: func() error {
			out, err := exec.Command("fsfreeze", "--unfreeze", at).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("thaw %s: %w: %s", at, err, out)
			}
			s.b.acquit(n)
			return err
		},
	}, nil
}

// damageWait is how long damage waits for a file to spoil.
const damageWait = time.Minute

// damage spoils one of a node's files that match a pattern and are of some size, while it is down. It is well again when it has got everything
// from the others. spoil chooses among them.
func (s *siege) damage(pattern string, least int64, spoil func(list []string, rng *rand.Rand) (path, what string, err error)) (*fault, error) {
	n := 0
	for limit := time.Now().Add(damageWait); n == 0; {
		for _, o := range s.order() {
			if list, err := files(s.b.node(o).DataDir(), pattern, least); err != nil {
				return nil, err
			} else if len(list) > 0 {
				n = o
				break
			}
		}
		if n == 0 && time.Now().After(limit) {
			return &fault{detail: fmt.Sprintf("no node has a file %s of %d bytes", pattern, least), bit: func() (bool, error) { return false, nil }}, nil
		}
		if n == 0 && !wait(s.ctx, time.Second) { // nobody has written one yet
			return nil, s.ctx.Err()
		}
	}
	return s.robbed(n, `msg="replica damaged"`, func() (string, error) {
		dir := s.b.node(n).DataDir()
		list, err := files(dir, pattern, least) // again: it wrote on until it was killed
		if err == nil && len(list) == 0 {
			err = fmt.Errorf("no files %s in %s", pattern, dir)
		}
		if err != nil {
			return "", err
		}
		path, what, err := spoil(list, s.rng)
		name, _ := filepath.Rel(dir, path)
		return fmt.Sprintf("n%d: %s %s", n, name, what), err
	})
}

// wipe takes away a node's whole data directory.
func (s *siege) wipe() (*fault, error) {
	n := s.some(1)[0]
	// A node that has lost nothing does not join.
	return s.robbed(n, "msg=joined", func() (string, error) { return fmt.Sprintf("n%d", n), s.b.removeData(n) })
}

// robbed does something to the files of a node that is down, which its log tells of afterwards. Everybody else is sound before, and it
// is sound afterwards: of two nodes that lose what they had, one must have got it back before the other loses it.
func (s *siege) robbed(n int, tells string, rob func() (string, error)) (*fault, error) {
	said := s.b.saidSoFar(n)
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
	defer cancel()
	if err := s.b.sound(ctx); err != nil {
		return nil, fmt.Errorf("before anything was damaged: %w", err)
	}
	s.b.excuse(n) // it may end when it meets the damage
	s.b.rob(n)
	if err := s.b.kill(n); err != nil {
		return nil, err
	}
	what, err := rob()
	if err != nil {
		return nil, errors.Join(err, s.b.release(n))
	}
	showed := func() (bool, error) { return strings.Contains(s.b.logSince(n, said), tells), nil }
	f := &fault{detail: what, nodes: []int{n}, showed: showed}
	f.mend = func() error {
		if err := s.b.release(n); err != nil {
			return err
		}
		f.healed = time.Now() // the others are there; this one fetches what it has lost
		ctx, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
		defer cancel()
		if err := s.b.whole(ctx, n); err != nil {
			s.b.accuse("after %s: %v", what, err)
		}
		s.b.acquit(n)
		return nil
	}
	return f, nil
}

// files of a node, by pattern, in order, of at least so many bytes; none that the node has put aside, for damage there is nobody's.
func files(dir, pattern string, least int64) (list []string, err error) {
	all, err := filepath.Glob(filepath.Join(dir, pattern))
	for _, path := range all {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) || strings.Contains(path, ".damaged") {
			continue
		}
		if err != nil {
			return nil, err
		}
		if info.Size() >= least {
			list = append(list, path)
		}
	}
	return list, err
}

// damageState flips a bit in every KiB of a replica's state, or cuts off most of it.
func (s *siege) damageState() (*fault, error) {
	// In a file with nothing but what each has from the beginning, a bit is mostly in nothing that is used; and a page is often half empty.
	return s.damage("shard-*/*/state/state-*.db", 128<<10, func(list []string, rng *rand.Rand) (path, what string, err error) {
		path = list[rng.IntN(len(list))]
		if rng.IntN(3) == 0 {
			// The second half of it may be in use by nobody yet.
			return path, "cut to 16 KiB", os.Truncate(path, 16<<10)
		}
		return path, "with a bit flipped in each KiB", change(path, func(b []byte) {
			const meta = 2 * 4096
			for at := meta; at+1024 <= len(b); at += 1024 {
				b[at+rng.IntN(1024)] ^= 1 << rng.IntN(8)
			}
		})
	})
}

// damageLog flips a bit in the first commit of a segment, which is below the last mark, or cuts the file.
func (s *siege) damageLog() (*fault, error) {
	const header, firstBytes = 4096, 44
	return s.damage("wal/*.wal", 0, func(list []string, rng *rand.Rand) (path, what string, err error) {
		path = list[rng.IntN(max(1, len(list)-1))] // not the last: its first commit may be the log's last
		if len(list) > 1 && rng.IntN(3) == 0 {
			return path, "cut off", os.Truncate(path, header+firstBytes)
		}
		return path, "with a bit flipped", change(path, func(b []byte) { b[header+rng.IntN(firstBytes)] ^= 1 << rng.IntN(8) })
	})
}

// damageSnapshot flips a bit in what a replica knows of its last snapshot.
func (s *siege) damageSnapshot() (*fault, error) {
	return s.damage("shard-*/*/snapshot*/snapshot.json", 1, func(list []string, rng *rand.Rand) (path, what string, err error) {
		path = list[rng.IntN(len(list))]
		return path, "with a bit flipped", change(path, func(b []byte) { b[rng.IntN(len(b))] ^= 1 << rng.IntN(8) })
	})
}

func change(path string, how func([]byte)) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	how(b)
	return os.WriteFile(path, b, 0o600)
}
