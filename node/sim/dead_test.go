package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/store"
)

// TestDeadNode shows a node that dies in a cluster that is told to do something about that: nothing happens before the time, then its replicas are
// elsewhere while every write is served, and when it comes back it does no harm and may have replicas again. Cut off with half of the nodes, nobody is taken for
// dead. All in virtual time.
func TestDeadNode(t *testing.T) {
	const after = 40 * time.Second
	dir := t.TempDir()
	var err error
	left := bubble(t, func() {
		c := newCluster(1, Options{Nodes: 6, Shards: 3, Replicas: 3, Snapshots: store.Snapshots{Entries: 40, Trailing: 16}, CheckpointBytes: 4096}, dir)
		err = errors.Join(deadNode(c, after), c.stop(), c.err())
	})
	if err != nil || left != "" {
		t.Fatalf("%v\n%s", err, left)
	}
}

func deadNode(c *cluster, after time.Duration) error {
	if err := c.open(); err != nil {
		return err
	}
	if err := c.say(0, "node", "dead-after", after.String()); err != nil {
		return err
	}
	written := 0
	write := func() error {
		for range 3 * len(c.newest().Shards) {
			if err := c.put(0, written); err != nil {
				return fmt.Errorf("write %d: %w", written, err)
			}
			written++
		}
		return nil
	}
	if err := write(); err != nil {
		return err
	}
	// n2 dies. It has a replica of everything, being one of the first three.
	dead := c.members[1]
	died := time.Now()
	if err := c.crash([]*member{dead}); err != nil {
		return err
	}
	if err := until("writes go on without it", 20*time.Second, write); err != nil {
		return err
	}
	time.Sleep(time.Until(died.Add(after - time.Second)))
	if n, _ := c.newest().Node(dead.id); n.Dead {
		return errors.New("it is taken for dead before the time")
	}
	if err := until("it is taken for dead", 10*time.Second, func() error {
		if n, _ := c.newest().Node(dead.id); !n.Dead {
			return errors.New("it is not")
		}
		return nil
	}); err != nil {
		return err
	}
	if err := until("its replicas are elsewhere", time.Minute, func() error { return errors.Join(write(), c.gone(dead.id)) }); err != nil {
		return err
	}
	// It comes back, with what it had on its disk.
	epoch := c.newest().Epoch
	if err := dead.start(); err != nil {
		return err
	}
	if err := until("it is back, and has dropped what it had", time.Minute, func() error {
		if n, _ := c.newest().Node(dead.id); n.Dead {
			return errors.New("it is still taken for dead")
		}
		for _, sh := range c.newest().Shards {
			if c.replica(dead.id, sh.ID) != nil {
				return fmt.Errorf("it holds shard %d", sh.ID)
			}
		}
		return errors.Join(c.complete(), write())
	}); err != nil {
		return err
	}
	if e := c.newest().Epoch; e != epoch+1 {
		return fmt.Errorf("epoch %d after %d: more was changed than that the mark went", e, epoch)
	}
	for i := range written {
		if err := c.get(1, i); err != nil {
			return err
		}
	}
	// The leader of shard 0 and a node that it has no shard with do not hear each other. Others hear both.
	l, _ := c.leader(0)
	for _, m := range c.members {
		if _, has := c.newest().Shards[0].On(m.id); !has && m != dead {
			c.net.CutBoth(l.id, m.id)
		}
	}
	epoch = c.newest().Epoch
	time.Sleep(3 * after)
	if now, _ := c.leader(0); now != l {
		return errors.New("another leads shard 0 by now: this shows nothing")
	}
	if e := c.newest().Epoch; e != epoch {
		return fmt.Errorf("the map was changed for a link that is broken: %+v", c.newest().Nodes)
	}
	c.net.Heal()
	// Half of the nodes, with two of the three that have shard 0 and so its leader, are cut off from the other half. They are as many as a shard wants
	// replicas, and could have all.
	var here, there []string
	for _, r := range c.newest().Shards[0].Replicas[:2] {
		here = append(here, r.Node)
	}
	for _, m := range c.members {
		if _, has := c.newest().Shards[0].On(m.id); !has && len(here) < 3 {
			here = append(here, m.id)
		} else if !slices.Contains(here, m.id) {
			there = append(there, m.id)
		}
	}
	epoch = c.newest().Epoch
	c.net.Partition(here, there)
	time.Sleep(3 * after)
	if _, st := c.leader(0); st == nil {
		return errors.New("nobody led shard 0: this shows nothing")
	}
	if e := c.newest().Epoch; e != epoch {
		return fmt.Errorf("the map was changed by who heard half of the nodes: %+v", c.newest().Nodes)
	}
	c.net.Heal()
	if err := until("all is well again", time.Minute, c.complete); err != nil {
		return err
	}
	return nil
}

// say is an administrator's word to a member.
func (c *cluster) say(i int, words ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := c.members[i].life.Load().node.Admin(ctx, words)
	return err
}

func key(i int) []byte { return []byte(fmt.Sprintf("key%d", i)) }

// put writes the key of a number through a member.
func (c *cluster) put(i, number int) error {
	n := c.members[i].life.Load().node
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	slot, shard := n.Router().Locate(key(number))
	_, err := n.Exec(ctx, shard, []command.Command{{Op: command.OpSet, Keys: [][]byte{key(number)}, Slot: slot, Values: [][]byte{key(number)}}})
	return err
}

// get reads it back.
func (c *cluster) get(i, number int) error {
	n := c.members[i].life.Load().node
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	slot, shard := n.Router().Locate(key(number))
	res, err := n.Exec(ctx, shard, []command.Command{{Op: command.OpGet, Keys: [][]byte{key(number)}, Slot: slot}})
	if err == nil && string(res[0].Bytes) != string(key(number)) {
		err = fmt.Errorf("%q", res[0].Bytes)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", key(number), err)
	}
	return nil
}

// gone says what is left of a node's replicas, in the map or in a group, and which shard has fewer than it should.
func (c *cluster) gone(id string) error {
	for _, sh := range c.newest().Shards {
		_, st := c.leader(sh.ID)
		if _, has := sh.On(id); has || sh.Move != nil || st == nil {
			return fmt.Errorf("shard %d: %v, move %v", sh.ID, sh.Replicas, sh.Move)
		}
		members := st.Status().Members
		if len(members) != 3 || slices.ContainsFunc(members, func(m store.Member) bool { return m.Node == id || !m.Voter }) {
			return fmt.Errorf("shard %d: members %+v", sh.ID, members)
		}
	}
	return nil
}
