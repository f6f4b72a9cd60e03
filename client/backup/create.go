package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/sharding"
)

// Options say how a backup is made.
type Options struct {
	// Version of the program, for the manifest.
	Version string
	// Rate is how many bytes a second may be read from the cluster, all shards together. 0: as fast as it goes.
	Rate int64
	// Progress is told how much has been read, and of how much, now and then; from several goroutines, one at a time. It may be nil.
	Progress func(done, total Amount)
	// Note is told what went wrong and is done again, in a line. It may be nil.
	Note func(text string)
}

// Amount is of records and their bytes.
type Amount struct{ Records, Bytes int64 }

const (
	// shardsAtOnce is how many shards are read at once: while one waits for a node, others are written.
	shardsAtOnce = 4
	// opensAtOnce is how many views are opened at once: all of them should be close together in time.
	opensAtOnce = 16
	// keepEvery is how often the nodes are told that the views are wanted. They let go of those of which they do not hear for a minute.
	keepEvery = 15 * time.Second
	// tries is how often a shard is tried before Create gives up, pauses between them up to maxPause: long enough for an
	// election or a restart.
	tries    = 12
	maxPause = 5 * time.Second
	// refusals is how many of these may be refusals that time does not mend: one or two nodes may be of an older version.
	refusals = 3
	// rounds is how often all views are taken again because their slots are not all slots.
	rounds = 7
)

// Create writes a backup of the whole cluster to path: to a directory with a file for each shard if path ends in a separator, else to one file. Under that
// name there is nothing before all of it is on the disk, and nothing after an error.
//
// First a view of every shard is opened, so that the shards' log indexes are close together in time; then they are read. A view
// that is lost, with its node or because it was held for too long, is replaced by one of another replica, and that shard is read anew: as of a later index.
func Create(ctx context.Context, c *client.Client, path string, o Options) (*Manifest, error) {
	if o.Progress == nil {
		o.Progress = func(Amount, Amount) {}
	}
	if o.Note == nil {
		o.Note = func(string) {}
	}
	var err error
	for round := range rounds {
		if round > 0 {
			o.Note(err.Error() + "; all shards are read again")
			if err := sleep(ctx, pause(round)); err != nil {
				return nil, err
			}
		}
		var m *Manifest
		m, err = create(ctx, c, path, o)
		if !errors.Is(err, ErrUneven) {
			return m, err
		}
	}
	return nil, err
}

// creation is one try to back everything up.
type creation struct {
	c     *client.Client
	o     Options
	w     *writer
	limit *rate.Limiter // nil: none
	began time.Time
	// status is the cluster's at the beginning.
	status client.Status

	mu    sync.Mutex
	done  Amount
	total Amount

	shards []*source
}

// source is a shard that is backed up.
type source struct {
	id      uint32
	slots   string // of its first view
	attempt uint32
	// view is read next, nil if it has to be opened. It belongs to one goroutine at a time: pin, then read.
	view *client.ShardView
	at   time.Time // of the view
	// kept is the view, for keep.
	kept   atomic.Pointer[client.ShardView]
	was    Amount // what its first view has
	result Shard
}

func create(ctx context.Context, c *client.Client, path string, o Options) (m *Manifest, err error) {
	w, err := newWriter(path)
	if err != nil {
		return nil, err
	}
	defer w.abort()
	cr := &creation{c: c, o: o, w: w, began: time.Now()}
	if o.Rate > 0 {
		// A block is waited for as a whole.
		cr.limit = rate.NewLimiter(rate.Limit(o.Rate), maxBlock)
		cr.limit.AllowN(cr.began, maxBlock)
	}
	st, err := c.Status(ctx)
	if err != nil {
		return nil, err
	}
	cr.status = st
	for _, s := range st.Shards {
		cr.shards = append(cr.shards, &source{id: s.ID})
	}
	slices.SortFunc(cr.shards, func(a, b *source) int { return int(int64(a.id) - int64(b.id)) })
	defer cr.closeViews(ctx)
	if m, err = cr.pin(ctx); err != nil {
		return nil, err
	}
	if err := cr.readAll(ctx); err != nil {
		return nil, err
	}
	for _, s := range cr.shards {
		m.Shards = append(m.Shards, s.result)
		m.Records += s.result.Records
		m.Bytes += s.result.Bytes
	}
	m.Ended = time.Now().UTC()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if err := w.commit(m); err != nil {
		return nil, err
	}
	return m, nil
}

// pin opens a view of every shard and checks that their slots are all slots, each once: else a slot went from one shard to another between
// the two views, and its keys are in none or in both.
func (cr *creation) pin(ctx context.Context) (*Manifest, error) {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(opensAtOnce)
	for _, s := range cr.shards {
		g.Go(func() error {
			return cr.retry(gctx, s, "open a view", func(n int) error { return cr.open(gctx, s, n) })
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	m := &Manifest{Format: Format, Version: cr.o.Version, Began: cr.began.UTC()}
	var parts [][]sharding.SlotRange
	for _, s := range cr.shards {
		v := s.view
		part, err := parseSlots(v.Slots)
		if err != nil {
			return nil, fmt.Errorf("shard %d on node %s: %w", s.id, v.Node, err)
		}
		parts = append(parts, part)
		if m.ClusterID == "" {
			m.ClusterID = v.ClusterID
		}
		if v.ClusterID != m.ClusterID {
			return nil, fmt.Errorf("node %s is of cluster %s, others are of %s", v.Node, v.ClusterID, m.ClusterID)
		}
		if v.Epoch >= m.Epoch {
			m.Epoch, m.Level = v.Epoch, v.Level
		}
		s.slots, s.was = v.Slots, Amount{v.Records, v.Bytes}
		cr.total.Records += v.Records
		cr.total.Bytes += v.Bytes
	}
	if err := partition(parts); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUneven, err)
	}
	return m, nil
}

// readAll reads the shards, some at once.
func (cr *creation) readAll(ctx context.Context) error {
	kctx, stop := context.WithCancel(ctx)
	var keeping sync.WaitGroup
	keeping.Go(func() { cr.keep(kctx) })
	defer keeping.Wait()
	defer stop()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(shardsAtOnce)
	for _, s := range cr.shards {
		g.Go(func() error {
			return cr.retry(gctx, s, "read", func(n int) error {
				if s.view == nil {
					if err := cr.open(gctx, s, n); err != nil {
						return err
					}
				}
				return cr.read(gctx, s)
			})
		})
	}
	return g.Wait()
}

// final is an error that no other replica mends.
type final struct{ err error }

func (f *final) Error() string { return f.err.Error() }
func (f *final) Unwrap() error { return f.err }

// retry calls try until it succeeds, with its number, each time at another replica.
func (cr *creation) retry(ctx context.Context, s *source, verb string, try func(n int) error) error {
	refused := 0
	for n := 0; ; n++ {
		err := try(n)
		var f *final
		if server := (*client.ServerError)(nil); errors.As(err, &server) && server.Code != "TRYAGAIN" && server.Code != "CLUSTERDOWN" && server.Code != "NOTFOUND" {
			refused++ // it does not know the command, say, or we may not give it
		}
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.As(err, &f):
			return f.err
		case errors.Is(err, client.ErrNoPermission), errors.Is(err, client.ErrAuth):
			return fmt.Errorf("%s of shard %d: %w", verb, s.id, err)
		case n+1 == tries, refused == refusals:
			return fmt.Errorf("%s of shard %d: %w: %w", verb, s.id, ErrSnapshotLost, err)
		}
		cr.note(fmt.Sprintf("%s of shard %d: %v; another replica is asked", verb, s.id, err))
		if err := sleep(ctx, pause(n)); err != nil {
			return err
		}
	}
}

func (cr *creation) note(text string) {
	cr.mu.Lock()
	defer cr.mu.Unlock()
	cr.o.Note(text)
}

// open opens a view of a shard at the replica whose turn it is at the nth try.
func (cr *creation) open(ctx context.Context, s *source, n int) error {
	st := cr.status
	if n > 0 { // what was known then may be what is wrong
		var err error
		if st, err = cr.c.Status(ctx); err != nil {
			return err
		}
	}
	addrs := replicasOf(st, s.id)
	if len(addrs) == 0 {
		return fmt.Errorf("no node is up that has a replica of shard %d", s.id)
	}
	v, err := cr.c.OpenView(ctx, addrs[n%len(addrs)], s.id)
	if err != nil {
		return err
	}
	// Now and not before: so that no key ends sooner than it was to.
	s.view, s.at = v, time.Now()
	s.kept.Store(v)
	if s.slots != "" && v.Slots != s.slots {
		return &final{fmt.Errorf("%w: shard %d had slots %s and has %s", ErrUneven, s.id, s.slots, v.Slots)}
	}
	return nil
}

// replicasOf returns the client addresses of the live nodes with a replica of a shard: followers, then who leads, which has enough to
// do; different shards begin with different followers.
func replicasOf(st client.Status, shard uint32) (addrs []string) {
	nodes := map[string]client.NodeStatus{}
	for _, n := range st.Nodes {
		nodes[n.ID] = n
	}
	var last []string
	for _, s := range st.Shards {
		if s.ID != shard {
			continue
		}
		for _, r := range s.Replicas {
			n, known := nodes[r.Node]
			switch {
			case !known || !n.Alive || n.Addrs.Client == "":
			case r.Node == s.Leader || !r.Voter:
				last = append(last, n.Addrs.Client)
			default:
				addrs = append(addrs, n.Addrs.Client)
			}
		}
	}
	if n := len(addrs); n > 0 {
		turn := int(shard) % n
		addrs = append(slices.Clone(addrs[turn:]), addrs[:turn]...)
	}
	return append(addrs, last...)
}

// read reads a shard's view to its end and writes it.
func (cr *creation) read(ctx context.Context, s *source) (err error) {
	v := s.view
	s.attempt++
	began := Amount{}
	defer func() {
		s.view = nil
		s.kept.Store(nil)
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWait)
		v.Close(cctx)
		cancel()
		if err != nil {
			cr.advance(Amount{-began.Records, -began.Bytes}) // it was for nothing
		}
	}()
	slots, err := parseSlots(v.Slots)
	if err != nil {
		return err
	}
	check := newChecker(slots)
	for last := false; !last; {
		var records []byte
		if records, last, err = v.Next(ctx); err != nil {
			return err
		}
		if len(records) == 0 {
			continue
		}
		if len(records) > maxBlock {
			return &final{fmt.Errorf("shard %d: node %s sends a block of %d bytes", s.id, v.Node, len(records))}
		}
		if cr.limit != nil {
			if err := cr.limit.WaitN(ctx, len(records)); err != nil {
				return err
			}
		}
		before := Amount{check.records, check.bytes}
		number := check.blocks
		n, err := check.block(records, nil)
		if err != nil {
			return fmt.Errorf("shard %d: what node %s sends is wrong: %w", s.id, v.Node, err)
		}
		if err := cr.w.block(header{shard: s.id, attempt: s.attempt, number: number, records: n}, records); err != nil {
			return &final{fmt.Errorf("write the backup: %w", err)}
		}
		step := Amount{check.records - before.Records, check.bytes - before.Bytes}
		began.Records += step.Records
		began.Bytes += step.Bytes
		cr.advance(step)
	}
	if check.records != v.Records || check.bytes != v.Bytes {
		return fmt.Errorf("shard %d: node %s has sent %d records of %d bytes, its view has %d of %d", s.id, v.Node, check.records, check.bytes, v.Records, v.Bytes)
	}
	cr.mu.Lock()
	cr.total.Records += v.Records - s.was.Records
	cr.total.Bytes += v.Bytes - s.was.Bytes
	cr.mu.Unlock()
	s.result = Shard{ID: s.id, Slots: v.Slots, Index: v.Index, Term: v.Term, At: s.at.UTC(), Node: v.Node, Attempt: s.attempt,
		Blocks: check.blocks, Records: check.records, Bytes: check.bytes, SHA256: check.hash()}
	return nil
}

func (cr *creation) advance(by Amount) {
	cr.mu.Lock()
	defer cr.mu.Unlock()
	cr.done.Records += by.Records
	cr.done.Bytes += by.Bytes
	cr.o.Progress(cr.done, cr.total)
}

// keep tells the nodes now and then that the views are wanted: some wait for their turn, others for Options.Rate. What goes wrong there shows when they are read.
func (cr *creation) keep(ctx context.Context) {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var g errgroup.Group
		g.SetLimit(opensAtOnce)
		for _, s := range cr.shards {
			if v := s.kept.Load(); v != nil {
				g.Go(func() error { v.Keep(ctx); return nil })
			}
		}
		g.Wait()
	}
}

// closeWait bounds the courtesy of closing views: nodes that do not answer let go of them by themselves.
const closeWait = 2 * time.Second

func (cr *creation) closeViews(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWait)
	defer cancel()
	var g errgroup.Group
	g.SetLimit(opensAtOnce)
	for _, s := range cr.shards {
		if v := s.view; v != nil {
			g.Go(func() error { v.Close(ctx); return nil })
		}
	}
	g.Wait()
}

func pause(n int) time.Duration { return min(20*time.Millisecond<<min(n, 10), maxPause) }

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
