//go:build linux

package campaign

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/abacusdb/abacus/chaos/proc"
)

// digest is what a node says of its replica of a shard, see /v1/shards/{id}/replica.
type digest struct {
	Replica  string `json:"replica"`
	Index    uint64 `json:"index"`
	Hash     string `json:"hash"`
	LogFirst uint64 `json:"log_first"`
	LogLast  uint64 `json:"log_last"`
	LogHash  string `json:"log_hash"`
	Slots    string `json:"slots"`
	node     *proc.Node
}

func (b *bed) digest(ctx context.Context, n *proc.Node, shard uint32, query string) (d digest, err error) {
	err = b.getJSON(ctx, n.URL(fmt.Sprintf("/v1/shards/%d/replica%s", shard, query)), &d)
	d.node = n
	return d, err
}

// compare has all replicas of a shard tell their state at one index, and their logs as far as they overlap.
func (c *campaign) compare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	status, err := c.bed.c.Status(ctx)
	if err != nil {
		return err
	}
	for _, sh := range status.Shards {
		c.shards++
		for shard := sh.ID; ; {
			again := c.compareShard(ctx, shard)
			if again == "" {
				break
			}
			// A purge of keys whose time is over is an entry, too.
			if !wait(ctx, 100*time.Millisecond) {
				return fmt.Errorf("replicas of shard %d do not come to one index: %s", shard, again)
			}
		}
	}
	return c.compareSlots(ctx)
}

// compareShard says why it is to be done again, "" if it is done.
func (c *campaign) compareShard(ctx context.Context, shard uint32) (again string) {
	status, err := c.bed.c.Status(ctx)
	if err != nil {
		return err.Error()
	}
	var all []digest
	for _, sh := range status.Shards {
		if sh.ID != shard {
			continue
		}
		for _, r := range sh.Replicas {
			d, err := c.bed.digest(ctx, c.bed.c.ByID(r.Node), shard, "")
			if err != nil {
				return err.Error()
			}
			all = append(all, d)
		}
	}
	if len(all) != c.cfg.Replicas {
		return fmt.Sprintf("%d replicas", len(all))
	}
	from, to := uint64(1), all[0].Index
	for _, d := range all {
		if d.Index != all[0].Index {
			return fmt.Sprintf("%s is at %d, %s at %d", all[0].Replica, all[0].Index, d.Replica, d.Index)
		}
		if d.Hash != all[0].Hash {
			c.findings.Add("shard %d: replicas %s and %s hold different states at index %d", shard, all[0].Replica, d.Replica, d.Index)
		}
		from, to = max(from, d.LogFirst), min(to, d.LogLast)
	}
	if from > to {
		return "" // one has just cut its log
	}
	query := fmt.Sprintf("?from=%d&to=%d", from, to)
	first := ""
	for _, d := range all {
		d, err := c.bed.digest(ctx, d.node, shard, query)
		if err != nil {
			return err.Error() // it has cut its log meanwhile
		}
		if first == "" {
			first = d.LogHash
		}
		if d.LogHash != first {
			c.findings.Add("shard %d: the logs of %s and %s differ between the entries %d and %d", shard, all[0].Replica, d.Replica, from, to)
		}
	}
	c.compared++
	return ""
}

// sound waits until all nodes run, every shard has all its voters, none of them behind, and nobody reports a problem.
func (b *bed) sound(ctx context.Context) error {
	return await(ctx, "the cluster is not whole", func() string { return b.unsound(ctx) })
}

// await looks again and again until there is nothing that speaks against it.
func await(ctx context.Context, what string, against func() string) error {
	for {
		why := against()
		if why == "" {
			return nil
		}
		if !wait(ctx, 200*time.Millisecond) {
			return fmt.Errorf("%s: %s", what, why)
		}
	}
}

func (b *bed) unsound(ctx context.Context) string {
	for _, n := range b.c.Nodes() {
		if !n.Running() {
			return n.ID() + " does not run"
		}
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		s, err := n.Status(ctx)
		cancel()
		if err != nil {
			return err.Error()
		}
		if len(s.Problems) > 0 {
			return fmt.Sprintf("%s says: %s", n.ID(), strings.Join(s.Problems, "; "))
		}
		if why := busy(s); why != "" {
			return fmt.Sprintf("%s says: %s", n.ID(), why)
		}
		for _, sh := range s.Shards {
			voters := 0
			for _, r := range sh.Replicas {
				if r.Voter && (r.State == "leader" || r.State == "follower") && r.Lag < 1000 {
					voters++
				}
			}
			if sh.Leader == "" || voters < b.c.Replicas() {
				return fmt.Sprintf("%s says that shard %d is led by %q and has %d voters that keep up: %s", n.ID(), sh.ID, sh.Leader, voters, sh.Problem)
			}
		}
	}
	return ""
}

// whole has every replica of a node read all of its state: what is damaged in it is found now.
func (b *bed) whole(ctx context.Context, n int) error {
	return await(ctx, fmt.Sprintf("n%d is not whole again", n), func() string {
		if why := b.unsound(ctx); why != "" {
			return why
		}
		return b.unread(ctx, n)
	})
}

func (b *bed) unread(ctx context.Context, n int) string {
	s, err := b.node(n).Status(ctx)
	if err != nil {
		return err.Error()
	}
	for _, sh := range s.Shards {
		for _, r := range sh.Replicas {
			if r.Node != b.node(n).ID() {
				continue
			}
			if _, err := b.digest(ctx, b.node(n), sh.ID, ""); err != nil {
				return err.Error()
			}
		}
	}
	return ""
}

// footprint is what a process holds. Descriptors are those of all but the log's files, whose number goes with the log.
type footprint struct {
	Descriptors, Goroutines int
}

func (b *bed) footprints(ctx context.Context) (list []footprint, err error) {
	for _, n := range b.c.Nodes() {
		var f footprint
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", n.Pid()))
		if err != nil {
			return nil, err
		}
		for _, fd := range fds {
			if to, err := os.Readlink(fd); err == nil && !strings.HasSuffix(to, ".wal") {
				f.Descriptors++
			}
		}
		text, err := b.get(ctx, n.URL("/debug/pprof/goroutine?debug=1"))
		if err != nil {
			return nil, err
		}
		if _, err := fmt.Sscanf(string(text), "goroutine profile: total %d", &f.Goroutines); err != nil {
			return nil, fmt.Errorf("goroutines of %s: %.100q", n.ID(), text)
		}
		list = append(list, f)
	}
	return list, nil
}

// grown is how much more than at the beginning a node may hold, when nobody works any more: replicas
// have moved, and what is idle is let go of late.
const grown = 1.5

// backToBase waits until no node holds much more than at the beginning.
func (c *campaign) backToBase(ctx context.Context) error {
	limit := time.Now().Add(30 * time.Second)
	for {
		after, err := c.bed.footprints(ctx)
		if err != nil {
			return err
		}
		why := ""
		for i, f := range after {
			base := c.base[i]
			if more := float64(c.shards) / float64(c.cfg.Shards); more > 1 { // each has its goroutines and files
				base.Descriptors, base.Goroutines = int(more*float64(base.Descriptors)), int(more*float64(base.Goroutines))
			}
			if float64(f.Descriptors) > grown*float64(base.Descriptors)+20 || float64(f.Goroutines) > grown*float64(base.Goroutines)+50 {
				why = fmt.Sprintf("n%d holds %d descriptors and %d goroutines, at the beginning %d and %d", i+1, f.Descriptors, f.Goroutines, base.Descriptors, base.Goroutines)
			}
		}
		if why == "" {
			return nil
		}
		if time.Now().After(limit) || !wait(ctx, 500*time.Millisecond) {
			return errors.New(why)
		}
	}
}

// zombies looks for replicas on disks that the cluster does not know. One that was replaced is removed in its own time.
func (c *campaign) zombies(ctx context.Context) {
	limit := time.Now().Add(30 * time.Second)
	for {
		list, err := c.strangers(ctx)
		if err == nil && len(list) == 0 {
			return
		}
		if time.Now().After(limit) || !wait(ctx, 500*time.Millisecond) {
			if err != nil {
				c.findings.Add("%v", err)
			}
			for _, d := range list {
				c.findings.Add("%s is kept, which no shard has any more", d)
			}
			return
		}
	}
}

func (c *campaign) strangers(ctx context.Context) (list []string, err error) {
	status, err := c.bed.c.Status(ctx)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, sh := range status.Shards {
		for _, r := range sh.Replicas {
			known[r.ID] = true
		}
	}
	for _, n := range c.bed.c.Nodes() {
		dirs, _ := filepath.Glob(filepath.Join(n.DataDir(), "shard-*", "*")) // the pattern is well formed
		for _, d := range dirs {
			if id := filepath.Base(d); !strings.Contains(id, ".damaged") && !known[id] {
				list = append(list, d)
			}
		}
	}
	return list, nil
}

func (b *bed) get(ctx context.Context, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := b.c.HTTP(30 * time.Second).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %.200s", url, resp.Status, body)
	}
	return body, err
}

func (b *bed) getJSON(ctx context.Context, url string, into any) error {
	body, err := b.get(ctx, url)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, into)
}
