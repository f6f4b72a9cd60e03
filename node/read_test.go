package node

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/node/front"
	"github.com/abacusdb/abacus/sharding"
)

// keyLedBy finds a key whose shard a node leads.
func keyLedBy(t *testing.T, n *Node, leader string) (key string, slot sharding.Slot, shard sharding.ShardID) {
	t.Helper()
	for i := range 1000 {
		key = fmt.Sprint("key", i)
		if slot, shard = n.Router().Locate([]byte(key)); n.Leader(shard) == leader {
			return key, slot, shard
		}
	}
	t.Fatalf("%s leads nothing", leader)
	return "", 0, 0
}

// A node that follows serves linearizable reads from its own replica, on the
// cluster port after READONLY, and never one that misses an acknowledged write. Stale
// reads are answered where they are asked.
func TestReadsOnFollower(t *testing.T) {
	t.Parallel()
	nodes, _ := three(t)
	untilBalanced(t, nodes[0])
	key, slot, shard := keyLedBy(t, nodes[0], "n2")
	put(t, nodes[1], key, "0")
	st := nodes[0].host.get(shard)
	get := []command.Command{{Op: command.OpGet, Slot: slot, Keys: [][]byte{[]byte(key)}}}
	here := 0
	var others sync.WaitGroup
	for i := range 100 {
		want := fmt.Sprint(i)
		put(t, nodes[1], key, want)
		next := command.Command{Op: command.OpSet, Slot: slot, Keys: [][]byte{[]byte("{" + key + "}")}, Values: [][]byte{[]byte(want)}}
		others.Go(func() { nodes[1].Exec(t.Context(), shard, []command.Command{next}) }) // the follower hears of the commit with the next entry
		if res, _, err := nodes[0].readFollowing(t.Context(), st, get); err == nil {
			if here++; string(res[0].Bytes) != want {
				t.Fatalf("a follower read %q after %s was acknowledged", res[0].Bytes, want)
			}
		}
		res, _, err := nodes[0].read(t.Context(), shard, get, front.Reading{Local: true})
		if err != nil || string(res[0].Bytes) != want {
			t.Fatalf("read %v, %v after %s was acknowledged", res, err, want)
		}
		if v, err := nodes[0].view(t.Context(), st, front.Reading{Local: true}); err == nil {
			if got, _ := v.Get(slot, []byte(key)); string(got) != want {
				t.Errorf("a view of a follower has %q after %s was acknowledged", got, want)
			}
			v.Close()
		}
	}
	if here == 0 {
		t.Error("the follower answered none of 100 reads by itself")
	}
	t.Logf("%d of 100 reads answered by the follower", here)
	others.Wait()
	until(t, "the follower to have all", func() error {
		_, _, err := nodes[0].readFollowing(t.Context(), st, get)
		return err
	})

	conn, err := net.Dial("tcp", nodes[0].Addrs().Cluster)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprintf(conn, "GET %s\r\nREADONLY\r\nGET %s\r\nREADWRITE\r\nCLIENT CONSISTENCY stale 60000\r\nGET %s\r\nRESET\r\nGET %s\r\n", key, key, key, key)
	r := bufio.NewReader(conn)
	for _, want := range []string{"-MOVED", "+OK", "$2", "99", "+OK", "+OK", "$2", "99", "+RESET", "-MOVED"} {
		line, err := r.ReadString('\n')
		if err != nil || !strings.HasPrefix(line, want) {
			t.Fatalf("reply %q, %v, want %s", line, err, want)
		}
	}
	for query, want := range map[string]int{
		"": 200, "?consistency=linearizable": 200, "?consistency=stale": 200, "?consistency=stale&max-ms=60000": 200, "?consistency=stale&max-ms=1": 200,
		"?consistency=eventual": 400, "?max-ms=5": 400, "?consistency=stale&max-ms=0": 400,
	} {
		resp, err := http.Get("http://" + nodes[0].Addrs().HTTP + "/v1/kv/" + key + query)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want || want == 200 && string(body) != "99" {
			t.Errorf("GET %s: %d %q, want %d", query, resp.StatusCode, body, want)
		}
	}
}
