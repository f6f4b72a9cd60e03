package store

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/transport"
)

// Repair of a damaged state: the replica keeps its id, its votes and its log, and
// takes the state from a peer, at an index from which its log goes on. Raft does
// not run meanwhile, so that the replica serves nothing and votes for nobody.
//
// The receiver asks (MethodSeed) and the sender pushes a stream (MethodSeedState)
// under the attempt's number, for a stream can only be sent. The call is answered
// when the stream has ended; who gives up cancels it, which ends the other too.

var (
	// ErrStateDamaged: the state, or the snapshot's metadata, cannot be read. Reseed
	// replaces both. The error of fsm is in the chain.
	ErrStateDamaged = errors.New("state is damaged")
)

const (
	// seedStart is how long a peer may take to begin; it may have to write a checkpoint first.
	seedStart = 30 * time.Second
	// seedTimeout bounds one attempt.
	seedTimeout = 10 * time.Minute
	// seedsAtOnce is how many a node sends at once.
	seedsAtOnce = 1
	// keepDamaged is how many damaged states stay for whoever wants to look at them.
	keepDamaged = 2
)

// Names in a replica's directory.
const (
	stateName    = "state"
	incomingName = "state.incoming" // half received: removed at a start
	receivedName = "state.received" // whole and checked: takes the place of state
	// damagedSuffix and a number end the name of what was put aside.
	damagedSuffix = ".damaged-"
)

// seeds is a node's traffic of state copies. Part of Net.
type seeds struct {
	sending chan struct{} // a token per copy being sent

	mu       sync.Mutex
	sources  map[uint32]*Store    // open replicas by shard
	expected map[uint64]*expected // by attempt
}

// expected is a copy that was asked for and has not begun to come.
type expected struct {
	from   string
	stream chan *seedStream // capacity 1
}

// seedStream is a copy on its way in.
type seedStream struct {
	index uint64
	meta  []byte // the sender's snapshot, empty if it has none
	body  *io.PipeReader
	done  chan error // capacity 1: what became of it, for the sender
}

func (n *Net) initSeeds(t transport.Transport) {
	n.seeds = &seeds{sending: make(chan struct{}, seedsAtOnce), sources: map[uint32]*Store{}, expected: map[uint64]*expected{}}
	t.Handle(transport.MethodSeed, n.onSeed)
	t.HandleStream(transport.MethodSeedState, n.onSeedState)
}

// offer lets peers ask for this replica's state until it closes.
func (n *Net) offer(s *Store) {
	n.seeds.mu.Lock()
	n.seeds.sources[s.cfg.Shard] = s
	n.seeds.mu.Unlock()
	context.AfterFunc(s.ctx, func() {
		n.seeds.mu.Lock()
		defer n.seeds.mu.Unlock()
		if n.seeds.sources[s.cfg.Shard] == s {
			delete(n.seeds.sources, s.cfg.Shard)
		}
	})
}

// --- the sender ---

// seedRequest asks for a copy of a shard's state.
type seedRequest struct {
	shard   uint32
	attempt uint64
	min     uint64 // the index that it must reach
}

func (r seedRequest) encode() []byte {
	e := &encoder{}
	e.u8(wireVersion)
	e.u32(r.shard)
	e.u64(r.attempt)
	e.u64(r.min)
	return e.buf
}

func decodeSeedRequest(frame []byte) (r seedRequest, err error) {
	d := decoder{buf: frame}
	d.version()
	r = seedRequest{shard: d.u32(), attempt: d.u64(), min: d.u64()}
	return r, d.end()
}

func (n *Net) onSeed(ctx context.Context, from string, frame []byte) ([]byte, error) {
	req, err := decodeSeedRequest(frame)
	if err != nil {
		return nil, badFrame(err)
	}
	n.seeds.mu.Lock()
	s := n.seeds.sources[req.shard]
	n.seeds.mu.Unlock()
	if s == nil {
		return nil, transport.Errorf(transport.CodeNoReplica, "shard %d", req.shard)
	}
	select {
	case n.seeds.sending <- struct{}{}:
		defer func() { <-n.seeds.sending }()
	default:
		return nil, transport.Errorf(transport.CodeBusy, "a state copy is being sent already")
	}
	return nil, s.sendSeed(ctx, from, req)
}

// sendSeed pushes our state to a node. It ends with the asker's patience, or with this replica.
func (s *Store) sendSeed(ctx context.Context, to string, req seedRequest) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	if at := s.fsm.Applied(); at < req.min {
		return transport.Errorf(transport.CodeBusy, "replica %s is at index %d only, %d is needed", s.cfg.Replica, at, req.min)
	}
	// The file may be far behind what is in memory.
	if s.fsm.DurableIndex() < req.min {
		if err := s.fsm.Flush(); err != nil {
			return err
		}
	}
	// Before the stream, which is then at least as new.
	meta := s.snaps.latest()
	size, index, body, err := s.openStream()
	if err != nil {
		return err
	}
	defer body.Close()
	ctx, cancelSlow := context.WithTimeout(ctx, s.cfg.Net.outgoing.time(size))
	defer cancelSlow()
	e := &encoder{}
	e.u8(wireVersion)
	e.u64(req.attempt)
	e.u64(index)
	var saved []byte
	if meta != nil {
		if saved, err = encodeMeta(meta); err != nil {
			return err
		}
	}
	e.bytes(saved)
	s.log.Info("sending the state to a peer", "to", to, "index", index, "bytes", size)
	paced, end := s.cfg.Net.outgoing.begin(ctx, address{shard: s.cfg.Shard, replica: raft.ServerID("seed for " + to)}, size, body)
	defer end()
	_, err = s.cfg.Net.t.Stream(ctx, to, transport.MethodSeedState, e.buf, paced, size)
	return err
}

// --- the receiver ---

func (n *Net) onSeedState(ctx context.Context, from string, header []byte, body io.Reader, _ int64) ([]byte, error) {
	d := decoder{buf: header}
	d.version()
	attempt := d.u64()
	in := &seedStream{index: d.u64(), meta: d.bytes(), done: make(chan error, 1)}
	if err := d.end(); err != nil {
		return nil, badFrame(fmt.Errorf("state copy: %w", err))
	}
	n.seeds.mu.Lock()
	want := n.seeds.expected[attempt]
	if want != nil && want.from == from {
		delete(n.seeds.expected, attempt) // no copy comes twice
	}
	n.seeds.mu.Unlock()
	if want == nil || want.from != from {
		return nil, transport.Errorf(transport.CodeRefused, "nobody waits for this state copy")
	}
	var w *io.PipeWriter
	in.body, w = io.Pipe()
	want.stream <- in
	stall := time.AfterFunc(installStall, func() { w.CloseWithError(errors.New("state copy stalled")) })
	defer stop(stall)
	// The copy waits for a receiver that may have given up, and for a sender.
	defer context.AfterFunc(ctx, func() { w.CloseWithError(ctx.Err()) })()
	_, err := io.Copy(&progress{w: w, timer: stall}, body)
	w.CloseWithError(err) // nil is io.EOF
	stop(stall)
	select {
	case err := <-in.done:
		return nil, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Reseed replaces the damaged state of a replica that is not open by the one of
// the shard's replica on the node peer. The replica can be opened afterwards. It is
// safe to repeat, after any failure and after a crash.
//
// An error for which DamageOf says DamageLog means that the log is not sound
// either. Any other is about the peer or the way to it: ask another.
func Reseed(ctx context.Context, cfg Config, clusterID, peer string) (err error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return fmt.Errorf("re-seed replica: %w", err)
	}
	r := reseed{cfg: cfg, log: cfg.Log.With("shard", cfg.Shard, "replica", cfg.Replica), clusterID: clusterID}
	if err := r.run(ctx, peer); err != nil {
		return fmt.Errorf("re-seed replica %s of shard %d: %w", cfg.Replica, cfg.Shard, err)
	}
	return nil
}

type reseed struct {
	cfg       Config
	log       *slog.Logger
	clusterID string

	// min is the index that the state must reach for the log to go on from it.
	min uint64
	// replay: the log alone makes the state.
	replay bool
	// needsMeta: our snapshot's metadata are damaged too.
	needsMeta bool
}

func (r *reseed) path(name string) string { return filepath.Join(r.cfg.Dir, name) }

func (r *reseed) run(ctx context.Context, peer string) error {
	if err := r.look(); err != nil {
		return err
	}
	if r.replay {
		r.log.Warn("the whole log is here: the state is made anew from it")
		if r.needsMeta {
			if err := r.quarantineMeta(); err != nil {
				return err
			}
		}
		return quarantineState(r.cfg.Dir, r.log)
	}
	if peer == "" || peer == r.cfg.Node {
		return transport.Errorf(transport.CodeUnavailable, "no other node holds a replica")
	}
	incoming := r.path(incomingName)
	if err := os.RemoveAll(incoming); err != nil {
		return err
	}
	if err := os.Mkdir(incoming, 0o700); err != nil {
		return err
	}
	index, meta, err := r.fetch(ctx, peer, incoming)
	if err != nil {
		return errors.Join(fmt.Errorf("from node %s: %w", peer, err), os.RemoveAll(incoming))
	}
	// In this order, so that a crash between two leaves what the next start brings to its end.
	if err := os.Rename(incoming, r.path(receivedName)); err != nil {
		return err
	}
	if err := syncDir(r.cfg.Dir); err != nil {
		return err
	}
	if r.needsMeta {
		if err := r.adoptMeta(meta); err != nil {
			return err
		}
	}
	if err := finishSeed(r.cfg.Dir, r.log); err != nil {
		return err
	}
	r.log.Info("state re-seeded", "from", peer, "index", index, "log_begins_after", r.min)
	return nil
}

// look finds out where the state must go on from.
func (r *reseed) look() (err error) {
	// Opening would make an empty one.
	if _, err := os.Stat(r.path(logName)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: raft.db is gone", ErrLogLost)
	}
	db, err := openLogFile(r.cfg.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	stable, err := readLog(r.cfg, address{r.cfg.Shard, raft.ServerID(r.cfg.Replica)}, db, db)
	if err != nil {
		return err
	}
	if stable.term.Load() == 0 {
		return fmt.Errorf("%w: there is a state and no term", ErrLogLost)
	}
	first, err := r.cfg.entries(db).FirstIndex()
	if err != nil {
		return err
	}
	snaps, err := openSnapshots(r.path("snapshots"), r.cfg.Fatal, r.log)
	switch {
	case errors.Is(err, ErrStateDamaged):
		r.needsMeta = true
		if first == 0 {
			// Only the metadata said how far we were, and others count on that.
			return fmt.Errorf("%w: there is no log, and the snapshot's metadata are damaged", ErrLogLost)
		}
	case err != nil:
		return err
	default:
		if m := snaps.latest(); m != nil {
			r.min = m.Index
		}
	}
	if first > 0 {
		r.min = max(r.min, first-1)
	}
	r.replay = first == 1 && r.min == 0
	return nil
}

// fetch asks the peer and receives into dir. It returns the sender's snapshot too.
func (r *reseed) fetch(ctx context.Context, peer, dir string) (index uint64, meta *raft.SnapshotMeta, err error) {
	ctx, cancel := context.WithTimeout(ctx, seedTimeout)
	defer cancel()
	n := r.cfg.Net.seeds
	var number [8]byte
	_, _ = rand.Read(number[:]) // documented never to fail
	req := seedRequest{shard: r.cfg.Shard, attempt: binary.BigEndian.Uint64(number[:]), min: r.min}
	want := &expected{from: peer, stream: make(chan *seedStream, 1)}
	n.mu.Lock()
	n.expected[req.attempt] = want
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		delete(n.expected, req.attempt)
		n.mu.Unlock()
	}()
	answer := make(chan error, 1)
	go func() {
		_, err := r.cfg.Net.t.Call(ctx, peer, transport.LaneCall, transport.MethodSeed, req.encode())
		answer <- err
	}()
	defer func() { cancel(); <-answer }()

	patience := time.NewTimer(seedStart)
	defer patience.Stop()
	var in *seedStream
	select {
	case in = <-want.stream:
	case err := <-answer:
		answer <- err // for the wait above
		if err == nil {
			err = errors.New("it sent nothing")
		}
		return 0, nil, err
	case <-patience.C:
		return 0, nil, fmt.Errorf("it did not begin within %v", seedStart)
	case <-ctx.Done():
		return 0, nil, ctx.Err()
	}
	defer context.AfterFunc(ctx, func() { in.body.CloseWithError(ctx.Err()) })()
	index, err = fsm.Receive(ctx, dir, in.body, fsm.Seed{ClusterID: r.clusterID, Shard: r.cfg.Shard, MinIndex: r.min, InitialMmapSize: r.cfg.InitialMmapSize, Log: r.log})
	if err == nil && r.needsMeta {
		meta, err = r.checkMeta(in.meta, index)
	}
	in.body.CloseWithError(errors.New("the receiver is done")) // a sender that goes on stops
	in.done <- err
	if err == nil {
		// Let the sender hear of it before the call is cancelled.
		select {
		case e := <-answer:
			answer <- e
		case <-time.After(time.Second):
		}
	}
	return index, meta, err
}

// checkMeta says whether the sender's snapshot can stand in for our lost one: it must
// reach to our log, and the state to it.
func (r *reseed) checkMeta(raw []byte, index uint64) (*raft.SnapshotMeta, error) {
	if len(raw) == 0 {
		return nil, errors.New("it has no snapshot yet")
	}
	m, err := decodeMeta(raw)
	if err != nil {
		return nil, fmt.Errorf("its snapshot: %w", err)
	}
	if m.Index < r.min || m.Index > index {
		return nil, fmt.Errorf("its snapshot is at index %d, its state at %d, and our log begins after %d", m.Index, index, r.min)
	}
	return m, nil
}

func (r *reseed) adoptMeta(m *raft.SnapshotMeta) error {
	if err := r.quarantineMeta(); err != nil {
		return err
	}
	snaps, err := openSnapshots(r.path("snapshots"), r.cfg.Fatal, r.log)
	if err != nil {
		return err
	}
	snaps.mu.Lock()
	defer snaps.mu.Unlock()
	return snaps.save(m)
}

func (r *reseed) quarantineMeta() error {
	path := filepath.Join(r.path("snapshots"), metaFile)
	if err := os.Rename(path, path+".damaged"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// finishSeed puts a received state in the place of the damaged one, if there is one.
// It is called at each start too: nothing but a crash can have left it.
func finishSeed(dir string, log *slog.Logger) error {
	if err := os.RemoveAll(filepath.Join(dir, incomingName)); err != nil {
		return err
	}
	received := filepath.Join(dir, receivedName)
	if _, err := os.Stat(received); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if err := quarantineState(dir, log); err != nil {
		return err
	}
	if err := os.Rename(received, filepath.Join(dir, stateName)); err != nil {
		return err
	}
	return syncDir(dir)
}

// quarantineState puts the state aside, and removes the oldest that were.
func quarantineState(dir string, log *slog.Logger) error {
	to, err := PutAside(filepath.Join(dir, stateName))
	if errors.Is(err, fs.ErrNotExist) { // a crash came right after
		return nil
	}
	if err != nil {
		return err
	}
	log.Warn("damaged state put aside", "path", to)
	return nil
}

// PutAside renames a damaged file or directory, durably, to path.damaged-N with the next N, and
// returns that. It first removes the oldest, so that keepDamaged of them stay.
func PutAside(path string) (to string, err error) {
	prefix := path + damagedSuffix
	names, err := filepath.Glob(prefix + "*")
	if err != nil {
		return "", err
	}
	var old []int
	for _, p := range names {
		if n, err := strconv.Atoi(strings.TrimPrefix(p, prefix)); err == nil {
			old = append(old, n)
		}
	}
	slices.Sort(old)
	next := 1
	if len(old) > 0 {
		next = old[len(old)-1] + 1
	}
	for ; len(old) >= keepDamaged; old = old[1:] {
		if err := os.RemoveAll(prefix + strconv.Itoa(old[0])); err != nil {
			return "", err
		}
	}
	to = prefix + strconv.Itoa(next)
	if err := os.Rename(path, to); err != nil {
		return "", err
	}
	return to, syncDir(filepath.Dir(path))
}
