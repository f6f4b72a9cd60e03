package store

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"

	"github.com/hashicorp/raft"

	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/fsm/command"
)

// machine is the state machine as raft sees it: fsm.FSM, with the term of each
// entry beside its answers, and with installs brought to their end.
type machine struct {
	*fsm.FSM
	snaps *snapshots
	log   *logStore
	// applying is of the batch under way; restoring, of an install of restoreBytes.
	applying, restoring stopwatch
	restoreBytes        atomic.Int64
	fatal               func(error)
	// wanted are the entries whose proposals wait for answers; nil: none.
	wanted *wanted
	// conf is the newest committed configuration that was applied. raft does not
	// tell its index, which a safe change of members needs.
	conf atomic.Pointer[configuration]
}

// configuration is a committed set of members and the index of its entry.
type configuration struct {
	index   uint64
	servers []raft.Server
}

// outcome is what raft hands back for an entry of ours.
type outcome struct {
	index   uint64
	term    uint64
	results []command.Result
}

func newMachine(f *fsm.FSM, snaps *snapshots, log *logStore, fatal func(error)) *machine {
	m := &machine{FSM: f, snaps: snaps, log: log, applying: newStopwatch(), restoring: newStopwatch(), fatal: fatal}
	m.conf.Store(&configuration{})
	if meta := snaps.latest(); meta != nil {
		m.adopt(meta)
	}
	return m
}

func (m *machine) adopt(meta *raft.SnapshotMeta) {
	m.conf.Store(&configuration{index: meta.ConfigurationIndex, servers: meta.Configuration.Clone().Servers})
}

func (m *machine) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

func (m *machine) ApplyBatch(logs []*raft.Log) []any {
	applying := m.applying.begin()
	out := m.FSM.ApplyBatch(logs)
	m.applying.end(applying)
	outcomes := make([]outcome, len(logs))
	for i, l := range logs {
		outcomes[i] = outcome{index: l.Index, term: l.Term}
		if a, ok := out[i].(*fsm.Applied); ok {
			outcomes[i].results = a.Results
			if a.Batch != 0 && m.wanted != nil {
				// At once: by way of raft two more goroutines would have to be woken.
				if p := m.wanted.get(a.Batch); p != nil {
					p.settle(&outcomes[i], nil)
				}
			}
		}
		out[i] = &outcomes[i]
		if l.Type == raft.LogConfiguration {
			m.conf.Store(&configuration{index: l.Index, servers: raft.DecodeConfiguration(l.Data).Servers})
		}
	}
	return out
}

// Restore replaces the state by a received one. If ours is already as far as
// the snapshot (a crash came between state and metadata), only the metadata is missing.
func (m *machine) Restore(rc io.ReadCloser) error {
	m.restoreBytes.Store(m.snaps.incomingBytes())
	restoring := m.restoring.begin()
	err := m.FSM.Restore(rc)
	m.restoring.end(restoring)
	if disk := new(syscall.Errno); errors.As(err, disk) {
		// The file that it went to is thrown away, but a disk that fails here fails elsewhere.
		m.fatal(err)
		return err
	}
	covered := func(index uint64) bool {
		return (err == nil || errors.Is(err, fsm.ErrStaleSnapshot)) && m.Flush() == nil && m.DurableIndex() >= index
	}
	index, merr := m.snaps.restored(covered)
	switch {
	case merr != nil:
		return merr
	case index != 0:
		m.adopt(m.snaps.latest())
		m.log.installed.Store(index)
		return nil
	case err == nil:
		return fmt.Errorf("restore: the stream's state is at index %d, below its snapshot", m.Applied())
	}
	return err
}
