package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/abacusdb/abacus/bench/peers/internal/dataset"
)

// pgDriver runs one PostgreSQL (Debian's, default settings, fsync on), one table kv(k text primary key, v bytea).
type pgDriver struct {
	p   Procs
	dsn string
	// tasks is the connection of all tasks; nil before the first.
	tasks *pgxpool.Pool
}

func (d *pgDriver) Procs() *Procs { return &d.p }
func (d *pgDriver) Leader() int   { return 0 }

func (d *pgDriver) Version(string) string { return versionOf("psql", "--version") }

// Settled: one server, which answers since Start.
func (d *pgDriver) Settled(context.Context) error { return nil }

func (d *pgDriver) Start(ctx context.Context, cfg Config) error {
	bins, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(bins) == 0 {
		return errors.New("no PostgreSQL: run setup.sh")
	}
	data := filepath.Join(cfg.Dir, "data")
	port := freePorts(1)[0]
	if err := os.Chmod(cfg.Dir, 0o777); err != nil {
		return err
	}
	var as []string
	if os.Geteuid() == 0 { // PostgreSQL refuses root
		as = []string{"setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"}
	}
	initdb := slices.Concat(as, []string{bins[0] + "/initdb", "-D", data, "-A", "trust", "-U", "postgres"})
	if out, err := exec.CommandContext(ctx, initdb[0], initdb[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	postgres := slices.Concat(as, []string{bins[0] + "/postgres", "-D", data, "-p", fmt.Sprint(port), "-h", "127.0.0.1", "-k", "/tmp", "-c", "max_connections=600"})
	if err := d.p.add(cfg, postgres[0], postgres[1:]...); err != nil {
		return err
	}
	d.dsn = fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", port)
	return retry(ctx, 15*time.Second, func() error {
		p, err := pgxpool.New(ctx, d.dsn)
		if err != nil {
			return err
		}
		defer p.Close()
		_, err = p.Exec(ctx, "create table if not exists kv(k text primary key, v bytea)")
		return err
	})
}

func (d *pgDriver) Connect(int, int) (Client, error) {
	p, err := pgxpool.New(context.Background(), d.dsn+"&pool_max_conns=32")
	return pgClient{p}, err
}

type pgClient struct{ p *pgxpool.Pool }

func (c pgClient) Close() { c.p.Close() }
func (c pgClient) Put(ctx context.Context, k string, v []byte) error {
	_, err := c.p.Exec(ctx, "insert into kv values($1,$2) on conflict(k) do update set v=excluded.v", k, v)
	return err
}

func (c pgClient) Get(ctx context.Context, k string, _ bool) error {
	var v []byte
	return c.p.QueryRow(ctx, "select v from kv where k=$1", k).Scan(&v)
}

func (c pgClient) Range(ctx context.Context, from string, n int, f func(string, []byte)) (int, error) {
	rows, err := c.p.Query(ctx, "select k,v from kv where k>=$1 order by k limit $2", from, n)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	i := 0
	for rows.Next() {
		if f != nil {
			var k string
			var v []byte
			if err := rows.Scan(&k, &v); err != nil {
				return i, err
			}
			f(k, v)
		}
		i++
	}
	return i, rows.Err()
}

// Load copies the records into a table with the JSON and, apart, its integer and group.
func (d *pgDriver) Load(ctx context.Context, n int, key func(int) string, rec func(int) []byte) error {
	p, err := pgxpool.New(ctx, d.dsn)
	if err != nil {
		return err
	}
	defer p.Close()
	if _, err := p.Exec(ctx, "create table j(k text primary key, v jsonb, n bigint, grp text)"); err != nil {
		return err
	}
	i := -1
	if _, err := p.CopyFrom(ctx, pgx.Identifier{"j"}, []string{"k", "v", "n", "grp"}, pgx.CopyFromFunc(func() ([]any, error) {
		if i++; i >= n {
			return nil, nil
		}
		r := rec(i)
		return []any{key(i), r, dataset.ScanN(r), fmt.Sprintf("g%d", i%100)}, nil
	})); err != nil {
		return err
	}
	_, err = p.Exec(ctx, "vacuum analyze j")
	return err
}

func (d *pgDriver) Tasks() []Task {
	q := func(workers, sql string) func(context.Context) (int64, error) {
		return func(ctx context.Context) (sum int64, err error) {
			if d.tasks == nil { // to connect takes longer than a question of a few records
				if d.tasks, err = pgxpool.New(ctx, d.dsn+"&pool_max_conns=1"); err != nil {
					return 0, err
				}
			}
			if _, err := d.tasks.Exec(ctx, "set max_parallel_workers_per_gather="+workers); err != nil {
				return 0, err
			}
			return sum, d.tasks.QueryRow(ctx, sql).Scan(&sum)
		}
	}
	const parallel, serial = "default", "0"
	return []Task{
		{Name: "select sum(n), bigint column, parallel default", Run: q(parallel, "select sum(n)::bigint from j")},
		{Name: "select sum(n), bigint column, one process", Run: q(serial, "select sum(n)::bigint from j")},
		{Name: "select sum((v->>'n')::bigint), jsonb, parallel default", Run: q(parallel, "select sum((v->>'n')::bigint)::bigint from j")},
		{Name: "select sum((v->>'n')::bigint), jsonb, one process", Run: q(serial, "select sum((v->>'n')::bigint)::bigint from j")},
		{Name: "group by grp (jsonb both), parallel default", Run: q(parallel, "select sum(s)::bigint from (select v->>'grp', sum((v->>'n')::bigint) s from j group by 1) t")},
	}
}
