package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/client"
)

func newExportCommand(a *app) *cobra.Command {
	var prefix, format string
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write keys and their values to stdout",
		Long: `Write keys and their values to stdout, in no particular order.

Formats:
  kv     key, TAB, value, newline. A key with a TAB or newline and a value with a
         newline do not fit and end the export with an error.
  jsonl  {"key":...,"value":...} a line; what is not UTF-8 goes as "key_base64" or
         "value_base64". Anything fits. -o json means this format.

It is not a snapshot: keys that change while it runs are exported with an old or
the new value. Read it back with
  abacus import --format kv FILE
  abacus import --format jsonl --key key --value value FILE`,
		Args: noArgsButPrefix,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.json() {
				if cmd.Flags().Changed("format") && format != "jsonl" {
					return usagef("-o json and --format %s exclude each other", format)
				}
				format = "jsonl"
			}
			if format != "kv" && format != "jsonl" {
				return usagef("--format %s: it must be kv or jsonl", format)
			}
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				out := bufio.NewWriterSize(cmd.OutOrStdout(), 256<<10)
				began := time.Now()
				var n, bytes int64
				err := eachPair(ctx, c, prefix, 0, true, func(key string, value []byte) error {
					n++
					bytes += int64(len(key) + len(value))
					if format == "jsonl" {
						return writeLine(out, newPair(key, value, true))
					}
					return writeKV(out, key, value)
				})
				if err := errors.Join(err, out.Flush()); err != nil {
					return fmt.Errorf("export, after %s: %w", plural(n, "key"), err)
				}
				back := "--format kv"
				if format == "jsonl" {
					back = "--format jsonl --key key --value value"
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "exported %s, %s bytes in %.1f s; \"%s import %s FILE\" reads it back\n", plural(n, "key"), count(bytes), time.Since(began).Seconds(), self, back)
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&prefix, "prefix", "", "only keys that begin with this")
	f.StringVar(&format, "format", "kv", "kv or jsonl")
	a.consistencyFlag(cmd)
	return cmd
}

// writeKV writes a line that import reads back exactly, or refuses.
func writeKV(w io.Writer, key string, value []byte) error {
	if strings.ContainsAny(key, "\t\n") || strings.IndexByte(string(value), '\n') >= 0 {
		return fmt.Errorf("the key %s or its value does not fit in kv; use --format jsonl", shown(key))
	}
	_, err := fmt.Fprintf(w, "%s\t%s\n", key, value)
	return err
}

// eachPair visits the keys with a prefix, with their values if asked; limit 0
// is no limit. Keys that end between the listing and the reading are left out.
func eachPair(ctx context.Context, c *client.Client, prefix string, limit int, values bool, f func(key string, value []byte) error) error {
	page := 1000
	if limit > 0 {
		page = min(page, limit)
	}
	n, chunk := 0, 64
	for keys, err := range c.ScanPages(ctx, client.ScanOptions{Prefix: prefix, Page: page}) {
		if err != nil {
			return err
		}
		for len(keys) > 0 {
			some := keys[:min(len(keys), chunk)]
			keys = keys[len(some):]
			var vals [][]byte
			if values {
				if vals, err = c.MGet(ctx, some...); err != nil {
					return err
				}
				chunk = nextChunk(vals)
			}
			for i, k := range some {
				var v []byte
				if values {
					if v = vals[i]; v == nil {
						continue
					}
				}
				if err := f(k, v); err != nil {
					return err
				}
				if n++; n == limit {
					return nil
				}
			}
		}
	}
	return nil
}

// nextChunk is how many values to fetch at once, going by those just fetched:
// about 4 MiB, for a value can have a byte or a million.
func nextChunk(vals [][]byte) int {
	total := 0
	for _, v := range vals {
		total += len(v)
	}
	return max(4, min(1000, 4<<20/(total/len(vals)+1)))
}

// lineWriter writes lines; to a terminal without bytes that would act there.
type lineWriter struct {
	*bufio.Writer
	quote bool
}

func newLineWriter(w io.Writer) *lineWriter {
	return &lineWriter{bufio.NewWriterSize(w, 64<<10), terminal(w)}
}

func (l *lineWriter) line(parts ...string) error {
	for _, p := range parts {
		if l.quote && p != "\t" {
			p = shown(p)
		}
		l.WriteString(p)
	}
	return l.WriteByte('\n')
}
