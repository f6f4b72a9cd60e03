package node

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
)

// httpJSON asks a node and reads what it answers.
func httpJSON(t *testing.T, method, url string, into any) (code int) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && into != nil && resp.StatusCode == http.StatusOK {
		err = json.Unmarshal(body, into)
	}
	if err != nil {
		t.Fatalf("%s %s: %v in %q", method, url, err, body)
	}
	return resp.StatusCode
}

// Replicas at one index tell one hash, and of entries that they all have, too. A state that differs in one value tells another.
func TestReplicaDigests(t *testing.T) {
	t.Parallel()
	nodes, _ := three(t)
	untilBalanced(t, nodes[0])
	key, _, shard := keyLedBy(t, nodes[0], "n2")
	for i := range 20 {
		put(t, nodes[0], key, fmt.Sprint(i))
	}
	url := func(n *Node, query string) string {
		return fmt.Sprintf("http://%s/v1/shards/%d/replica%s", n.Addrs().HTTP, shard, query)
	}
	var before string
	until(t, "one index", func() error {
		var all []replicaDigest
		for _, n := range nodes {
			var d replicaDigest
			if code := httpJSON(t, "GET", url(n, ""), &d); code != 200 {
				t.Fatalf("HTTP %d", code)
			}
			if all = append(all, d); d.Index != all[0].Index {
				return fmt.Errorf("%d and %d", d.Index, all[0].Index)
			}
		}
		seen := map[string]bool{}
		for i, d := range all {
			if d.Hash != all[0].Hash {
				t.Errorf("%s has the state %s at %d, %s has %s", d.Replica, d.Hash, d.Index, all[0].Replica, all[0].Hash)
			}
			if code := httpJSON(t, "GET", url(nodes[i], fmt.Sprintf("?from=%d&to=%d", d.LogFirst, d.Index)), &d); code != 200 || d.LogHash == "" {
				t.Errorf("the log's hash: HTTP %d, %+v", code, d)
			}
			seen[d.LogHash] = true
		}
		if len(seen) != 1 {
			t.Errorf("different logs: %v", seen)
		}
		before = all[0].Hash
		return nil
	})
	put(t, nodes[0], key, "another")
	var d replicaDigest
	if httpJSON(t, "GET", url(nodes[1], ""), &d); d.Hash == before {
		t.Error("another value, the same hash")
	}
	for _, c := range []struct {
		path string
		want int
	}{
		{fmt.Sprintf("/v1/shards/%d/replica?from=1&to=99999999", shard), 404},
		{fmt.Sprintf("/v1/shards/%d/replica?from=x", shard), 400},
		{fmt.Sprintf("/v1/shards/%d/replica?of=1", shard), 400},
		{"/v1/shards/77/replica", 404},
		{"/v1/shards/x/replica", 400},
	} {
		if code := httpJSON(t, "GET", "http://"+nodes[0].Addrs().HTTP+c.path, nil); code != c.want {
			t.Errorf("%s: HTTP %d, want %d", c.path, code, c.want)
		}
	}
}

// A leadership moves where it is asked to.
func TestMoveLeader(t *testing.T) {
	t.Parallel()
	nodes, _ := three(t)
	untilBalanced(t, nodes[0])
	_, _, shard := keyLedBy(t, nodes[0], "n2")
	url := func(n *Node, to string) string {
		return fmt.Sprintf("http://%s/v1/shards/%d/leader?node=%s", n.Addrs().HTTP, shard, to)
	}
	if code := httpJSON(t, "POST", url(nodes[0], "n1"), nil); code/100 == 2 {
		t.Errorf("one that does not lead hands over: HTTP %d", code)
	}
	if code := httpJSON(t, "POST", url(nodes[1], "n9"), nil); code != 404 {
		t.Errorf("to a node that there is not: HTTP %d", code)
	}
	until(t, "it is moved", func() error { // raft gives up one that takes longer than an election
		if code := httpJSON(t, "POST", url(nodes[1], "n3"), nil); code != 200 && nodes[0].Leader(shard) != "n3" {
			return fmt.Errorf("HTTP %d", code)
		}
		return nil
	})
	until(t, "n3 leads", func() error {
		if got := nodes[0].Leader(shard); got != "n3" {
			return fmt.Errorf("%s leads", got)
		}
		return nil
	})
}
