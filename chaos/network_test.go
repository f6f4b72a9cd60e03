//go:build system

package chaos_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/lan"
	"github.com/abacusdb/abacus/chaos/load"
	"github.com/abacusdb/abacus/chaos/proc"
)

// TestSystemNetwork breaks the network between five nodes in the shapes that bugs were found with, under load. Each
// shard has a replica everywhere, and in each shape three of them see each other or one that sees the others, so writes must go
// on; afterwards all replicas are well again, and in the end everything acknowledged is read back.
func TestSystemNetwork(t *testing.T) {
	const nodes = 5
	net, err := lan.Create(nodes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := net.Close(); err != nil {
			t.Error(err)
		}
	})
	c := startCluster(t, proc.Config{Nodes: nodes, Replicas: nodes, Shards: 8, Args: []string{"--insecure"}, Host: func(n int) proc.Host {
		return proc.Host{Addr: net.Addr(n), Enter: net.Enter(n)}
	}})
	l := load.Start(open(t, c), load.Config{Prefix: "network/", Writers: 8})
	t.Cleanup(l.Stop)
	progress(t, l, "on a network that is whole", 300, 30*time.Second)

	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	order := rng.Perm(nodes)
	for i := range order {
		order[i]++
	}
	one := order[0]
	for _, shape := range []struct {
		name string
		cut  []lan.Link
	}{
		{fmt.Sprintf("split %v from %v", order[:2], order[2:]), lan.Split(order[:2], order[2:])},
		{fmt.Sprintf("n%d alone", one), lan.Alone(one, nodes)},
		{fmt.Sprintf("n%d deaf", one), lan.Deaf(one, nodes)},
		{fmt.Sprintf("n%d mute", one), lan.Mute(one, nodes)},
		{fmt.Sprintf("ring %v", order), lan.Ring(order, 1)},
		{fmt.Sprintf("bridge %v", order), lan.Bridge(order)},
		{fmt.Sprintf("no link between n%d and n%d", order[1], order[3]), lan.Both(order[1], order[3])},
	} {
		before, err := net.Dropped()
		if err != nil {
			t.Fatal(err)
		}
		if err := net.Cut(shape.cut...); err != nil {
			t.Fatal(err)
		}
		l.Tally(true)
		// Long enough for elections: what was under way when it broke is not what is looked at.
		time.Sleep(3 * time.Second)
		progress(t, l, shape.name, 200, 30*time.Second)
		after, err := net.Dropped()
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range shape.cut {
			if after[link] == before[link] {
				t.Errorf("%s: nothing was dropped from n%d to n%d", shape.name, link.From, link.To)
			}
		}
		slowest := l.Tally(false).Slowest
		healed := time.Now()
		if err := net.Heal(); err != nil {
			t.Fatal(err)
		}
		waitReady(t, c)
		t.Logf("%s: a writer waited at most %v; well %v after it was healed", shape.name, slowest.Round(time.Millisecond), time.Since(healed).Round(time.Millisecond))
		progress(t, l, "healed after "+shape.name, 200, 30*time.Second)
	}
	check(t, c, l)
}
