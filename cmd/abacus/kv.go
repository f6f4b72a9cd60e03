package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/client"
)

// maxInput bounds what is read from stdin or a file for one value. The cluster
// has a limit of its own, which is lower.
const maxInput = 64 << 20

func newGetCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get KEY",
		Short: "Print the value of a key, byte by byte",
		Long: `Print the value of a key, exactly its bytes; a newline is added only on a
terminal. No such key: exit code 1.

Reads are linearizable: they show every write that was acknowledged before. With
--consistency stale the node that is asked answers from its own replica, also
while it is cut off from the others: an old value, perhaps, or one that is older than
another node has shown. stale:2s asks the leader if the replica had no word from it for 2s.`,
		Example: `  abacus get greeting
  abacus get greeting --consistency stale:500ms
  abacus get photo > photo.jpg
  abacus get greeting -o json`,
		Args: withKey(takes(1, 1), false),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				v, err := c.Get(ctx, args[0])
				if errors.Is(err, client.ErrNotFound) {
					return &exitError{exitFailed, fmt.Errorf("no such key: %s", shown(args[0]))}
				}
				if err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				if a.json() {
					return writeJSON(out, newPair(args[0], v, true))
				}
				if terminal(out) {
					v = append(v, '\n')
				}
				if _, err := out.Write(v); err != nil {
					return fmt.Errorf("write the value: %w", err)
				}
				return nil
			})
		},
	}
	a.consistencyFlag(cmd)
	return cmd
}

func newPutCommand(a *app) *cobra.Command {
	var (
		o    client.PutOptions
		file string
	)
	cmd := &cobra.Command{
		Use:   "put KEY VALUE | put KEY - | put KEY --file FILE",
		Short: "Store a value",
		Long: `Store a value. When put returns 0, the value is on the disks of a majority of the
shard's replicas. Exit code 6 says that the outcome is unknown.`,
		Example: `  abacus put greeting hello
  abacus put photo --file photo.jpg
  date | abacus put today -
  abacus put session abc --ttl 30m
  abacus put balance -- -5            # a value that begins with -`,
		Args: withKey(takes(1, 2), false),
		RunE: func(cmd *cobra.Command, args []string) error {
			value, err := putValue(cmd.InOrStdin(), args, file)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("ttl") && o.TTL < time.Millisecond {
				return usagef("--ttl %v: it must be at least 1ms", o.TTL)
			}
			if o.IfAbsent && o.IfPresent {
				return usagef("--if-absent and --if-present exclude each other")
			}
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				stored, err := c.PutWith(ctx, args[0], value, o)
				if err != nil {
					return err
				}
				if !stored {
					word := "exists already"
					if o.IfPresent {
						word = "does not exist"
					}
					return &exitError{exitFailed, fmt.Errorf("not stored: the key %s %s", shown(args[0]), word)}
				}
				return a.done(cmd)
			})
		},
	}
	f := cmd.Flags()
	f.DurationVar(&o.TTL, "ttl", 0, "let the key end after this time (as 90s or 24h)")
	f.StringVar(&file, "file", "", "store the content of this file")
	f.BoolVar(&o.IfAbsent, "if-absent", false, "store only if there is no such key")
	f.BoolVar(&o.IfPresent, "if-present", false, "store only if there is such a key")
	return cmd
}

func putValue(stdin io.Reader, args []string, file string) ([]byte, error) {
	switch {
	case file != "" && len(args) == 2:
		return nil, usagef("give the value either as an argument or with --file")
	case file != "":
		f, _, err := openInput(file, stdin)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return readValue(f, file)
	case len(args) == 1:
		return nil, usagef("put %s: no value given (- reads it from stdin, --file from a file)", shown(args[0]))
	case args[1] == "-":
		return readValue(stdin, "stdin")
	}
	return []byte(args[1]), nil
}

func readValue(r io.Reader, name string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxInput+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(b) > maxInput {
		return nil, fmt.Errorf("%s has more than %d MiB, no value can be so long", name, maxInput>>20)
	}
	return b, nil
}

// done writes the result of a command that has no other.
func (a *app) done(cmd *cobra.Command) error {
	if a.json() {
		return writeJSON(cmd.OutOrStdout(), map[string]bool{"ok": true})
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), "OK")
	return err
}

// number writes a result that is one.
func (a *app) number(cmd *cobra.Command, name string, n int64) error {
	if a.json() {
		return writeJSON(cmd.OutOrStdout(), map[string]int64{name: n})
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), n)
	return err
}

func newDelCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "del KEY...",
		Short: "Remove keys and print how many there were",
		Long: `Remove keys and print how many there were. Keys that share a slot (by a {tag}) are
removed as one; others one by one.`,
		Example: `  abacus del greeting
  abacus del session/1 session/2
  abacus scan --prefix tmp/ | xargs abacus del`,
		Args: withKey(takesSome, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				n, err := c.Del(ctx, args...)
				if err != nil {
					return err
				}
				return a.number(cmd, "removed", n)
			})
		},
	}
}

func newIncrCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "incr KEY [BY]",
		Short: "Add to an integer and print the sum",
		Long: `Add to a 64-bit integer and print the sum. A key that is not there counts as 0.
A sum that would not fit is an error, never wrapped.

A lost answer is asked for again until the deadline, and the sum is counted once.
Exit code 6 says that the outcome is unknown all the same: it may or may not have
been stored. Read the key before trying again, or it may be counted twice.`,
		Example: `  abacus incr visits
  abacus incr stock -- -3`,
		Args: withKey(takes(1, 2), false),
		RunE: func(cmd *cobra.Command, args []string) error {
			by := int64(1)
			if len(args) == 2 {
				var err error
				if by, err = strconv.ParseInt(args[1], 10, 64); err != nil {
					return usagef("incr by %s: not a 64-bit integer", shown(args[1]))
				}
			}
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				n, err := c.Incr(ctx, args[0], by)
				if err != nil {
					return fmt.Errorf("incr %s: %w", shown(args[0]), err)
				}
				return a.number(cmd, "value", n)
			})
		},
	}
}

func newCASCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "cas KEY OLD NEW",
		Short: "Replace a value if it is still the old one (compare and swap)",
		Long: `Replace the value of KEY by NEW if it is OLD, as one step. Exit code 1: it is
not, and nothing was changed. To create a key only if there is none, use
"abacus put --if-absent".`,
		Example: `  abacus cas lock free taken
  abacus cas greeting hello "good bye"
  abacus cas balance -- 10 -5         # a value that begins with -`,
		Args: withKey(takes(3, 3), false),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				swapped, err := c.CAS(ctx, args[0], []byte(args[1]), []byte(args[2]))
				if err != nil {
					return err
				}
				if !swapped {
					return &exitError{exitFailed, fmt.Errorf("not replaced: the value of %s is not %s", shown(args[0]), shown(args[1]))}
				}
				return a.done(cmd)
			})
		},
	}
}

func newScanCommand(a *app) *cobra.Command {
	var (
		prefix string
		limit  int
		values bool
	)
	cmd := &cobra.Command{
		Use:   "scan",
		Short: "List keys, in no particular order",
		Long: `List keys, one a line, in no particular order (pipe through sort). Keys that are there
during the whole scan are listed; those that come or go meanwhile, perhaps.
On a terminal, keys with unprintable bytes are quoted; with -o json each line is a
JSON object, with base64 for what is not UTF-8.`,
		Example: `  abacus scan --prefix word/
  abacus scan --prefix word/ --limit 10 --values
  abacus scan | wc -l`,
		Args: noArgsButPrefix,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 0 {
				return usagef("--limit %d: it must not be negative", limit)
			}
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				out := newLineWriter(cmd.OutOrStdout())
				n := 0
				err := eachPair(ctx, c, prefix, limit, values, func(key string, value []byte) error {
					n++
					switch {
					case a.json():
						return writeLine(out, newPair(key, value, values))
					case values:
						return out.line(key, "\t", string(value))
					}
					return out.line(key)
				})
				return errors.Join(err, out.Flush())
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&prefix, "prefix", "", "only keys that begin with this")
	f.IntVar(&limit, "limit", 0, "stop after so many keys (0: never)")
	f.BoolVar(&values, "values", false, "with values: key, TAB, value")
	a.consistencyFlag(cmd)
	return cmd
}
