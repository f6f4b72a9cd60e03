package main

import (
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/abacusdb/abacus/bench/peers/internal/dataset"
	"github.com/abacusdb/abacus/bench/peers/internal/measure"
)

// computeBench is the physical floor for map/sum jobs: Go over a bbolt cursor.
func computeBench(args []string) {
	fs := flag.NewFlagSet("compute", flag.ExitOnError)
	dir := fs.String("dir", ".benchtmp", "directory on the disk under test")
	keys := fs.Int("keys", 1_000_000, "keys")
	runs := fs.Int("runs", 3, "runs")
	fs.Parse(args)
	*dir = measure.MustDir(*dir)
	defer os.RemoveAll(*dir)
	p := filepath.Join(*dir, "compute.db")
	db, err := bolt.Open(p, 0o644, &bolt.Options{NoSync: true, NoFreelistSync: true, FreelistType: bolt.FreelistMapType})
	measure.Check(err)
	defer os.Remove(p)
	t := time.Now()
	for i := 0; i < *keys; {
		measure.Check(db.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(bkt)
			if err != nil {
				return err
			}
			b.FillPercent = 0.9
			for j := 0; j < 50000 && i < *keys; j++ {
				if err := b.Put([]byte(dataset.Key(i)), dataset.Record(i)); err != nil {
					return err
				}
				i++
			}
			return nil
		}))
	}
	fmt.Printf("compute: loaded %d records in key order in %s\n", *keys, time.Since(t).Round(time.Millisecond))

	type visit func(v []byte)
	for _, c := range []struct {
		name string
		mk   func() (visit, func() int64)
	}{
		{"count", func() (visit, func() int64) { n := int64(0); return func([]byte) { n++ }, func() int64 { return n } }},
		{"sum of a binary int64 at offset 0", func() (visit, func() int64) {
			n := int64(0)
			return func(v []byte) { n += int64(binary.LittleEndian.Uint64(v)) }, func() int64 { return n }
		}},
		{"sum of a JSON field found by scanning", func() (visit, func() int64) {
			n := int64(0)
			return func(v []byte) { n += dataset.ScanN(v) }, func() int64 { return n }
		}},
		{"sum of a JSON field, encoding/json struct", func() (visit, func() int64) {
			n := int64(0)
			return func(v []byte) { n += dataset.DecodeN(v) }, func() int64 { return n }
		}},
		{"group-by (100 groups) sum, encoding/json struct", func() (visit, func() int64) {
			m := map[string]int64{}
			return func(v []byte) { var r dataset.Row; measure.Check(json.Unmarshal(v, &r)); m[r.Grp] += r.N }, func() int64 { return int64(len(m)) }
		}},
	} {
		for _, threads := range []int{1, 2} {
			var v []float64
			var ans int64
			for r := 0; r < *runs; r++ {
				t := time.Now()
				var wg sync.WaitGroup
				var mu sync.Mutex
				ans = 0
				for th := 0; th < threads; th++ {
					wg.Go(func() {
						f, res := c.mk()
						from := []byte(dataset.Key(*keys * th / threads))
						to := dataset.Key(*keys * (th + 1) / threads)
						db.View(func(tx *bolt.Tx) error {
							cur := tx.Bucket(bkt).Cursor()
							for k, v := cur.Seek(from); k != nil && string(k) < to; k, v = cur.Next() {
								f(v)
							}
							return nil
						})
						mu.Lock()
						ans += res()
						mu.Unlock()
					})
				}
				wg.Wait()
				v = append(v, time.Since(t).Seconds())
			}
			m, lo, hi := measure.Median(v)
			fmt.Printf("compute Go over bbolt, %d thread(s): %-48s %7.3f s [%.3f..%.3f] %6.1f ns/record, answer %d\n", threads, c.name, m, lo, hi, m*1e9/float64(*keys), ans)
		}
	}
	db.Close()
}
