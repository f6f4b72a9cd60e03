package sim

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// journal keeps the nodes' last log lines for a failure's report, and counts
// them by their messages: what the product says that it did.
type journal struct {
	*journalState
	with []slog.Attr
}

const journalLines = 4000

type journalState struct {
	mu     sync.Mutex
	counts map[string]int
	frozen time.Duration // longest that was told of
	// What matters is kept longer than what Raft tells of each election.
	info, debug ring
}

type line struct {
	r    slog.Record
	with []slog.Attr
}

// ring is the last lines.
type ring struct {
	lines [journalLines]line
	next  int
}

func (r *ring) add(l line) {
	r.lines[r.next%journalLines] = l
	r.next++
}

func (r *ring) list() (list []line) {
	for i := max(0, r.next-journalLines); i < r.next; i++ {
		list = append(list, r.lines[i%journalLines])
	}
	return list
}

// The messages that are counted.
const (
	saysLeading  = "leading"
	saysSnapshot = "snapshot taken"
	saysInstall  = "restored snapshot"
	saysMoved    = "replica moved"
	// These tell how long nobody served the slots, in saysFrozen, and that they stayed where they were.
	saysSlotsMoved = "slots moved"
	saysSlotsStay  = "slots stay"
	saysFrozen     = "frozen"
)

func newJournal() *journal {
	return &journal{journalState: &journalState{counts: map[string]int{}}}
}

func (j *journal) Enabled(context.Context, slog.Level) bool { return true }

func (j *journal) Handle(_ context.Context, r slog.Record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.counts[r.Message]++
	if r.Message == saysSlotsMoved {
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == saysFrozen {
				j.frozen = max(j.frozen, a.Value.Duration())
			}
			return true
		})
	}
	if l := (line{r.Clone(), j.with}); r.Level >= slog.LevelInfo {
		j.info.add(l)
	} else {
		j.debug.add(l)
	}
	return nil
}

func (j *journal) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &journal{j.journalState, append(j.with[:len(j.with):len(j.with)], attrs...)}
}

func (j *journal) WithGroup(string) slog.Handler { return j } // the product has none

func (j *journal) count(message string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.counts[message]
}

func (j *journal) longestFreeze() time.Duration {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.frozen
}

// text is the last lines, oldest first, with virtual times.
func (j *journal) text() []byte {
	j.mu.Lock()
	defer j.mu.Unlock()
	var b bytes.Buffer
	h := slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug})
	lines := append(j.info.list(), j.debug.list()...)
	slices.SortStableFunc(lines, func(a, b line) int { return a.r.Time.Compare(b.r.Time) })
	for _, l := range lines {
		if err := h.WithAttrs(l.with).Handle(context.Background(), l.r); err != nil {
			panic(err) // a buffer takes everything
		}
	}
	return b.Bytes()
}
