package main

import (
	"flag"
	"fmt"
	"github.com/abacusdb/abacus/bench/peers/internal/measure"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// floor measures the machine itself: appended writes + fdatasync, and loopback TCP round trips.
func floor(args []string) {
	fs := flag.NewFlagSet("floor", flag.ExitOnError)
	dir := fs.String("dir", ".benchtmp", "directory on the disk under test")
	dur := fs.Duration("d", 3*time.Second, "time per run")
	runs := fs.Int("runs", 3, "runs")
	fs.Parse(args)
	*dir = measure.MustDir(*dir)
	defer os.RemoveAll(*dir)

	type cfg struct {
		name              string
		threads           int
		size              int
		prealloc, oneFile bool
	}
	for _, c := range []cfg{
		{"append+fdatasync 4KiB", 1, 4096, false, false},
		{"append+fdatasync 4KiB", 2, 4096, false, false},
		{"append+fdatasync 4KiB", 4, 4096, false, false},
		{"append+fdatasync 4KiB", 16, 4096, false, false},
		{"append+fdatasync 4KiB", 48, 4096, false, false},
		{"append+fdatasync 64KiB", 1, 65536, false, false},
		{"append+fdatasync 1MiB", 1, 1 << 20, false, false},
		{"overwrite(prealloc)+fdatasync 4KiB", 1, 4096, true, false},
		{"overwrite(prealloc)+fdatasync 4KiB", 3, 4096, true, false},
		{"overwrite(prealloc)+fdatasync 4KiB", 16, 4096, true, false},
		{"overwrite(prealloc)+fdatasync 64KiB", 1, 65536, true, false},
		{"one shared file, pwrite+fdatasync 4KiB", 4, 4096, true, true},
		{"one shared file, pwrite+fdatasync 4KiB", 16, 4096, true, true},
	} {
		var rates []float64
		var all measure.Hist
		var dsk measure.DiskStat
		for r := 0; r < *runs; r++ {
			d0 := measure.ReadDisk()
			n, h, el := syncLoop(*dir, c.threads, c.size, c.prealloc, c.oneFile, *dur)
			x := measure.ReadDisk().Sub(d0)
			dsk.Writes += x.Writes
			dsk.Flushes += x.Flushes
			dsk.Bytes += x.Bytes
			rates = append(rates, float64(n)/el.Seconds())
			all.Merge(h)
		}
		m, lo, hi := measure.Median(rates)
		fmt.Printf("%-40s threads=%-3d %8.0f/s [%.0f..%.0f] %6.1f MB/s  %s  flushes/op=%.2f diskwrites/op=%.2f diskKB/op=%.1f\n", c.name, c.threads, m, lo, hi,
			m*float64(c.size)/1e6, &all, float64(dsk.Flushes)/float64(all.N), float64(dsk.Writes)/float64(all.N), float64(dsk.Bytes)/1024/float64(all.N))
	}
	for _, c := range []int{1, 16, 64} {
		for _, sz := range []int{64, 300} {
			var rates []float64
			var all measure.Hist
			for r := 0; r < *runs; r++ {
				n, h, el := rtt(c, sz, *dur)
				rates = append(rates, float64(n)/el.Seconds())
				all.Merge(h)
			}
			m, lo, hi := measure.Median(rates)
			fmt.Printf("loopback TCP echo (Go, one process) size=%d conns=%d %8.0f/s [%.0f..%.0f] %s\n", sz, c, m, lo, hi, &all)
		}
	}
}

func syncLoop(dir string, threads, size int, prealloc, oneFile bool, dur time.Duration) (int, *measure.Hist, time.Duration) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all measure.Hist
	const span = 64 << 20
	open := func(i int) *os.File {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("f%d", i)))
		measure.Check(err)
		if prealloc {
			z := make([]byte, 1<<20)
			for o := 0; o < span; o += len(z) {
				_, err = f.WriteAt(z, int64(o))
				measure.Check(err)
			}
			measure.Check(f.Sync())
		}
		return f
	}
	files := make([]*os.File, threads)
	for i := range files {
		if oneFile && i > 0 {
			files[i] = files[0]
			continue
		}
		files[i] = open(i)
	}
	start := time.Now()
	for i := 0; i < threads; i++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			buf := make([]byte, size)
			var h measure.Hist
			off := int64(i * size)
			for time.Since(start) < dur {
				t := time.Now()
				_, err := files[i].WriteAt(buf, off)
				measure.Check(err)
				measure.Check(syscall.Fdatasync(int(files[i].Fd())))
				h.Add(time.Since(t))
				if oneFile {
					off += int64(threads * size)
				} else {
					off += int64(size)
				}
				if prealloc && off+int64(size) > span {
					off = int64(i * size)
				}
			}
			mu.Lock()
			all.Merge(&h)
			mu.Unlock()
		}()
	}
	wg.Wait()
	el := time.Since(start)
	for i, f := range files {
		f.Close()
		os.Remove(filepath.Join(dir, fmt.Sprintf("f%d", i)))
	}
	return int(all.N), &all, el
}

func rtt(conns, size int, dur time.Duration) (int, *measure.Hist, time.Duration) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	measure.Check(err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, size)
				for {
					if _, err := readFull(c, b); err != nil {
						return
					}
					if _, err := c.Write(b); err != nil {
						return
					}
				}
			}()
		}
	}()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all measure.Hist
	start := time.Now()
	for i := 0; i < conns; i++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c, err := net.Dial("tcp", l.Addr().String())
			measure.Check(err)
			defer c.Close()
			b := make([]byte, size)
			var h measure.Hist
			for time.Since(start) < dur {
				t := time.Now()
				c.Write(b)
				_, err := readFull(c, b)
				measure.Check(err)
				h.Add(time.Since(t))
			}
			mu.Lock()
			all.Merge(&h)
			mu.Unlock()
		}()
	}
	wg.Wait()
	return int(all.N), &all, time.Since(start)
}

func readFull(c net.Conn, b []byte) (int, error) {
	n := 0
	for n < len(b) {
		k, err := c.Read(b[n:])
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
