package front

import (
	"strings"
	"testing"
)

// Whoever waits for a comparison of replicas looks again and again: that makes no lines in the audit log. To begin one does.
func TestLooksAreNotAudited(t *testing.T) {
	c := newCluster(t, 1, 1)
	_, addr := serve(t, Config{}, c.node("n1"))
	cl := dial(t, addr)
	for _, words := range []string{"shard check 1", "shard checked 1", "SHARD CHECKED 1", "shard"} {
		cl.one("ABACUS.ADMIN " + words)
	}
	events := strings.Join(c.takeEvents(), "\n")
	if strings.Count(events, "admin") != 2 || !strings.Contains(events, "admin [shard check 1]") || !strings.Contains(events, "admin [shard]") {
		t.Errorf("audited:\n%s", events)
	}
}
