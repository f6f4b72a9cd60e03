package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/transport"
)

// reseed runs Reseed for a node that is down.
func (n *node) reseed(peer string) error {
	n.c.t.Helper()
	n.tr = n.c.net.Join(n.id)
	defer n.tr.Close()
	cfg := n.config()
	cfg.Net = NewNet(n.tr, 0, cfg.Log)
	defer cfg.Net.Close()
	return Reseed(bg(n.c.t), cfg, "test", peer)
}

// mend re-seeds the replica from its leader, and starts it.
func (n *node) mend() {
	n.c.t.Helper()
	if err := n.reseed(n.c.waitLeader().id); err != nil {
		n.c.t.Fatal(err)
	}
	n.start()
	n.c.converge()
}

// damageState overwrites both of bbolt's meta pages.
func (n *node) damageState() {
	n.c.t.Helper()
	files, err := filepath.Glob(filepath.Join(n.config().Dir, stateName, "state-*.db"))
	if err != nil || len(files) == 0 {
		n.c.t.Fatalf("state files: %v, %v", files, err)
	}
	for _, f := range files {
		overwrite(n.c.t, f, 0, bytes.Repeat([]byte("damage! "), 1024))
	}
}

func overwrite(t *testing.T, path string, at int64, with []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, f)
	if _, err := f.WriteAt(with, at); err != nil {
		t.Fatal(err)
	}
}

// wantDamage opens a node that must not open, and says why.
func (n *node) wantDamage(want Damage) {
	n.c.t.Helper()
	err := n.open()
	if err == nil {
		n.c.t.Fatal("opened in spite of the damage")
	}
	if got := DamageOf(err); got != want {
		n.c.t.Fatalf("damage %d, want %d: %v", got, want, err)
	}
}

// onDisk is what a replica that is down has promised: its log, term and vote.
func (n *node) onDisk() string {
	n.c.t.Helper()
	cfg := n.config()
	db, err := openBolt(filepath.Join(cfg.Dir, logName))
	if err != nil {
		n.c.t.Fatal(err)
	}
	defer mustClose(n.c.t, db)
	st, err := newStableStore(db, logName, stopProcess)
	if err != nil {
		n.c.t.Fatal(err)
	}
	first, last := indexes(n.c.t, newLogStore((&cfg).entries(db), logName, stopProcess, n.c.log))
	return fmt.Sprintf("log %d-%d, term %d, vote for %q in %d", first, last, st.term.Load(), st.voteCand, st.voteTerm)
}

// A replica whose state is damaged takes it from a peer, under load, and is who it
// was: same log, same term, same vote. From the leader and from a follower.
func TestRepairStateUnderLoad(t *testing.T) { synctest.Test(t, testRepairStateUnderLoad) }

func testRepairStateUnderLoad(t *testing.T) {
	c := newCluster(t, 3, frugal)
	c.fill("before", 150)
	var stop atomic.Bool
	var acked atomic.Int64
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; !stop.Load(); i++ {
				time.Sleep(time.Millisecond) // or virtual time stands still
				c.put(fmt.Sprintf("w%d-%d", w, i), "x")
				acked.Add(1)
			}
		})
	}
	defer wg.Wait()
	defer stop.Store(true)
	for round := range 2 {
		f := c.followers()[0]
		until(t, "a snapshot", func() bool { return f.store.snaps.latest() != nil })
		f.kill()
		f.damageState()
		before := f.onDisk()
		f.wantDamage(DamageState)
		peer := c.waitLeader()
		if round == 1 {
			peer = c.followers()[0]
		}
		until(t, "the peer to be far enough", func() bool { return peer.store.Applied() > 200 })
		busy := acked.Load()
		if err := f.reseed(peer.id); err != nil {
			t.Fatal(err)
		}
		if after := f.onDisk(); after != before {
			t.Errorf("before: %s; after: %s", before, after)
		}
		f.start()
		until(t, "it to apply what is new", func() bool { return f.store.Applied() >= peer.store.Applied()-10 })
		until(t, "writes to go on", func() bool { return acked.Load() > busy+50 })
		for _, name := range []string{incomingName, receivedName} {
			if _, err := os.Stat(filepath.Join(f.config().Dir, name)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is left: %v", name, err)
			}
		}
		if put, _ := filepath.Glob(filepath.Join(f.config().Dir, stateName+damagedSuffix+"*")); len(put) == 0 || len(put) > keepDamaged {
			t.Errorf("put aside: %v", put)
		}
	}
	stop.Store(true)
	wg.Wait()
	c.converge()
}

// The copy may be older than our log: what it lacks, the log has. Leader and state are
// gone, and acknowledged writes are on this replica's log and nowhere else that runs.
func TestRepairStateFromBehind(t *testing.T) { synctest.Test(t, testRepairStateFromBehind) }

func testRepairStateFromBehind(t *testing.T) {
	c := newCluster(t, 3, frugal)
	c.fill("before", 120)
	var f, g *node
	for {
		c.converge()
		l := c.waitLeader()
		f, g = c.followers()[0], c.followers()[1]
		until(t, "a snapshot", func() bool { return f.store.snaps.latest() != nil })
		at := g.store.Applied()
		c.net.Isolate(g.id)
		for i := range 15 {
			if _, _, err := l.store.Propose(bg(t), []command.Command{set(fmt.Sprintf("only%d", i), "here")}); err != nil {
				t.Fatal(err)
			}
		}
		until(t, "the other to apply it", func() bool { return f.store.Applied() >= l.store.Applied()-1 })
		snaps := f.store.snaps
		f.kill() // from here on it cuts nothing
		if snaps.latest().Index <= at {
			l.kill()
			break
		}
		c.net.Heal() // it has cut its log beyond the peer's state: again
		f.start()
	}
	f.damageState()
	f.wantDamage(DamageState)
	c.net.Heal()
	if err := f.reseed(g.id); err != nil {
		t.Fatal(err)
	}
	f.start()
	for i := range 15 {
		c.want(fmt.Sprintf("only%d", i), "here")
	}
	c.converge()
}

// A peer that is not far enough, or has no such replica, says so.
func TestRepairStateRefused(t *testing.T) { synctest.Test(t, testRepairStateRefused) }

func testRepairStateRefused(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.converge()
	l := c.waitLeader()
	ask := c.net.Join("asker")
	defer ask.Close()
	for _, r := range []struct {
		req  seedRequest
		want transport.Code
	}{
		{seedRequest{shard: 3, min: l.store.Applied() + 1000}, transport.CodeBusy},
		{seedRequest{shard: 4}, transport.CodeNoReplica},
	} {
		if _, err := ask.Call(bg(t), l.id, transport.LaneCall, transport.MethodSeed, r.req.encode()); transport.CodeOf(err) != r.want {
			t.Errorf("%+v: %v", r.req, err)
		}
	}
	// A copy that nobody asked for.
	e := &encoder{}
	e.u8(wireVersion)
	e.u64(77)
	e.u64(5)
	e.bytes(nil)
	if _, err := ask.Stream(bg(t), l.id, transport.MethodSeedState, e.buf, strings.NewReader("x"), 1); transport.CodeOf(err) != transport.CodeRefused {
		t.Errorf("a copy that nobody asked for: %v", err)
	}
}

// liar is a peer that sends something else than what it was asked for.
func liar(t *testing.T, c *cluster, from *Store, send func(tr transport.Transport, to string, header, stream []byte) error) string {
	t.Helper()
	id := fmt.Sprintf("liar%d", liars.Add(1))
	tr := c.net.Join(id)
	t.Cleanup(func() { tr.Close() })
	tr.Handle(transport.MethodSeed, func(_ context.Context, to string, frame []byte) ([]byte, error) {
		req, err := decodeSeedRequest(frame)
		if err != nil {
			return nil, err
		}
		if err := from.fsm.Flush(); err != nil {
			return nil, err
		}
		_, index, r, err := from.fsm.OpenStream(fsm.StreamSparse)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		stream, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		e := &encoder{}
		e.u8(wireVersion)
		e.u64(req.attempt)
		e.u64(index)
		e.bytes(nil)
		return nil, send(tr, to, e.buf, stream)
	})
	return id
}

var liars atomic.Int64

// A copy that is cut short, damaged on the way, damaged at its source, or of another shard
// changes nothing, and the next peer is asked.
func TestRepairStateBadCopy(t *testing.T) { synctest.Test(t, testRepairStateBadCopy) }

func testRepairStateBadCopy(t *testing.T) {
	c := newCluster(t, 3, frugal)
	c.fill("before", 150)
	c.converge()
	f := c.followers()[0]
	until(t, "a snapshot", func() bool { return f.store.snaps.latest() != nil })
	f.kill()
	f.damageState()
	f.wantDamage(DamageState)
	l := c.waitLeader()
	push := func(tr transport.Transport, to string, header, stream []byte) error {
		_, err := tr.Stream(context.Background(), to, transport.MethodSeedState, header, bytes.NewReader(stream), int64(len(stream)))
		return err
	}
	resum := func(stream []byte) {
		file := stream[9 : len(stream)-4]
		binary.BigEndian.PutUint32(stream[len(stream)-4:], crc32.Checksum(file, castagnoli))
	}
	for name, send := range map[string]func(tr transport.Transport, to string, header, stream []byte) error{
		"nothing comes": func(transport.Transport, string, []byte, []byte) error { return nil },
		"the sender goes away": func(tr transport.Transport, to string, header, stream []byte) error {
			body := io.MultiReader(bytes.NewReader(stream[:len(stream)/2]), failing{})
			_, err := tr.Stream(context.Background(), to, transport.MethodSeedState, header, body, int64(len(stream)))
			return err
		},
		"a bit flipped on the way": func(tr transport.Transport, to string, header, stream []byte) error {
			stream[len(stream)/2] ^= 4
			return push(tr, to, header, stream)
		},
		"a value flipped at the source": func(tr transport.Transport, to string, header, stream []byte) error {
			copy(stream, bytes.ReplaceAll(stream, []byte("before"), []byte("beFore"))) // keys too
			resum(stream)
			return push(tr, to, header, stream)
		},
		"another cluster": func(tr transport.Transport, to string, header, stream []byte) error {
			for i := bytes.Index(stream, []byte("test")); i >= 0; i = bytes.Index(stream, []byte("test")) {
				copy(stream[i:], "tost")
			}
			resum(stream)
			return push(tr, to, header, stream)
		},
	} {
		id := liar(t, c, l.store, send)
		if err := f.reseed(id); err == nil || DamageOf(err) == DamageLog {
			t.Fatalf("%s: %v", name, err)
		} else {
			t.Logf("%s: %v", name, err)
		}
		f.wantDamage(DamageState)
	}
	// Twice under one number: the second is refused.
	id := liar(t, c, l.store, func(tr transport.Transport, to string, header, stream []byte) error {
		first := push(tr, to, header, stream)
		if err := push(tr, to, header, stream); err == nil {
			t.Error("a second copy under the same number was taken")
		}
		return first
	})
	if err := f.reseed(id); err != nil {
		t.Fatal(err)
	}
	f.start()
	c.converge()
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errDisk }

// A crash at any step is brought to its end by the next start, or the repair begins anew.
func TestRepairStateCrash(t *testing.T) { synctest.Test(t, testRepairStateCrash) }

func testRepairStateCrash(t *testing.T) {
	c := newCluster(t, 3, frugal)
	c.fill("before", 150)
	c.converge()
	f := c.followers()[0]
	until(t, "a snapshot", func() bool { return f.store.snaps.latest() != nil })
	f.kill()
	dir := f.config().Dir
	receive := func(name string) {
		t.Helper()
		l := c.waitLeader()
		if err := l.store.fsm.Flush(); err != nil {
			t.Fatal(err)
		}
		_, _, r, err := l.store.fsm.OpenStream(fsm.StreamSparse)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := fsm.Receive(bg(t), filepath.Join(dir, name), r, fsm.Seed{ClusterID: "test", Shard: 3, InitialMmapSize: 1 << 20}); err != nil {
			t.Fatal(err)
		}
	}
	f.damageState()
	// Half received: it does not count.
	receive(incomingName)
	f.wantDamage(DamageState)
	// Received, not switched: the start does it (R11).
	receive(receivedName)
	f.start()
	c.converge()
	f.kill()
	// Put aside and not replaced: the empty state lies behind the snapshot.
	if err := os.Rename(filepath.Join(dir, stateName), filepath.Join(dir, stateName+damagedSuffix+"9")); err != nil {
		t.Fatal(err)
	}
	f.wantDamage(DamageState)
	f.mend()
}

// Damage that was found while the replica ran is marked beside the file, which may look
// well to a start: it is not used again.
func TestRepairMarkedState(t *testing.T) { synctest.Test(t, testRepairMarkedState) }

func testRepairMarkedState(t *testing.T) {
	c := newCluster(t, 3, frugal)
	c.fill("before", 150)
	f := c.followers()[0]
	until(t, "a snapshot", func() bool { return f.store.snaps.latest() != nil })
	f.kill()
	states, err := filepath.Glob(filepath.Join(f.config().Dir, stateName, "state-*.db"))
	if err != nil || len(states) != 1 {
		t.Fatalf("%v, %v", states, err)
	}
	if err := os.WriteFile(states[0]+".damaged", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f.wantDamage(DamageState)
	f.mend()
}

// A single replica whose log is whole makes its state from that.
func TestRepairStateFromLog(t *testing.T) { synctest.Test(t, testRepairStateFromLog) }

func testRepairStateFromLog(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.fill("k", 30)
	n := c.nodes[0]
	n.stop()
	n.damageState()
	n.wantDamage(DamageState)
	if err := n.reseed(""); err != nil {
		t.Fatal(err)
	}
	n.start()
	c.want("k29", "k")
}

// Damaged metadata of the snapshot are replaced by a peer's, with a state that fits.
func TestRepairSnapshotMeta(t *testing.T) { synctest.Test(t, testRepairSnapshotMeta) }

func testRepairSnapshotMeta(t *testing.T) {
	c := newCluster(t, 3, frugal)
	c.fill("before", 150)
	f := c.followers()[0]
	until(t, "a snapshot and a cut log", func() bool {
		first, _ := f.store.logs.FirstIndex()
		return f.store.snaps.latest() != nil && first > 1
	})
	f.kill()
	c.fill("more", 60)
	overwrite(t, filepath.Join(f.config().Dir, "snapshots", metaFile), 12, []byte("999"))
	f.wantDamage(DamageState)
	until(t, "a peer with a snapshot that is far enough", func() bool { return f.reseed(c.waitLeader().id) == nil })
	f.start()
	c.converge()
}
