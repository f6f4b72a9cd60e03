//go:build linux

package campaign

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/abacusdb/abacus/chaos/workload"
	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/transport/resp"
)

const (
	// opTimeout bounds one operation, all attempts of the client together.
	opTimeout = 12 * time.Second
	// listTimeout bounds a list of all keys of a set.
	listTimeout = 3 * time.Minute
	// jobTimeout bounds a job.
	jobTimeout = 60 * time.Second
)

// clients are the ways in which users reach the cluster: the Go client, over all nodes or knowing but one of them at first, the same content with
// stale reads, and connections of their own to one node.
type clients struct {
	dial                func(addr string) (net.Conn, error) // for connections of their own
	all, stale, bounded *client.Client
	one                 []*client.Client // knows node n at n-1
	followers           []string         // cluster addresses, whose READONLY connections read from replicas
	plain               []string         // client addresses
}

func openClients(b *bed) (*clients, error) {
	cs := &clients{dial: b.dial, followers: b.c.ClusterAddrs(), plain: b.c.ClientAddrs()}
	var errs []error
	open := func(cfg client.Config) *client.Client {
		cfg.Timeout = opTimeout
		if b.c.TLS() {
			cfg.TLSFiles = &client.TLSFiles{CA: b.c.CA()}
		}
		c, err := client.Open(cfg)
		errs = append(errs, err)
		return c
	}
	cs.all = open(client.Config{Addrs: cs.plain})
	cs.stale = open(client.Config{Addrs: cs.plain, Stale: true})
	cs.bounded = open(client.Config{Addrs: cs.plain, Stale: true, MaxStale: workload.StaleBound})
	for _, addr := range cs.plain {
		cs.one = append(cs.one, open(client.Config{Addrs: []string{addr}}))
	}
	return cs, errors.Join(errs...)
}

func (cs *clients) close() {
	for _, c := range append(cs.one, cs.all, cs.stale, cs.bounded) {
		if c != nil {
			_ = c.Close() // nothing of it is wanted any more
		}
	}
}

// worker is one user. It has one operation under way at a time.
type worker struct {
	cs *clients
	c  *client.Client
	// home is the node that it makes connections of its own to, counted from 0. Some are at each: one that hangs holds up
	// those, and the others write on, so that what it answers when it goes on may be old.
	home int
	// patience bounds an operation. Some users have little: what they have sent is still under way when they do the next.
	patience time.Duration
	rng      *rand.Rand
	raw      map[string]*rawConn // by address
	tl       *timeline
	numbered
}

// patience is of one worker in four each.
var patience = [4]time.Duration{500 * time.Millisecond, 2 * time.Second, 5 * time.Second, opTimeout}

// run works until stop is closed: a call of a workload by chance, in a shard by chance.
func (w *worker) run(stop <-chan struct{}, loads []load, shards int, think time.Duration) {
	defer w.close()
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(w.rng.Int64N(int64(think) + 1))):
		}
		if w.owes() {
			w.repay()
			continue
		}
		l := loads[w.rng.IntN(len(loads))]
		w.do(l.name, l.Next(w.rng, w.rng.IntN(shards), w.rng.IntN(2) == 0))
	}
}

func (w *worker) close() {
	for _, c := range w.raw {
		c.close()
	}
	clear(w.raw)
}

// do carries out a call of a workload and settles it, unless it is an increment without an answer, which is settled when it has one.
func (w *worker) do(load string, call workload.Call) workload.Outcome {
	began := time.Now()
	var result workload.Result
	var err error
	if call.Op.Kind == workload.Incr {
		result, err = w.raise(call)
	} else {
		result, err = w.exec(context.Background(), call.Op)
	}
	o := outcomeOf(call.Op, err)
	w.tl.operation(load, call.Op, began, time.Since(began), o, err)
	if !errors.Is(err, errOwed) {
		call.Settle(o, result)
	}
	return o
}

// errSurely is of an operation that was certainly not carried out.
var errSurely = errors.New("not carried out")

// outcomeOf sorts what a client says into the three kinds.
func outcomeOf(op workload.Op, err error) workload.Outcome {
	switch {
	case err == nil:
		return workload.Answered
	case op.Reads(), errors.Is(err, errSurely):
		return workload.Failed // a read changes nothing, whatever became of it
	case errors.Is(err, client.ErrUncertain):
		return workload.Uncertain
	case errors.Is(err, client.ErrUnavailable), errors.Is(err, client.ErrDiskFull), slices.Contains(certain, codeOf(err)):
		return workload.Failed
	}
	return workload.Uncertain
}

// certain are the errors of a server which promise that nothing was done: docs/commands.md.
var certain = []string{"MOVED", "CLUSTERDOWN", "TRYAGAIN", "DISKFULL", "EXECABORT", "BUSY", "CROSSSLOT"}

func (w *worker) exec(ctx context.Context, op workload.Op) (r workload.Result, err error) {
	limit := w.patience
	if op.Kind == workload.List {
		limit = listTimeout
	}
	if op.Kind == workload.Job {
		limit = jobTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	switch op.Kind {
	case workload.Get:
		return w.get(ctx, op)
	case workload.Set:
		return w.set(ctx, op)
	case workload.Delete:
		n, err := w.c.Del(ctx, op.Key)
		return workload.Result{Done: n == 1}, err
	case workload.Append:
		reply, err := w.c.Do(ctx, "APPEND", op.Key, op.Value)
		return workload.Result{Int: reply.Int}, err
	case workload.Multi:
		return w.multi(op)
	case workload.List:
		for key, err := range w.cs.all.Scan(ctx, client.ScanOptions{Prefix: op.Key}) {
			if err != nil {
				return r, err
			}
			r.Parts = append(r.Parts, workload.Result{Value: key})
		}
		return r, nil
	case workload.Job:
		return w.job(ctx, op)
	}
	panic(fmt.Sprintf("campaign: an operation of kind %d", op.Kind))
}

func (w *worker) get(ctx context.Context, op workload.Op) (workload.Result, error) {
	c := w.c
	switch op.Reading {
	case workload.ByFollower:
		return w.follower(op.Key)
	case workload.Stale:
		c = w.cs.stale
	case workload.Bounded:
		c = w.cs.bounded
	}
	v, err := c.Get(ctx, op.Key)
	if errors.Is(err, client.ErrNotFound) {
		return workload.Result{}, nil
	}
	return workload.Result{Value: string(v)}, err
}

// follower reads at some node that has a replica.
func (w *worker) follower(key string) (workload.Result, error) {
	var last error
	for i := range w.cs.followers {
		replies, err := w.on(w.cs.followers[(w.home+i)%len(w.cs.followers)], []string{"READONLY"}, []string{"GET", key})
		if err != nil {
			return workload.Result{}, err
		}
		if last = replies[1].Err(); codeOf(last) != "MOVED" {
			return workload.Result{Value: string(replies[1].Str)}, last
		}
	}
	return workload.Result{}, last
}

// codeOf is the first word of a server's error, "" if it is none.
func codeOf(err error) string {
	var s *resp.ServerError
	if errors.As(err, &s) {
		return s.Code()
	}
	return ""
}

func (w *worker) set(ctx context.Context, op workload.Op) (r workload.Result, err error) {
	switch {
	case op.Compare:
		r.Done, err = w.c.CAS(ctx, op.Key, []byte(op.Old), []byte(op.Value))
	default:
		r.Done, err = w.c.PutWith(ctx, op.Key, []byte(op.Value), client.PutOptions{TTL: op.TTL})
	}
	return r, err
}

// multi is a transaction on a connection to some node.
func (w *worker) multi(op workload.Op) (r workload.Result, err error) {
	cmds := [][]string{{"MULTI"}}
	for _, p := range op.Parts {
		switch p.Kind {
		case workload.Get:
			cmds = append(cmds, []string{"GET", p.Key})
		case workload.Set:
			cmds = append(cmds, []string{"SET", p.Key, p.Value})
		case workload.Incr:
			cmds = append(cmds, []string{"INCRBY", p.Key, strconv.FormatInt(p.By, 10)})
		case workload.Append:
			cmds = append(cmds, []string{"APPEND", p.Key, p.Value})
		default:
			panic(fmt.Sprintf("campaign: a part of kind %d", p.Kind))
		}
	}
	replies, err := w.on(w.cs.plain[w.home], append(cmds, []string{"EXEC"})...)
	if err != nil {
		return r, err
	}
	exec := replies[len(replies)-1]
	if err := exec.Err(); err != nil {
		return r, err
	}
	if len(exec.Elems) != len(op.Parts) {
		return r, fmt.Errorf("EXEC of %d commands answers %v", len(op.Parts), exec)
	}
	for i, part := range exec.Elems {
		if err := part.Err(); err != nil {
			return r, fmt.Errorf("command %d of a transaction: %w", i, err)
		}
		r.Parts = append(r.Parts, workload.Result{Value: string(part.Str), Int: part.Int})
	}
	return r, nil
}

func (w *worker) job(ctx context.Context, op workload.Op) (r workload.Result, err error) {
	spec := job.Spec{Prefix: op.Key, As: job.AsInt, Reduce: job.ReduceSum, TimeoutMillis: jobTimeout.Milliseconds()}
	switch op.Value {
	case workload.JobCount:
		spec.Reduce = job.ReduceCount
	case workload.JobGroups:
		spec.GroupBy = "key-part:/:2"
	case workload.JobExpression: // all pass the filter
		spec.Filter, spec.Map = "key.startsWith('"+op.Key+"')", "v * 1 + key.size() - key.size()"
	}
	// By itself a job over so few keys is one task a shard, at the leader. Most are to be pinned, handed out and remembered; and
	// some may use an answer again, where a shard has not changed.
	spec.TasksPerReplica = w.rng.IntN(5)
	if w.rng.IntN(4) > 0 {
		spec.Cache = job.CacheOff
	}
	id, err := w.c.SubmitJob(ctx, spec)
	if err != nil {
		return r, err
	}
	rec, err := w.c.JobWait(ctx, id, nil)
	if err != nil {
		return r, err
	}
	w.tl.job(rec)
	if rec.State != job.Succeeded || rec.Result == nil {
		return r, fmt.Errorf("job %s is %s: %s", id, rec.State, rec.Error)
	}
	for _, sh := range rec.Shards {
		if !sh.Exact {
			return r, fmt.Errorf("job %s: shard %d was not read at one index", id, sh.Shard)
		}
	}
	if op.Value != workload.JobGroups {
		r.Int, err = strconv.ParseInt(rec.Result.String(), 10, 64)
		return r, err
	}
	var groups []struct {
		Group string
		Value int64
	}
	if err := json.Unmarshal([]byte(rec.Result.String()), &groups); err != nil {
		return r, fmt.Errorf("job %s: %w", id, err)
	}
	for _, g := range groups {
		r.Int += g.Value
		r.Parts = append(r.Parts, workload.Result{Value: g.Group, Int: g.Value})
	}
	return r, nil
}

// rawConn is a connection that a user makes by himself: what breaks on it is his to judge.
type rawConn struct {
	nc net.Conn
	rd *resp.ReplyReader
}

func (c *rawConn) close() { _ = c.nc.Close() }

// on sends commands to a node, one pipeline, and returns as many replies. Errors of the network are uncertain from the first byte on that was sent.
func (w *worker) on(addr string, cmds ...[]string) (replies []resp.Reply, err error) {
	c := w.raw[addr]
	if c == nil {
		nc, err := w.cs.dial(addr)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errSurely, err)
		}
		c = &rawConn{nc, resp.NewReplyReader(nc, resp.DefaultReplyLimits())}
		if w.raw == nil {
			w.raw = map[string]*rawConn{}
		}
		w.raw[addr] = c
	}
	defer func() {
		if err != nil {
			c.close()
			delete(w.raw, addr)
		}
	}()
	var out []byte
	for _, cmd := range cmds {
		out = resp.AppendCommandStrings(out, cmd...)
	}
	if err := c.nc.SetDeadline(time.Now().Add(w.patience)); err != nil {
		return nil, fmt.Errorf("%w: %w", errSurely, err)
	}
	if _, err := c.nc.Write(out); err != nil {
		return nil, fmt.Errorf("%w: %w", client.ErrUncertain, err)
	}
	for range cmds {
		reply, err := c.rd.ReadReply()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", client.ErrUncertain, err)
		}
		replies = append(replies, reply)
	}
	return replies, nil
}

// prober writes to one shard all the time, to see when it does and when it does not.
type prober struct {
	shard int
	key   string
	tl    *timeline
}

// probeEvery is how often.
const probeEvery = 100 * time.Millisecond

func (p *prober) run(ctx context.Context, c *client.Client) {
	for wait(ctx, probeEvery) {
		began := time.Now()
		opCtx, cancel := context.WithTimeout(ctx, opTimeout)
		err := c.Put(opCtx, p.key, []byte(began.Format(time.RFC3339Nano)))
		cancel()
		if err == nil {
			p.tl.probed(p.shard, began, time.Now())
		}
	}
}
