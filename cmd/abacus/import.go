package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/client"
)

// Batches are large, so that each shard's part of one makes a good log entry,
// and several are under way, so that disks and network work at the same time.
const (
	batchBytes    = 1 << 20
	batchRecords  = 8192
	batchesAtOnce = 8
	// importPatience is how long one batch is tried: an import outlives an election.
	importPatience = time.Minute
)

func newImportCommand(a *app) *cobra.Command {
	var o recordOptions
	cmd := &cobra.Command{
		Use:   "import FILE|-",
		Short: "Store the records of a file",
		Long: `Store the records of a file, or of stdin (-). Input packed with gzip is recognised.

Formats:
  lines  each line is a value; its key is the record's number, from 1
  csv    the first line names the columns; each row is stored as a JSON object, cells
         that are JSON numbers as numbers
  jsonl  each line is a JSON document, stored as it is
  kv     key, TAB, value on each line

Keys are --prefix and then the content of the column or field --key, or the record's
number with leading zeros (--key-width digits). When several records have one key,
the last one stays.

An import repeats by itself what got no answer. To run it again is safe, too: it only sets
keys to known values.
An import that fails has stored a part of the records; run it again.`,
		Example: `  abacus import words.txt.gz --prefix word/
  abacus import cities.csv.gz --format csv --prefix city/
  abacus import users.csv --format csv --prefix user/ --key id    # a column that no two records share
  zcat events.jsonl.gz | abacus import - --format jsonl --prefix event/`,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.validate(); err != nil {
				return err
			}
			in, size, err := openInput(args[0], cmd.InOrStdin())
			if err != nil {
				return err
			}
			defer in.Close()
			bar := newBar(cmd.ErrOrStderr(), "importing", size, true)
			file := &countedReader{r: in}
			next, err := newRecords(file, o)
			if err != nil {
				return fmt.Errorf("import %s: %w", args[0], err)
			}
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				began := time.Now()
				done, err := pump(ctx, c, next, file.count, func(total pumped) {
					bar.to(total.read, "importing: "+plural(total.records, "record")+" stored,")
				})
				bar.clear()
				if err != nil {
					return fmt.Errorf("import %s: %w (%s stored so far; importing again is safe)", args[0], err, plural(done.records, "record"))
				}
				took := time.Since(began)
				fmt.Fprintf(cmd.ErrOrStderr(), "imported %s, %s bytes in %.1f s\n", plural(done.records, "record"), count(done.bytes), took.Seconds())
				if a.json() {
					return writeJSON(cmd.OutOrStdout(), map[string]any{"records": done.records, "bytes": done.bytes, "seconds": took.Seconds()})
				}
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.format, "format", "lines", "lines, csv, jsonl or kv")
	f.StringVar(&o.prefix, "prefix", "", "what every key begins with")
	f.StringVar(&o.key, "key", "", "column (csv) or field (jsonl) that is the key; default: the record's number")
	f.StringVar(&o.value, "value", "", "column or field to store alone; default: the whole row or document")
	f.IntVar(&o.width, "key-width", 9, "digits of a record's number in its key")
	return cmd
}

// openInput opens a file, or stdin for "-", and says how long it is, -1 if that
// is not known.
func openInput(name string, stdin io.Reader) (io.ReadCloser, int64, error) {
	if name == "-" {
		return io.NopCloser(stdin), -1, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, err // it says which file and why
	}
	st, err := f.Stat()
	switch {
	case err != nil:
		f.Close()
		return nil, 0, fmt.Errorf("open input: %w", err)
	case st.IsDir():
		f.Close()
		return nil, 0, fmt.Errorf("open %s: it is a directory", name)
	case st.Mode().IsRegular():
		return f, st.Size(), nil
	}
	return f, -1, nil
}

// countedReader counts what was read. It belongs to one goroutine.
type countedReader struct {
	r io.Reader
	n int64
}

func (c *countedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (c *countedReader) count() int64 { return c.n }

// pumped counts what is stored: records, their bytes, and how much of the file they
// were read from.
type pumped struct{ records, bytes, read int64 }

// batch is a group of records on its way. A key is in it once: the last record
// with it counts.
type batch struct {
	cmds    []client.Cmd
	lines   []int64
	times   []int64 // how many records have the key
	index   map[string]int
	records int64
	bytes   int64
	read    int64 // of the file since the batch before
	done    chan struct{}
}

func newBatch() *batch { return &batch{index: map[string]int{}, done: make(chan struct{})} }

func (b *batch) add(r record) {
	b.records++
	b.bytes += int64(len(r.key) + len(r.value))
	cmd := client.Cmd{Args: [][]byte{[]byte("SET"), r.key, r.value}, Repeatable: true}
	if r.ttl > 0 {
		cmd.Args = append(cmd.Args, []byte("PX"), strconv.AppendInt(nil, r.ttl, 10))
	}
	if i, ok := b.index[string(r.key)]; ok {
		b.cmds[i], b.lines[i] = cmd, r.line
		b.times[i]++
		return
	}
	b.index[string(r.key)] = len(b.cmds)
	b.cmds = append(b.cmds, cmd)
	b.lines = append(b.lines, r.line)
	b.times = append(b.times, 1)
}

// pump stores all records, several batches at a time, and stops at the first
// error. A record waits for an earlier batch that holds its key, so that the
// last record with a key is the one that stays. After each batch that the cluster
// has acknowledged it reports the total; offset is how far the file was read.
func pump(ctx context.Context, c *client.Client, next func() (record, error), offset func() int64, report func(pumped)) (pumped, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		mu     sync.Mutex
		total  pumped
		wg     sync.WaitGroup
		slots  = make(chan struct{}, batchesAtOnce)
		flying []*batch // sent, perhaps done
	)
	sentTo := int64(0) // in the file
	send := func(b *batch) bool {
		b.read, sentTo = offset()-sentTo, offset()
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return false
		}
		live := flying[:0]
		for _, f := range flying {
			select {
			case <-f.done:
			default:
				live = append(live, f)
			}
		}
		flying = append(live, b)
		wg.Go(func() {
			defer func() { close(b.done); <-slots }()
			stored, err := b.store(ctx, c)
			mu.Lock()
			total.records += stored.records
			total.bytes += stored.bytes
			total.read += stored.read
			if err == nil {
				report(total)
			}
			mu.Unlock()
			if err != nil {
				cancel(err)
			}
		})
		return true
	}
	// settled waits for batches under way that hold a key.
	settled := func(key []byte) bool {
		for _, f := range flying {
			if _, ok := f.index[string(key)]; ok {
				select {
				case <-f.done:
				case <-ctx.Done():
					return false
				}
			}
		}
		return true
	}

	b := newBatch()
	var readErr error
	for ctx.Err() == nil {
		r, err := next()
		if err != nil {
			if err != io.EOF {
				readErr = err
			}
			break
		}
		if !settled(r.key) {
			break
		}
		b.add(r)
		if b.bytes >= batchBytes || b.records >= batchRecords {
			if !send(b) {
				break
			}
			b = newBatch()
		}
	}
	if b.records > 0 && ctx.Err() == nil {
		send(b) // also what came before a bad line
	}
	wg.Wait()
	if readErr != nil {
		return total, readErr
	}
	if ctx.Err() != nil {
		return total, context.Cause(ctx)
	}
	return total, nil
}

// store sends the batch. The first record that cannot be stored is the error.
func (b *batch) store(ctx context.Context, c *client.Client) (pumped, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, importPatience, client.ErrTimeout)
	defer cancel()
	var first error
	failed := int64(0)
	for i, r := range c.DoMulti(ctx, b.cmds) {
		if r.Err == nil {
			continue
		}
		failed += b.times[i]
		if first == nil {
			first = r.Err
			var refused *client.ServerError
			if errors.As(r.Err, &refused) {
				first = fmt.Errorf("key %s, value of %d bytes: %w", shown(string(b.cmds[i].Args[1])), len(b.cmds[i].Args[2]), r.Err)
				if b.lines[i] > 0 {
					first = &lineError{b.lines[i], first}
				}
			}
		}
	}
	if first != nil {
		return pumped{records: b.records - failed}, first
	}
	return pumped{b.records, b.bytes, b.read}, nil
}
