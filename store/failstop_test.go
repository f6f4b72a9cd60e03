package store

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/transport"
)

// death is a Config.Fatal for tests: the process's end as its peers see it. It cuts
// the node off, and nothing goes on behind it until the test lets it.
type death struct {
	of   *node
	why  chan error
	over chan struct{}
}

func newDeath(t *testing.T) *death {
	d := &death{why: make(chan error, 8), over: make(chan struct{})}
	t.Cleanup(func() { close(d.over) })
	return d
}

func (d *death) fatal(err error) {
	d.why <- err
	if d.of != nil {
		d.of.tr.Close()
	}
	<-d.over
}

// cause returns what the node died of, which must name the file.
func (d *death) cause(t *testing.T, file string) error {
	t.Helper()
	select {
	case err := <-d.why:
		if !strings.Contains(err.Error(), file) {
			t.Errorf("%v does not name %s", err, file)
		}
		return err
	case <-time.After(patience):
		t.Fatal("the process would have gone on")
		return nil
	}
}

// slowStable is a stable store whose writes can be held or fail.
type slowStable struct {
	raft.StableStore
	mu   sync.Mutex
	hold chan struct{}
	fail error
}

func (s *slowStable) wait() error {
	s.mu.Lock()
	hold, fail := s.hold, s.fail
	s.mu.Unlock()
	if hold != nil {
		<-hold
	}
	return fail
}

func (s *slowStable) Set(k, v []byte) error {
	if err := s.wait(); err != nil {
		return err
	}
	return s.StableStore.Set(k, v)
}

func (s *slowStable) SetUint64(k []byte, v uint64) error {
	if err := s.wait(); err != nil {
		return err
	}
	return s.StableStore.SetUint64(k, v)
}

// An operation of the log, of the votes or a checkpoint that does not return ends the process
// within its limit and a tick, naming the file, and not before (hazard R7). In virtual time.
func TestHangEndsTheProcess(t *testing.T) {
	const limit = 10 * time.Second
	for _, c := range []struct {
		name, file string
		hang       func(n *node, stable *slowStable, hang chan struct{})
		checkpoint bool
	}{
		{"log", "", func(n *node, _ *slowStable, _ chan struct{}) { n.gate.hold() }, false},
		{"votes", "raft.db", func(n *node, s *slowStable, hang chan struct{}) {
			s.mu.Lock()
			s.hold = hang
			s.mu.Unlock()
			go n.store.stable.SetUint64([]byte(keyCurrentTerm), 99)
		}, false},
		{"checkpoint", "state", func(n *node, _ *slowStable, _ chan struct{}) { go n.store.fsm.Flush() }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hang := make(chan struct{})
				var once sync.Once
				release := func() { once.Do(func() { close(hang) }) }
				var stable *slowStable
				cl := newCluster(t, 1, func(_ *node, cfg *Config) {
					cfg.WrapStable = func(s raft.StableStore) raft.StableStore { stable = &slowStable{StableStore: s}; return stable }
					if c.checkpoint {
						cfg.OnCheckpoint = func() { <-hang }
					}
				})
				t.Cleanup(release) // before the node stops
				n := cl.waitLeader()
				cl.put("k", "v")

				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				why := make(chan error, 100)
				go Watch(ctx, limit, func() []*Store { return []*Store{n.store} }, func(err error) { why <- err })
				time.Sleep(time.Minute)
				if len(why) > 0 {
					t.Fatalf("nothing hangs: %v", <-why)
				}
				c.hang(n, stable, hang)
				began := time.Now()
				ctx, stop := context.WithTimeout(context.Background(), limit/2)
				defer stop()
				_, _, err := n.store.Propose(ctx, []command.Command{set("hung", "x")})
				if !c.checkpoint && (err == nil || transport.Certain(err)) && c.name == "log" {
					t.Errorf("propose: %v", err)
				}
				err = <-why
				if took := time.Since(began); took < limit || took > limit+2*time.Second {
					t.Errorf("it took %v to notice", took)
				}
				var h *HangError
				if !errors.As(err, &h) || !strings.Contains(h.Path, cmp.Or(c.file, n.logPath())) || !strings.Contains(h.Path, n.id) {
					t.Errorf("ends with %v", err)
				}
				// A process that was itself stopped while the disk hung does not blame the disk.
				if err := n.store.hung(limit, time.Second); err != nil {
					t.Errorf("a second after it woke up: %v", err)
				}
				cancel()
				release()
				n.gate.release()
			})
		})
	}
}

// The time that a checkpoint may take grows with what it writes, and not with what is
// written meanwhile: under load that would be faster than time. In virtual time, in which
// the log's writes take none.
func TestCheckpointLimitGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		release := sync.OnceFunc(func() { close(hang) })
		c := newCluster(t, 1, func(_ *node, cfg *Config) {
			cfg.CheckpointBytes, cfg.InitialMmapSize = 1<<20, 64<<20
			cfg.OnCheckpoint = func() { <-hang }
		})
		t.Cleanup(release)
		n := c.waitLeader()
		took := func() time.Duration { t, _ := n.store.fsm.Checkpointing(); return t }
		c.put("a", strings.Repeat("x", 1<<20))
		until(t, "a checkpoint", func() bool { return took() > slowestDisk*3/4 })
		for _, k := range []string{"b", "c"} {
			c.put(k, strings.Repeat("x", 1<<20))
		}
		if err := n.store.hung(time.Nanosecond, time.Hour); err != nil {
			t.Errorf("%v, though it has 1 MiB to write", err)
		}
		until(t, "more than 1 MiB may take", func() bool { return took() > slowestDisk*5/4 })
		var h *HangError
		if err := n.store.hung(time.Nanosecond, time.Hour); !errors.As(err, &h) || h.Op != "a checkpoint" {
			t.Errorf("1 MiB takes %v and is not found to hang, with %d bytes in memory: %v", took(), n.store.fsm.OverlayBytes(), err)
		}
	})
}

// The log cannot be written (hazards R8 and R9): the leader's process ends, naming the
// file; the write is not acknowledged, and not said to be certainly undone; the others go on.
func TestFailedLogEndsTheProcess(t *testing.T) {
	deaths := map[*node]*death{}
	c := newCluster(t, 3, func(n *node, cfg *Config) {
		deaths[n] = newDeath(t)
		deaths[n].of = n
		cfg.Fatal = deaths[n].fatal
	})
	c.put("before", "1")
	old := c.waitLeader()
	s := old.store
	old.gate.mu.Lock()
	old.gate.fail = &os.PathError{Op: "fdatasync", Path: "raft.db", Err: syscall.EIO}
	old.gate.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if _, _, err := s.Propose(ctx, []command.Command{set("lost", "x")}); err == nil || transport.Certain(err) {
		t.Errorf("propose: %v", err)
	}
	if err := deaths[old].cause(t, old.logPath()); !errors.Is(err, syscall.EIO) {
		t.Errorf("it died of %v", err)
	}
	old.opened(nil) // dead
	c.put("after", "2")
	c.want("before", "1")
	c.want("after", "2")
}

// The votes cannot be written: the process ends, naming the file.
func TestFailedVotesEndTheProcess(t *testing.T) {
	var why error
	_, stable := openLog(t)
	stable.inner = &slowStable{StableStore: stable.inner, fail: errDisk}
	stable.fatal = func(err error) { why = err }
	for name, write := range map[string]func() error{
		"term": func() error { return stable.SetUint64([]byte(keyCurrentTerm), 7) },
		"vote": func() error {
			if err := stable.SetUint64([]byte(keyLastVoteTerm), 7); err != nil {
				return err
			}
			return stable.Set([]byte(keyLastVoteCand), []byte("c"))
		},
		"other": func() error { return stable.Set([]byte("other"), []byte("x")) },
	} {
		why = nil
		if err := write(); !errors.Is(err, errDisk) || !errors.Is(why, errDisk) || !strings.Contains(why.Error(), stable.path) {
			t.Errorf("%s: %v, the process ends with %v", name, err, why)
		}
	}
	if stable.term.Load() != 0 || stable.voted() {
		t.Error("what was not written is believed")
	}
}

// A checkpoint that fails ends the process, naming the file; so does a snapshot's
// metadata that cannot be written.
func TestFailedStateEndsTheProcess(t *testing.T) {
	var spoil func()
	why := make(chan error, 8)
	c := newCluster(t, 1, func(_ *node, cfg *Config) {
		cfg.Fatal = func(err error) { why <- err }
		cfg.OnCheckpoint = func() {
			if spoil != nil {
				spoil()
			}
		}
	})
	n := c.waitLeader()
	t.Cleanup(func() { // not Close: bbolt keeps its lock over such a failure, and would wait for it for ever
		_ = n.store.inst.Load().stop(bg(t))
		n.tr.Close()
		n.opened(nil)
	})
	c.put("k", "v")
	files, err := filepath.Glob(filepath.Join(c.dir, n.id, stateName, "state-*.db"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	whole, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	spoil = func() {
		if err := os.Truncate(files[0], 4096); err != nil {
			t.Error(err)
		}
	}
	if err := n.store.fsm.Flush(); err == nil {
		t.Error("flushed into half a file")
	}
	if err := <-why; !strings.Contains(err.Error(), files[0]) {
		t.Errorf("%v does not name %s", err, files[0])
	}
	spoil = nil
	if err := os.WriteFile(files[0], whole, 0o600); err != nil {
		t.Fatal(err)
	}

	snaps := n.store.snaps
	meta := &raft.SnapshotMeta{Index: 1, Term: 1}
	dir := snaps.dir
	snaps.dir = filepath.Join(dir, "gone")
	snaps.mu.Lock()
	err = snaps.save(meta)
	snaps.mu.Unlock()
	snaps.dir = dir
	if err == nil || snaps.latest() == meta {
		t.Errorf("saved into nothing: %v", err)
	}
	if err := <-why; !strings.Contains(err.Error(), metaFile) {
		t.Errorf("%v does not name %s", err, metaFile)
	}
}
