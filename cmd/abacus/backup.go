package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/client/backup"
)

func newBackupCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Backups: create, verify, restore into a cluster of any size",
		Example: `  abacus backup create monday.abk
  abacus backup verify monday.abk
  abacus --addr other:7401 backup restore monday.abk`,
	}
	cmd.AddCommand(newBackupCreateCommand(a), newBackupVerifyCommand(a), newBackupRestoreCommand(a))
	return cmd
}

// defaultBackupRate is what the copies of shards may take, too.
const defaultBackupRate = 64 << 20

func newBackupCreateCommand(a *app) *cobra.Command {
	var perSecond int64
	cmd := &cobra.Command{
		Use:   "create FILE|DIR/",
		Short: "Back up all keys, while the cluster serves",
		Long: `Write all keys with their values and the time that they have left to a file, or, if the name ends in /, to a directory with a file for each shard.

Each shard is read as of one index of its log, from a follower if there is one; the indexes are taken close together, but not at one instant. Everything
acknowledged before the command began is in the backup. A replica that is lost meanwhile is replaced by another one, and its shard read anew.

The name is there when all of it is on the disk, not before; after an error or Ctrl-C there is nothing. Jobs, sessions, users and
the cluster's own settings are not in it. It is not encrypted; only its owner may read it.`,
		Example: `  abacus backup create monday.abk
  abacus backup create /backups/monday/ --rate 10000000`,
		Args: takesPath,
		RunE: func(cmd *cobra.Command, args []string) error {
			if perSecond < 0 {
				return usagef("--rate %d: it must be 0 or more", perSecond)
			}
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				began := time.Now()
				bar := newProgress(cmd.ErrOrStderr(), "backing up")
				m, err := backup.Create(ctx, c, args[0], backup.Options{
					Version: versionString(), Rate: perSecond, Note: bar.note,
					Progress: func(done, total backup.Amount) { bar.to(done.Bytes, total.Bytes) },
				})
				bar.clear()
				if err != nil {
					return fmt.Errorf("back up to %s: %w", args[0], err)
				}
				if a.json() {
					return writeBackup(cmd, args[0], m)
				}
				return a.carriedOut(cmd, fmt.Sprintf("%s of %s backed up to %s, %s in %.1f s", plural(m.Records, "key"), plural(int64(len(m.Shards)), "shard"), args[0], byteCount(m.Bytes), time.Since(began).Seconds()))
			})
		},
	}
	cmd.Flags().Int64Var(&perSecond, "rate", defaultBackupRate, "bytes per second that are read from the cluster (0: as fast as it goes)")
	return cmd
}

func takesPath(cmd *cobra.Command, args []string) error {
	if err := takes(1, 1)(cmd, args); err != nil {
		return err
	}
	if args[0] == "" {
		return fmt.Errorf("%s: the name is empty", nameOf(cmd))
	}
	return nil
}

// writeBackup writes the manifest as JSON, and where it is.
func writeBackup(cmd *cobra.Command, path string, m *backup.Manifest) error {
	return writeJSON(cmd.OutOrStdout(), struct {
		Path string `json:"path"`
		*backup.Manifest
	}{path, m})
}

func newBackupVerifyCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "verify PATH",
		Short: "Read a whole backup and check it; no cluster is needed",
		Long: `Read a whole backup and check it: that nothing is cut off, all checksums, the counts of records, that the shards' slots are all slots, each
once, and that each key is of a slot of its shard and is there once. No cluster is needed. Exit code 1: it is no backup, or not whole.`,
		Args: takesPath,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := interruptible(cmd.Context())
			defer stop()
			b, err := openVerified(ctx, cmd, args[0])
			if err != nil {
				return err
			}
			if a.json() {
				return writeBackup(cmd, b.Path, b.Manifest)
			}
			m := b.Manifest
			t := newTable(cmd.OutOrStdout(), "SHARD", "SLOTS", "INDEX", "KEYS", "BYTES", "FROM")
			for _, s := range m.Shards {
				t.row(s.ID, s.Slots, s.Index, s.Records, byteCount(s.Bytes), s.Node)
			}
			if err := t.flush(); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "\nthe backup is whole: %s, %s, of cluster %s, as of %s\n", plural(m.Records, "key"), byteCount(m.Bytes), m.ClusterID, m.Began.Local().Format(time.DateTime))
			return err
		},
	}
}

// openVerified opens a backup and reads all of it.
func openVerified(ctx context.Context, cmd *cobra.Command, path string) (*backup.Backup, error) {
	b, err := backup.Open(path)
	if err != nil {
		return nil, advise(err)
	}
	size, err := b.Size()
	if err != nil {
		return nil, advise(err)
	}
	bar := newProgress(cmd.ErrOrStderr(), "verifying")
	defer bar.clear()
	return b, advise(b.Verify(ctx, func(n int64) { bar.to(n, size) }))
}

// advise says what to do about a backup that cannot be used.
func advise(err error) error {
	if errors.Is(err, backup.ErrTruncated) || errors.Is(err, backup.ErrDamaged) {
		return fmt.Errorf("%w; take another copy of it, or another backup", err)
	}
	return err
}

func newBackupRestoreCommand(a *app) *cobra.Command {
	var overwrite, pauseTTL bool
	cmd := &cobra.Command{
		Use:   "restore PATH",
		Short: "Store all keys of a backup in a cluster of any size",
		Long: `Verify a backup and then store all its keys in the cluster, which may have any number of nodes and shards: they are written as any client's keys are.

The cluster must be empty, or --overwrite be said: then keys of the backup replace those of the same name, whatever wrote them, and other keys stay as they
are. A restore that was stopped or failed has stored a part of the keys. Say it again with --overwrite: it stores all of them, and ends as if
it had not been stopped.

A key that was to end ends when it was to: the time since the backup counts, and keys that would have ended are left out. With --pause-ttl it gets the time
that it had left when the backup was made.`,
		Example: `  abacus backup restore monday.abk
  abacus backup restore monday.abk --overwrite        # again, after it was stopped`,
		Args: takesPath,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				size, err := c.Size(ctx)
				if err != nil {
					return err
				}
				again := a.try("backup restore " + proc.Shell([]string{args[0]}) + " --overwrite")
				if size > 0 && !overwrite {
					return &exitError{exitFailed, fmt.Errorf("the cluster has %s; to go on with a restore that was stopped, or to have the backup's keys replace those of the same name: %s", plural(size, "key"), again)}
				}
				b, err := openVerified(ctx, cmd, args[0])
				if err != nil {
					return err
				}
				r := &restoring{b: b, pauseTTL: pauseTTL, now: time.Now}
				began := time.Now()
				err = r.store(ctx, c, newProgress(cmd.ErrOrStderr(), "restoring"))
				if err != nil {
					return fmt.Errorf("restore %s: %w (%s stored so far; go on with: %s)", args[0], err, plural(r.stored, "key"), again)
				}
				if err := r.count(ctx, c, overwrite); err != nil {
					return err
				}
				if a.json() {
					return writeJSON(cmd.OutOrStdout(), map[string]any{"records": r.stored, "bytes": r.bytes, "ended": r.ended, "seconds": time.Since(began).Seconds()})
				}
				ended := ""
				if r.ended > 0 {
					ended = fmt.Sprintf("; %s had ended meanwhile", plural(r.ended, "key"))
				}
				return a.carriedOut(cmd, fmt.Sprintf("%s restored from %s, %s in %.1f s%s", plural(r.stored, "key"), args[0], byteCount(r.bytes), time.Since(began).Seconds(), ended))
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&overwrite, "overwrite", false, "also into a cluster with keys: those of the same name are replaced, others stay")
	f.BoolVar(&pauseTTL, "pause-ttl", false, "keys get the time that they had left when the backup was made; else the time since counts")
	return cmd
}
