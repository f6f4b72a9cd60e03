package store

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/transport/transporttest"
)

// BenchmarkRead reads from the leader of three replicas, beside the same read as a
// command in the log: messages per second are the network's, reads per message the batching's.
func BenchmarkRead(b *testing.B) {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	net, tap := transporttest.NewNetwork(), newTap()
	var stores []*Store
	for i := range 3 {
		id := fmt.Sprintf("n%d", i+1)
		tr := tapped{net.Join(id), tap}
		defer tr.Close()
		cfg := Config{Shard: 3, Replica: id + ".1", Node: id, Dir: b.TempDir(), Net: NewNet(tr, 0, log), Log: log}
		defer cfg.Net.Close()
		if i == 0 {
			cfg.Bootstrap = identity()
		}
		s, err := Open(cfg)
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close(b.Context())
		if stores = append(stores, s); i == 0 {
			for !s.IsLeader() {
				time.Sleep(time.Millisecond)
			}
			continue
		}
		if err := stores[0].AddLearner(b.Context(), id+".1", id); err != nil {
			b.Fatal(err)
		}
		for stores[0].Promote(b.Context(), id+".1", id) != nil {
			time.Sleep(10 * time.Millisecond)
		}
	}
	if _, _, err := stores[0].Propose(b.Context(), []command.Command{set("x", "a value of some bytes")}); err != nil {
		b.Fatal(err)
	}
	for _, clients := range []int{1, 64} {
		for name, read := range map[string]func(context.Context, []command.Command) ([]command.Result, uint64, error){"barrier": stores[0].Read, "log": stores[0].Propose} {
			b.Run(fmt.Sprintf("by=%s/clients=%d", name, clients), func(b *testing.B) {
				tap.count()
				b.SetParallelism(clients)
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if _, _, err := read(b.Context(), []command.Command{get("x")}); err != nil {
							b.Fatal(err)
						}
					}
				})
				if n := tap.count(); n > 0 {
					b.ReportMetric(float64(b.N)/float64(n), "reads/message")
				}
			})
		}
	}
}

// BenchmarkPropose writes to one replica from many clients: entries per second
// are the disk's, writes per second the batching's.
func BenchmarkPropose(b *testing.B) {
	for _, clients := range []int{1, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			log := slog.New(slog.NewTextHandler(io.Discard, nil))
			tr := transporttest.NewNetwork().Join("n1")
			defer tr.Close()
			net := NewNet(tr, 0, log)
			defer net.Close()
			s, err := Open(Config{
				Shard: 3, Replica: "n1.1", Node: "n1", Dir: b.TempDir(), Net: net, Bootstrap: identity(), Timing: quick(), Log: log,
			})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close(b.Context())
			for !s.IsLeader() {
				time.Sleep(time.Millisecond)
			}
			before := s.Status().LastIndex
			var n atomic.Int64
			b.SetParallelism(clients)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, _, err := s.Propose(b.Context(), []command.Command{set(fmt.Sprint(n.Add(1)%10000), "a value of some bytes")}); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.StopTimer()
			b.ReportMetric(float64(b.N)/float64(s.Status().LastIndex-before), "writes/entry")
		})
	}
}
