package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// repeatAfter is how often one warning of raft's is let through; it writes a
// line for each heartbeat to a dead peer.
const repeatAfter = 10 * time.Second

// raftLog carries raft's log into ours: what raft calls an error is, for the
// node, a warning at most, and its info is our debug.
type raftLog struct {
	log  *slog.Logger
	args []any
	// recent is shared with all loggers derived from one.
	recent *recentLines
}

type recentLines struct {
	mu   sync.Mutex
	last map[string]time.Time // by message; raft has some dozens
}

func newRaftLog(l *slog.Logger) *raftLog {
	return &raftLog{log: l, recent: &recentLines{last: make(map[string]time.Time)}}
}

// first says whether the message was not let through lately.
func (r *recentLines) first(msg string) bool {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if t, ok := r.last[msg]; ok && now.Sub(t) < repeatAfter {
		return false
	}
	r.last[msg] = now
	return true
}

// ordinary says that a warning of raft's belongs to a healthy life: the first
// election after a start, and a new or returning replica that is behind. Should
// raft word one otherwise some day, it is a warning again.
func ordinary(msg string, args []any) bool {
	arg := func(name string) any {
		for i := 0; i+1 < len(args); i += 2 {
			if args[i] == name {
				return args[i+1]
			}
		}
		return nil
	}
	switch msg {
	case "appendEntries rejected, sending older logs", "no known peers, aborting election":
		return true
	case "failed to get previous log":
		err, _ := arg("error").(error)
		return errors.Is(err, raft.ErrLogNotFound)
	case "heartbeat timeout reached, starting election":
		return arg("last-leader-id") == raft.ServerID("") // it has had none yet
	}
	return false
}

func (l *raftLog) Log(level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	if level >= hclog.Warn && level != hclog.Off && !ordinary(msg, args) && l.recent.first(msg) {
		to = slog.LevelWarn
	}
	ctx := context.Background()
	if !l.log.Enabled(ctx, to) {
		return
	}
	attrs := make([]any, 0, len(l.args)+len(args)+2)
	attrs = append(append(attrs, l.args...), args...)
	for i, a := range attrs {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			attrs[i] = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
	}
	l.log.Log(ctx, to, "raft", append([]any{"event", msg}, attrs...)...)
}

func (l *raftLog) Trace(string, ...any)          {}
func (l *raftLog) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *raftLog) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *raftLog) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *raftLog) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l *raftLog) IsTrace() bool { return false }
func (l *raftLog) IsDebug() bool { return l.log.Enabled(context.Background(), slog.LevelDebug) }
func (l *raftLog) IsInfo() bool  { return l.IsDebug() }
func (l *raftLog) IsWarn() bool  { return true }
func (l *raftLog) IsError() bool { return true }

func (l *raftLog) ImpliedArgs() []any { return l.args }
func (l *raftLog) With(args ...any) hclog.Logger {
	all := append(append([]any{}, l.args...), args...)
	return &raftLog{log: l.log, args: all, recent: l.recent}
}
func (l *raftLog) Name() string                   { return "raft" }
func (l *raftLog) Named(string) hclog.Logger      { return l }
func (l *raftLog) ResetNamed(string) hclog.Logger { return l }
func (l *raftLog) SetLevel(hclog.Level)           {}
func (l *raftLog) GetLevel() hclog.Level          { return hclog.Debug }
func (l *raftLog) StandardLogger(o *hclog.StandardLoggerOptions) *log.Logger {
	return log.New(l.StandardWriter(o), "", 0)
}
func (l *raftLog) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return io.Discard }
