package node

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/sharding/access"
)

// The audit log: what administrators do and who is refused, each as one line in the node's log and, if there is one, in a file of
// their own. Nobody waits for the file, and a node whose file cannot be written goes on: the lines are in its log. They are counted.
// The file is not synced: a machine that loses its power loses the last lines.
type auditLog struct {
	log   *slog.Logger
	file  *slog.Logger // nil: none
	lines chan []byte  // to run; closed by close
	done  chan struct{}
	lost  atomic.Uint64

	// minor bounds what strangers make us write; what was left out is counted in the next such line.
	minor      *rate.Limiter
	suppressed atomic.Int64

	mu     sync.RWMutex // no line is handed over after close
	closed bool
}

const (
	auditQueue    = 1024 // lines that wait for the file; more are lost
	auditMaxBytes = 64 << 20
	auditClose    = time.Second // how long close waits for the disk
)

// openAudit opens the file, "" for none. A file that cannot be opened is a mistake of whoever starts the node.
func openAudit(path string, node sharding.NodeID, log *slog.Logger) (*auditLog, error) {
	a := &auditLog{log: log, minor: rate.NewLimiter(5, 50), done: make(chan struct{})}
	if path == "" {
		close(a.done)
		return a, nil
	}
	w := &auditFile{path: path, max: auditMaxBytes}
	if err := w.open(); err != nil {
		return nil, fmt.Errorf("--audit-log: %w", err)
	}
	a.lines = make(chan []byte, auditQueue)
	a.file = slog.New(slog.NewJSONHandler(auditSink{a}, &slog.HandlerOptions{ReplaceAttr: func(groups []string, attr slog.Attr) slog.Attr {
		if len(groups) == 0 && (attr.Key == slog.LevelKey || attr.Key == slog.MessageKey) {
			return slog.Attr{} // all lines have the same
		}
		return attr
	}})).With("node", node)
	go a.run(w)
	return a, nil
}

// record writes a line. It does not wait for a disk.
func (a *auditLog) record(e access.Event) {
	attrs := e.Attrs()
	if e.Minor() {
		if !a.minor.Allow() {
			a.suppressed.Add(1)
			return
		}
		if n := a.suppressed.Swap(0); n > 0 {
			attrs = append(attrs, slog.Int64("suppressed", n))
		}
	}
	a.log.LogAttrs(context.Background(), slog.LevelInfo, "audit", attrs...)
	if a.file != nil {
		a.file.LogAttrs(context.Background(), slog.LevelInfo, "audit", attrs...)
	}
}

// auditSink hands lines to run.
type auditSink struct{ a *auditLog }

func (s auditSink) Write(line []byte) (int, error) {
	s.a.mu.RLock()
	defer s.a.mu.RUnlock()
	if !s.a.closed {
		select {
		case s.a.lines <- append([]byte(nil), line...):
			return len(line), nil
		default: // the disk hangs
		}
	}
	s.a.lost.Add(1)
	return len(line), nil
}

// run writes the file until close.
func (a *auditLog) run(w *auditFile) {
	defer close(a.done)
	defer w.close()
	sick := false
	for line := range a.lines {
		err := w.write(line)
		if err != nil {
			a.lost.Add(1)
		}
		if err != nil && !sick { // once, and not for each line
			a.log.Error("cannot write the audit log: its lines are in this log only", "err", err)
		} else if err == nil && sick {
			a.log.Info("the audit log is written again", "lost", a.lost.Load())
		}
		sick = err != nil
	}
}

// close writes what waits, unless the disk hangs. It may be called again, and on nil.
func (a *auditLog) close() {
	if a == nil {
		return
	}
	a.mu.Lock()
	if !a.closed && a.lines != nil {
		close(a.lines)
	}
	a.closed = true
	a.mu.Unlock()
	select {
	case <-a.done:
	case <-time.After(auditClose):
	}
}

// auditFile is a file of lines with a bound.
type auditFile struct {
	path string
	max  int64
	f    *os.File
	size int64
	torn bool // the last line was written in part
}

func (w *auditFile) open() error {
	f, err := os.OpenFile(w.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	w.f, w.size = f, st.Size()
	return nil
}

// write appends a line, to a new file if this one is full. After an error the file is opened anew: it may have been a disk
// that is back.
func (w *auditFile) write(line []byte) error {
	if w.f != nil && w.size > 0 && w.size+int64(len(line)) > w.max {
		w.close()
		if err := os.Rename(w.path, w.path+".1"); err != nil {
			return err
		}
		w.torn = false
	}
	if w.f == nil {
		if err := w.open(); err != nil {
			return err
		}
	}
	if w.torn {
		line = append([]byte("\n"), line...)
	}
	n, err := w.f.Write(line)
	w.size += int64(n)
	if w.torn = err != nil && (n > 0 || w.torn); err != nil {
		w.close()
	}
	return err
}

func (w *auditFile) close() {
	if w.f != nil {
		w.f.Close()
		w.f = nil
	}
}
