package sim

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
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
	ring   [journalLines]line
	next   int
}

type line struct {
	r    slog.Record
	with []slog.Attr
}

// The messages that are counted.
const (
	saysLeading  = "leading"
	saysSnapshot = "snapshot taken"
	saysInstall  = "restored snapshot"
)

func newJournal() *journal {
	return &journal{journalState: &journalState{counts: map[string]int{}}}
}

func (j *journal) Enabled(context.Context, slog.Level) bool { return true }

func (j *journal) Handle(_ context.Context, r slog.Record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.counts[r.Message]++
	j.ring[j.next%journalLines] = line{r.Clone(), j.with}
	j.next++
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

// text is the last lines, oldest first, with virtual times.
func (j *journal) text() []byte {
	j.mu.Lock()
	defer j.mu.Unlock()
	var b bytes.Buffer
	h := slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug})
	for i := max(0, j.next-journalLines); i < j.next; i++ {
		l := j.ring[i%journalLines]
		if err := h.WithAttrs(l.with).Handle(context.Background(), l.r); err != nil {
			panic(err) // a buffer takes everything
		}
	}
	return b.Bytes()
}
