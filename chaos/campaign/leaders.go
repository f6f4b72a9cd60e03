//go:build linux

package campaign

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/abacusdb/abacus/chaos/proc"
)

// moveLeader has a shard led by another of its voters. It fails unless the cluster says so afterwards: that the asked node agrees is no proof.
func (b *bed) moveLeader(ctx context.Context, shard uint32, rng *rand.Rand) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	before, err := b.shard(ctx, shard)
	if err != nil {
		return err
	}
	leader, to := b.c.ByID(before.Leader), successor(before, rng)
	if leader == nil || to == "" {
		return fmt.Errorf("shard %d is led by %q and has no other voter", shard, before.Leader)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, leader.URL(fmt.Sprintf("/v1/shards/%d/leader?node=%s", shard, to)), nil)
	if err != nil {
		return err
	}
	resp, err := b.c.HTTP(3 * time.Second).Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return errors.New(resp.Status)
	}
	return await(ctx, "the leadership has not moved", func() string {
		after, err := b.shard(ctx, shard)
		if err != nil {
			return err.Error()
		}
		if !handedOver(before, after) {
			return fmt.Sprintf("shard %d is led by %s in term %d, and was by %s in term %d", shard, after.Leader, after.Term, before.Leader, before.Term)
		}
		return ""
	})
}

// successor is a voter other than the leader, by chance; "": there is none.
func successor(sh proc.ShardStatus, rng *rand.Rand) string {
	var list []string
	for _, r := range sh.Replicas {
		if r.Voter && r.Node != sh.Leader {
			list = append(list, r.Node)
		}
	}
	if len(list) == 0 {
		return ""
	}
	return list[rng.IntN(len(list))]
}

// handedOver says whether another leads a shard than before. A later term shows that it was elected since, and is not what somebody remembers.
func handedOver(before, after proc.ShardStatus) bool {
	return after.Leader != "" && after.Leader != before.Leader && after.Term > before.Term
}

func (b *bed) shard(ctx context.Context, id uint32) (proc.ShardStatus, error) {
	s, err := b.c.Status(ctx)
	if err != nil {
		return proc.ShardStatus{}, err
	}
	for _, sh := range s.Shards {
		if sh.ID == id {
			return sh, nil
		}
	}
	return proc.ShardStatus{}, fmt.Errorf("nobody knows shard %d", id)
}
