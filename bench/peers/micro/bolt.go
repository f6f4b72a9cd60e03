package main

import (
	"encoding/binary"
	"flag"
	"fmt"
	"github.com/abacusdb/abacus/bench/peers/internal/measure"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

var bkt = []byte("kv")

func boltKey(b []byte, i uint64) []byte {
	binary.BigEndian.PutUint64(b[8:16], i)
	return b[:16]
}

// scramble spreads i over the key space so that puts hit random leaves, as hashed keys do.
func scramble(i uint64) uint64 { return i * 0x9E3779B97F4A7C15 }

func boltBench(args []string) {
	fs := flag.NewFlagSet("bolt", flag.ExitOnError)
	dir := fs.String("dir", ".benchtmp", "directory on the disk under test")
	dur := fs.Duration("d", 5*time.Second, "time per run")
	runs := fs.Int("runs", 3, "runs")
	keys := fs.Int("keys", 1_000_000, "keys for the read and scan tests")
	only := fs.String("only", "", "put, read or all")
	fs.Parse(args)
	*dir = measure.MustDir(*dir)
	defer os.RemoveAll(*dir)
	val := make([]byte, 256)
	for i := range val {
		val[i] = byte(rand.Uint32())
	}

	type cfg struct {
		name  string
		opt   bolt.Options
		batch int
		fill  int // keys present before
	}
	arr, hm := bolt.FreelistArrayType, bolt.FreelistMapType
	var cfgs []cfg
	for _, o := range []struct {
		n string
		o bolt.Options
	}{
		{"sync, freelist=array", bolt.Options{FreelistType: arr}},
		{"sync, freelist=map", bolt.Options{FreelistType: hm}},
		{"sync, freelist=map, NoFreelistSync", bolt.Options{FreelistType: hm, NoFreelistSync: true}},
		{"NoSync, freelist=map, NoFreelistSync", bolt.Options{FreelistType: hm, NoFreelistSync: true, NoSync: true}},
	} {
		for _, b := range []int{1, 100, 1000} {
			cfgs = append(cfgs, cfg{o.n, o.o, b, 200_000})
		}
	}
	if *only == "" || *only == "put" {
		for _, c := range cfgs {
			p := filepath.Join(*dir, "put.db")
			os.Remove(p)
			db := fillBolt(p, c.fill, val, c.opt)
			var rates []float64
			var all measure.Hist
			d0, w0 := measure.ReadDisk(), time.Now()
			n := 0
			kb := make([]byte, 16)
			for r := 0; r < *runs; r++ {
				var h measure.Hist
				start := time.Now()
				k := 0
				for time.Since(start) < *dur {
					t := time.Now()
					measure.Check(db.Update(func(tx *bolt.Tx) error {
						b := tx.Bucket(bkt)
						for i := 0; i < c.batch; i++ {
							if err := b.Put(boltKey(kb, scramble(rand.Uint64N(uint64(c.fill)))), val); err != nil {
								return err
							}
						}
						return nil
					}))
					h.Add(time.Since(t))
					k++
				}
				rates = append(rates, float64(k)/time.Since(start).Seconds())
				all.Merge(&h)
				n += k
			}
			_ = w0
			x := measure.ReadDisk().Sub(d0)
			m, lo, hi := measure.Median(rates)
			fmt.Printf("bolt put %-38s batch=%-4d %7.0f txn/s [%.0f..%.0f] %8.0f keys/s %s flushes/txn=%.2f diskKB/txn=%.1f\n", c.name, c.batch, m, lo, hi, m*float64(c.batch), &all,
				float64(x.Flushes)/float64(n), float64(x.Bytes)/1024/float64(n))
			db.Close()
			os.Remove(p)
		}
		// db.Batch with many goroutines (bbolt's own group commit).
		for _, g := range []int{16, 64, 256} {
			p := filepath.Join(*dir, "put.db")
			db := fillBolt(p, 200_000, val, bolt.Options{FreelistType: hm, NoFreelistSync: true})
			db.MaxBatchDelay = 2 * time.Millisecond
			db.MaxBatchSize = g
			var wg sync.WaitGroup
			var mu sync.Mutex
			var all measure.Hist
			start := time.Now()
			for i := 0; i < g; i++ {
				wg.Add(1)
				go func() {
					defer wg.Done()
					var h measure.Hist
					for time.Since(start) < *dur {
						t := time.Now()
						measure.Check(db.Batch(func(tx *bolt.Tx) error {
							return tx.Bucket(bkt).Put(boltKey(make([]byte, 16), scramble(rand.Uint64N(200_000))), val)
						}))
						h.Add(time.Since(t))
					}
					mu.Lock()
					all.Merge(&h)
					mu.Unlock()
				}()
			}
			wg.Wait()
			fmt.Printf("bolt db.Batch goroutines=%d MaxBatchDelay=2ms %8.0f keys/s %s\n", g, float64(all.N)/time.Since(start).Seconds(), &all)
			db.Close()
			os.Remove(p)
		}
	}
	if *only == "" || *only == "read" {
		p := filepath.Join(*dir, "read.db")
		os.Remove(p)
		t := time.Now()
		db := fillBolt(p, *keys, val, bolt.Options{FreelistType: hm, NoFreelistSync: true})
		st, _ := os.Stat(p)
		fmt.Printf("bolt filled %d keys in %s, file %d MiB\n", *keys, time.Since(t).Round(time.Millisecond), st.Size()>>20)
		for _, g := range []int{1, 2, 16} {
			for _, perTx := range []int{1, 100} {
				var rates []float64
				for r := 0; r < *runs; r++ {
					var wg sync.WaitGroup
					var mu sync.Mutex
					n := 0
					start := time.Now()
					for i := 0; i < g; i++ {
						wg.Add(1)
						go func() {
							defer wg.Done()
							kb := make([]byte, 16)
							k := 0
							for time.Since(start) < *dur {
								for j := 0; j < 64; j++ {
									db.View(func(tx *bolt.Tx) error {
										b := tx.Bucket(bkt)
										for q := 0; q < perTx; q++ {
											if b.Get(boltKey(kb, scramble(rand.Uint64N(uint64(*keys))))) == nil {
												panic("missing")
											}
										}
										return nil
									})
								}
								k += 64 * perTx
							}
							mu.Lock()
							n += k
							mu.Unlock()
						}()
					}
					wg.Wait()
					rates = append(rates, float64(n)/time.Since(start).Seconds())
				}
				m, lo, hi := measure.Median(rates)
				fmt.Printf("bolt get keys=%d goroutines=%d gets/txn=%d %9.0f get/s [%.0f..%.0f]\n", *keys, g, perTx, m, lo, hi)
			}
		}
		var rates []float64
		bytes := 0
		for r := 0; r < *runs; r++ {
			n := 0
			bytes = 0
			var sum uint64
			start := time.Now()
			db.View(func(tx *bolt.Tx) error {
				c := tx.Bucket(bkt).Cursor()
				for k, v := c.First(); k != nil; k, v = c.Next() {
					sum += uint64(v[0])
					bytes += len(k) + len(v)
					n++
				}
				return nil
			})
			rates = append(rates, float64(n)/time.Since(start).Seconds())
		}
		m, lo, hi := measure.Median(rates)
		fmt.Printf("bolt cursor full scan keys=%d %10.0f keys/s [%.0f..%.0f] %.0f MB/s (warm page cache)\n", *keys, m, lo, hi, m*272/1e6)
		db.Close()
		os.Remove(p)
	}
}

// fillBolt makes a database of n keys (hashed order) and reopens it with opt.
func fillBolt(p string, n int, val []byte, opt bolt.Options) *bolt.DB {
	os.Remove(p)
	f := opt
	f.NoSync = true
	db, err := bolt.Open(p, 0o644, &f)
	measure.Check(err)
	kb := make([]byte, 16)
	for i := 0; i < n; {
		measure.Check(db.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(bkt)
			if err != nil {
				return err
			}
			for j := 0; j < 20000 && i < n; j++ {
				if err := b.Put(boltKey(kb, scramble(uint64(i))), val); err != nil {
					return err
				}
				i++
			}
			return nil
		}))
	}
	measure.Check(db.Sync())
	measure.Check(db.Close())
	db, err = bolt.Open(p, 0o644, &opt)
	measure.Check(err)
	return db
}
