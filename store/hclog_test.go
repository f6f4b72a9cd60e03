package store

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// What raft warns of while a healthy cluster starts is no warning of ours; the
// same words about a leader or a log that was there are.
func TestOrdinaryWarnings(t *testing.T) {
	for _, tc := range []struct {
		msg  string
		args []any
		warn bool
	}{
		{"heartbeat timeout reached, starting election", []any{"last-leader-addr", raft.ServerAddress(""), "last-leader-id", raft.ServerID("")}, false},
		{"heartbeat timeout reached, starting election", []any{"last-leader-addr", raft.ServerAddress("n1"), "last-leader-id", raft.ServerID("n1.1")}, true},
		{"failed to get previous log", []any{"previous-index", 6, "last-index", 0, "error", raft.ErrLogNotFound}, false},
		{"failed to get previous log", []any{"error", errors.New("the disk")}, true},
		{"appendEntries rejected, sending older logs", nil, false},
		{"no known peers, aborting election", nil, false},
		{"failed to heartbeat to", []any{"peer", "n2.2"}, true},
	} {
		var out bytes.Buffer
		newRaftLog(slog.New(slog.NewTextHandler(&out, nil))).Warn(tc.msg, tc.args...)
		if got := strings.Contains(out.String(), "level=WARN"); got != tc.warn {
			t.Errorf("%s %v is logged as %q", tc.msg, tc.args, out.String())
		}
	}
}
