package store

import (
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/transport/transporttest"
)

// BenchmarkPropose writes to one replica from many clients: entries per second
// are the disk's, writes per second the batching's.
func BenchmarkPropose(b *testing.B) {
	for _, clients := range []int{1, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			log := slog.New(slog.NewTextHandler(io.Discard, nil))
			tr := transporttest.NewNetwork().Join("n1")
			defer tr.Close()
			s, err := Open(Config{
				Shard: 3, Replica: "n1.1", Node: "n1", Dir: b.TempDir(), Net: NewNet(tr, log), Bootstrap: identity(), Timing: quick(), Log: log,
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
