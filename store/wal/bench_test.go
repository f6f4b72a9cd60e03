package wal

import (
	"fmt"
	"sync"
	"testing"
)

// BenchmarkStore appends entries of 300 bytes to 1, 8 and 64 logs at once, each waiting for its own, on the disk of
// the temporary directory; one that stood still is copied forward beside them. syncs/op says how many
// shared a commit.
func BenchmarkStore(b *testing.B) {
	for _, appenders := range []int{1, 8, 64} {
		b.Run(fmt.Sprint(appenders), func(b *testing.B) {
			w := open(b, Dir(b.TempDir()), 4<<20)
			must(b, w.Replica(Name{9999, "idle"}).StoreLogs(entries(1, 1, 1000, 300)))
			before := w.Stats()
			var running sync.WaitGroup
			b.ResetTimer()
			for k := range appenders {
				running.Go(func() {
					l := w.Replica(Name{uint32(k), "a"})
					for i := uint64(1); i <= uint64(b.N/appenders)+1; i++ {
						if err := l.StoreLogs(entries(1, i, i, 300)); err != nil {
							b.Error(err)
							return
						}
						if i%1000 == 0 {
							if err := l.DeleteRange(1, i-100); err != nil {
								b.Error(err)
								return
							}
						}
					}
				})
			}
			running.Wait()
			b.StopTimer()
			s := w.Stats()
			b.ReportMetric(float64(s.Commits-before.Commits)/float64(b.N), "syncs/op")
			b.ReportMetric(float64(s.WrittenBytes-before.WrittenBytes)/float64(b.N), "B-written/op")
		})
	}
}
