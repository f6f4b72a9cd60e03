package node

import (
	"context"
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/client/backup"
	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
	"github.com/abacusdb/abacus/transport"
)

// Views for backups: opened, read a block at a time, closed, each by a command of its own (ABACUS.BACKUP), so that a reader takes
// as much as it can carry and no goroutine waits for it. docs/decisions/0024-backup.md says why.
//
// An open view keeps pages of the state's file from being used again: the file grows as long as there are
// writes. So a view that nobody asks for, that has grown old, or for whose sake too much is held, is let go of, whoever wants it.
const (
	backupIdle = time.Minute
	backupAge  = time.Hour
	// backupHeld bounds what is held of one state file, in bytes: it ends the process when it has grown to 16 GiB.
	backupHeld = 4 << 30
	// backupHeldFull is the same when the disk is full. Not 0: that is when somebody wants a backup.
	backupHeldFull = 64 << 20
	// backupLooks is how often that is looked at.
	backupLooks = time.Second
	// backupTold is how long it is known why a view is gone.
	backupTold = 10 * time.Minute
	// backupViews bounds the views at once: two backups of as many shards as there may be.
	backupViews = 2 * sharding.MaxShards

	// backupBlock is about how many bytes one answer has, or one record that is larger.
	backupBlock = 256 << 10
	// backupVisits bounds the rows that are looked at for one answer, if few of them are keys that have not ended.
	backupVisits = 20_000
)

// backups are the views that are open for backups here.
type backups struct {
	mu     sync.Mutex
	last   uint64 // the newest id
	views  map[uint64]*backupView
	closed bool
}

// backupView is one of them.
type backupView struct {
	shard sharding.ShardID
	st    *store.Store
	began time.Time

	// used is when it was asked for last, gone why it is closed (empty: it is not) and goneAt since when. Guarded by backups.mu.
	used, goneAt time.Time
	gone         string

	// reading guards the view and what was read of it.
	reading sync.Mutex
	v       *fsm.View // nil: closed
	slot    uint16
	after   []byte
}

// newBackups numbers views from a random number on, so that no client takes a view of the process before for its own.
func newBackups() *backups {
	return &backups{last: uint64(time.Now().UnixNano()), views: map[uint64]*backupView{}}
}

// Backup carries out the words of ABACUS.BACKUP: OPEN shard, READ view, KEEP view, CLOSE view.
func (n *Node) Backup(ctx context.Context, words []string) ([]byte, error) {
	if len(words) == 2 {
		id, err := strconv.ParseUint(words[1], 10, 64)
		switch verb := strings.ToUpper(words[0]); {
		case err != nil:
		case verb == "OPEN" && id <= math.MaxUint32:
			return n.openBackup(ctx, sharding.ShardID(id))
		case verb == "READ":
			return n.backups.read(id)
		case verb == "KEEP":
			_, err := n.backups.use(id)
			return []byte("OK"), err
		case verb == "CLOSE":
			n.backups.drop(id, "it was closed")
			return []byte("OK"), nil
		}
	}
	return nil, transport.Errorf(transport.CodeBadRequest, "want OPEN shard, READ view, KEEP view or CLOSE view")
}

// openBackup opens a view of this node's replica of a shard, with everything acknowledged before the call, and with a clock that is right.
func (n *Node) openBackup(ctx context.Context, shard sharding.ShardID) ([]byte, error) {
	st, err := n.hosted(shard)
	if err != nil {
		return nil, err
	}
	v, err := n.viewToTheMinute(ctx, st)
	if err != nil {
		return nil, err
	}
	m := n.Router().Map()
	a := client.ShardView{Node: n.cfg.ID, Shard: shard, Slots: slotText(ownedSlots(v)), Index: v.Index(), Term: v.Term(), ClusterID: m.ClusterID, Epoch: m.Epoch, Level: m.Level}
	a.Records, a.Bytes = v.Counts()
	if a.ID, err = n.backups.add(&backupView{shard: shard, st: st, v: v}); err != nil {
		v.Close()
		return nil, err
	}
	n.log.Info("backup reads a replica", "shard", shard, "index", a.Index, "view", a.ID)
	return json.Marshal(a)
}

// clockTries bounds how often a view is taken again because a key ended just now.
const clockTries = 3

// viewToTheMinute is a view at or above an index that the leader gives, whose clock has been set just now if any key is going to end: a shard's clock moves with its
// entries only, and in one that is idle a key would seem to have hours left that have passed.
func (n *Node) viewToTheMinute(ctx context.Context, st *store.Store) (*fsm.View, error) {
	index, err := n.readIndex(ctx, st.Shard())
	if err != nil {
		return nil, err
	}
	v, err := st.ViewAt(ctx, index)
	for range clockTries {
		if err != nil {
			return nil, err
		}
		slot, key := v.Expiring()
		if key == nil {
			break
		}
		ask := []command.Command{{Op: command.OpTTL, Slot: slot, Keys: [][]byte{append([]byte(nil), key...)}}}
		v.Close()
		results, index, err := n.execIn(ctx, st.Shard(), ask)
		if err != nil {
			return nil, err
		}
		if v, err = st.ViewAt(ctx, index); err != nil {
			return nil, err
		}
		if results[0].Kind == command.KindInt && results[0].Int >= 0 {
			break // the answer went through the log, and the clock with it
		}
	}
	return v, err
}

func (b *backups) add(v *backupView) (id uint64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	open := 0
	for _, o := range b.views {
		if o.gone == "" {
			open++
		}
	}
	switch {
	case b.closed:
		return 0, transport.Errorf(transport.CodeClosed, "the node is stopping")
	case open >= backupViews:
		return 0, transport.Errorf(transport.CodeBusy, "%d views are open for backups", open)
	}
	b.last++
	v.began = time.Now()
	v.used = v.began
	b.views[b.last] = v
	return b.last, nil
}

// use finds a view and notes that it is wanted.
func (b *backups) use(id uint64) (*backupView, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	v := b.views[id]
	switch {
	case v == nil:
		return nil, transport.Errorf(transport.CodeNotFound, "there is no view %d here: the node has been started anew, or it was let go of long ago", id)
	case v.gone != "":
		return nil, transport.Errorf(transport.CodeNotFound, "view %d of shard %d is gone: %s", id, v.shard, v.gone)
	}
	v.used = time.Now()
	return v, nil
}

// read returns the next records of a view; before them is a byte, 1 if they are the last.
func (b *backups) read(id uint64) ([]byte, error) {
	v, err := b.use(id)
	if err != nil {
		return nil, err
	}
	v.reading.Lock()
	defer v.reading.Unlock()
	if v.v == nil { // dropped just now
		_, err := b.use(id)
		return nil, err
	}
	out := make([]byte, 1, backupBlock+backupBlock/8)
	slot, after, done := v.v.Each(v.slot, v.after, backupVisits, func(_ uint16, key, value []byte, left int64) bool {
		if len(out) > 1 && len(out)+len(key)+len(value) > backupBlock {
			return false
		}
		out = backup.AppendRecord(out, backup.Record{Key: key, Value: value, Left: left})
		return true
	})
	v.slot, v.after = slot, append(v.after[:0:0], after...)
	if done {
		out[0] = 1
	}
	return out, nil
}

// drop closes a view, if it is open.
func (b *backups) drop(id uint64, why string) {
	b.mu.Lock()
	v := b.views[id]
	if v == nil || v.gone != "" {
		b.mu.Unlock()
		return
	}
	v.gone, v.goneAt = why, time.Now()
	b.mu.Unlock()
	v.reading.Lock() // who reads it has at most one block to go
	defer v.reading.Unlock()
	v.v.Close()
	v.v = nil
}

// overdue returns the views that are to be let go of, each with the reason, and forgets those that have been gone for long.
func (b *backups) overdue(now time.Time, current func(sharding.ShardID) *store.Store, diskFull bool) map[uint64]string {
	b.mu.Lock()
	defer b.mu.Unlock()
	due := map[uint64]string{}
	for id, v := range b.views {
		switch {
		case v.gone != "":
			if now.Sub(v.goneAt) > backupTold {
				delete(b.views, id)
			}
		case now.Sub(v.used) > backupIdle:
			due[id] = "nobody asked for it for " + backupIdle.String()
		case now.Sub(v.began) > backupAge:
			due[id] = "it was open for " + backupAge.String() + ", and keeps the state's file from using its space again: read faster"
		case current(v.shard) != v.st:
			due[id] = "the replica is not here any more"
		case held(v) > backupHeld:
			due[id] = "it keeps too much of the state's file from being used again: read faster"
		case diskFull && held(v) > backupHeldFull:
			due[id] = "the node's disk is full, and it keeps a part of the state's file from being used again"
		}
	}
	return due
}

// held is what is held in the file of a view, 0 while it is read: then it is looked at the next time.
func held(v *backupView) int64 {
	if !v.reading.TryLock() {
		return 0
	}
	defer v.reading.Unlock()
	return v.v.Held()
}

// runBackups lets go of views that must not be open any longer.
func (n *Node) runBackups(ctx context.Context) error {
	tick := time.NewTicker(backupLooks)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for id, why := range n.backups.overdue(time.Now(), n.host.get, n.space.full()) {
			n.log.Warn("backup's view let go", "view", id, "why", why)
			n.backups.drop(id, why)
		}
	}
}

// close lets go of all views, and no more are opened. The stores that they read are closed next.
func (b *backups) close() {
	b.mu.Lock()
	b.closed = true
	ids := make([]uint64, 0, len(b.views))
	for id := range b.views {
		ids = append(ids, id)
	}
	b.mu.Unlock()
	for _, id := range ids {
		b.drop(id, "the node is stopping")
	}
}
