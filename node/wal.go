package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/abacusdb/abacus/store"
	"github.com/abacusdb/abacus/store/wal"
)

// The kinds of log (Config.LogStore).
const (
	LogWAL  = "wal"    // one of the node, which its replicas share
	LogBolt = "boltdb" // one of each replica, in raft-boltdb
)

// openWAL opens the node's log. A damaged one is put aside and a new one made: no replica here
// finds its entries in that, and so each is replaced by another (store.DamageLog).
func (n *Node) openWAL() error {
	if n.cfg.LogStore == LogBolt {
		return nil
	}
	dir := n.dir.file("wal")
	cfg := wal.Config{Path: dir, SegmentBytes: n.cfg.SegmentBytes, Log: n.log,
		Fatal: func(err error) { n.fatal(fmt.Errorf("%s: %w", dir, err)) }}
	open := func() (*wal.WAL, error) {
		if err := os.Mkdir(dir, 0o750); err == nil {
			if err := syncDir(n.dir.path); err != nil {
				return nil, err
			}
		} else if !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make log directory: %w", err)
		}
		w, err := wal.Open(wal.Dir(dir), cfg)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
		return w, nil
	}
	w, err := open()
	if errors.Is(err, wal.ErrDamaged) {
		n.log.Error("the node's log is damaged: every replica here has to be replaced", "err", err)
		if _, err := store.PutAside(dir); err != nil {
			return fmt.Errorf("put damaged log aside: %w", err)
		}
		w, err = open()
	}
	if err != nil {
		return err
	}
	n.wal = w
	return n.dropOrphans()
}

// dropOrphans forgets the logs of replicas that are not here any more: a replica's directory goes first.
func (n *Node) dropOrphans() error {
	for _, name := range n.wal.Names() {
		if slices.Contains(n.dir.ident().Replicas, name.String()) {
			continue
		}
		if err := n.wal.Drop(name); err != nil {
			return fmt.Errorf("drop log of %v: %w", name, err)
		}
	}
	return nil
}

// dropLog forgets the log of a replica whose directory is gone.
func (n *Node) dropLog(shard uint32, replica string) error {
	if n.wal == nil {
		return nil
	}
	return n.wal.Drop(wal.Name{Shard: shard, Replica: replica})
}

// closeWAL closes the node's log; if its disk hangs, it is left open when ctx ends.
func (n *Node) closeWAL(ctx context.Context) error {
	closed := make(chan error, 1)
	go func() { closed <- n.wal.Close() }()
	select {
	case err := <-closed:
		return err
	case <-ctx.Done():
		return fmt.Errorf("close log: %w", ctx.Err())
	}
}
