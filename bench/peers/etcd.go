package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/abacusdb/abacus/bench/peers/internal/dataset"
)

// etcdDriver runs upstream etcd with its default settings (fsync on).
type etcdDriver struct {
	p    Procs
	eps  []string
	ctrl []*clientv3.Client
	// records are how many Load has stored.
	records int
}

func (d *etcdDriver) Procs() *Procs { return &d.p }

func (d *etcdDriver) Version(bin string) string {
	return versionOf(filepath.Join(bin, "etcd"), "--version")
}

// Settled: every member is a voter that has started, knows of no error and answers a
// linearizable read itself, for which it has to have applied what is committed.
func (d *etcdDriver) Settled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	l, err := d.ctrl[0].MemberList(ctx)
	if err != nil {
		return err
	}
	if len(l.Members) != len(d.eps) {
		return fmt.Errorf("%d of %d members", len(l.Members), len(d.eps))
	}
	for _, m := range l.Members {
		if m.IsLearner || m.Name == "" || len(m.ClientURLs) == 0 {
			return fmt.Errorf("member %x votes not or has not started", m.ID)
		}
	}
	for i, c := range d.ctrl {
		st, err := c.Status(ctx, d.eps[i])
		if err != nil {
			return err
		}
		if len(st.Errors) > 0 || st.IsLearner || st.Leader == 0 {
			return fmt.Errorf("member n%d: leader %x, errors %v", i, st.Leader, st.Errors)
		}
		if _, err := c.Get(ctx, "ready"); err != nil {
			return err
		}
	}
	return nil
}

func (d *etcdDriver) Ready(node int) string { return d.eps[node] + "/readyz" }

func (d *etcdDriver) Start(ctx context.Context, cfg Config) error {
	ports := freePorts(2 * cfg.Nodes)
	var init []string
	for i := range cfg.Nodes {
		init = append(init, fmt.Sprintf("n%d=http://127.0.0.1:%d", i, ports[2*i+1]))
	}
	for i := range cfg.Nodes {
		c := fmt.Sprintf("http://127.0.0.1:%d", ports[2*i])
		pe := fmt.Sprintf("http://127.0.0.1:%d", ports[2*i+1])
		d.eps = append(d.eps, c)
		if err := d.p.add(cfg, filepath.Join(cfg.Bin, "etcd"), "--name", fmt.Sprintf("n%d", i), "--data-dir", filepath.Join(cfg.Dir, fmt.Sprintf("n%d", i)),
			"--listen-client-urls", c, "--advertise-client-urls", c, "--listen-peer-urls", pe, "--initial-advertise-peer-urls", pe,
			"--initial-cluster", strings.Join(init, ","), "--initial-cluster-state", "new", "--log-level", "error",
			"--quota-backend-bytes", "8589934592"); err != nil {
			return err
		}
	}
	for i := range d.eps {
		c, err := d.dial(i)
		if err != nil {
			return err
		}
		d.ctrl = append(d.ctrl, c)
	}
	return retry(ctx, 20*time.Second, func() error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := d.ctrl[0].Put(ctx, "ready", "1")
		return err
	})
}

func (d *etcdDriver) dial(i int) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: []string{d.eps[i]}, Logger: zap.NewNop()})
}

func (d *etcdDriver) Leader() int {
	for i, c := range d.ctrl {
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		st, err := c.Status(ctx, d.eps[i])
		cancel()
		if err == nil && st.Leader == st.Header.MemberId {
			return i
		}
	}
	return -1
}

func (d *etcdDriver) Connect(i, node int) (Client, error) {
	if node < 0 {
		node = i % len(d.eps)
	}
	c, err := d.dial(node)
	return etcdClient{c}, err
}

type etcdClient struct{ c *clientv3.Client }

func (c etcdClient) Close() { c.c.Close() }
func (c etcdClient) Put(ctx context.Context, k string, v []byte) error {
	_, err := c.c.Put(ctx, k, string(v))
	return err
}

func (c etcdClient) Get(ctx context.Context, k string, stale bool) error {
	var o []clientv3.OpOption
	if stale {
		o = append(o, clientv3.WithSerializable())
	}
	r, err := c.c.Get(ctx, k, o...)
	if err == nil && len(r.Kvs) != 1 {
		return errMissing
	}
	return err
}

func (c etcdClient) Range(ctx context.Context, from string, n int, f func(string, []byte)) (int, error) {
	r, err := c.c.Get(ctx, from, clientv3.WithRange("l"), clientv3.WithLimit(int64(n)))
	if err != nil {
		return 0, err
	}
	if f != nil {
		for _, kv := range r.Kvs {
			f(string(kv.Key), kv.Value)
		}
	}
	return len(r.Kvs), nil
}

// Load puts 100 records a transaction.
func (d *etcdDriver) Load(ctx context.Context, n int, key func(int) string, rec func(int) []byte) error {
	d.records = n
	c := d.ctrl[max(d.Leader(), 0)]
	var wg sync.WaitGroup
	var next atomic.Int64
	errs := make(chan error, 32)
	for range 32 {
		wg.Go(func() {
			for {
				i := int(next.Add(100)) - 100
				if i >= n {
					return
				}
				var ops []clientv3.Op
				for j := i; j < min(i+100, n); j++ {
					ops = append(ops, clientv3.OpPut(key(j), string(rec(j))))
				}
				if _, err := c.Txn(ctx).Then(ops...).Commit(); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// etcdPage is how many keys one request of a scan asks for.
const etcdPage = 10_000

// Tasks read all records out and sum them here; all pages of a scan are of one revision. An open page costs etcd a count of all keys behind it,
// too; closed sub-ranges are spared that, but ask for a client that knows its keys.
func (d *etcdDriver) Tasks() []Task {
	scan := func(parse func([]byte) int64, closed bool) func(context.Context) (int64, error) {
		return func(ctx context.Context) (sum int64, err error) {
			c := d.ctrl[max(d.Leader(), 0)]
			rev := int64(0)
			for i, from := 0, dataset.Key(0); ; i += etcdPage {
				o := []clientv3.OpOption{clientv3.WithRev(rev)}
				if closed {
					o = append(o, clientv3.WithRange(dataset.Key(min(i+etcdPage, d.records))))
				} else {
					o = append(o, clientv3.WithRange("l"), clientv3.WithLimit(etcdPage))
				}
				r, err := c.Get(ctx, from, o...)
				if err != nil {
					return 0, err
				}
				if rev == 0 {
					rev = r.Header.Revision
				}
				for _, kv := range r.Kvs {
					sum += parse(kv.Value)
				}
				switch {
				case closed && i+etcdPage < d.records:
					from = dataset.Key(i + etcdPage)
				case r.More:
					from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
				default:
					return sum, nil
				}
			}
		}
	}
	return []Task{
		{Name: "client scan, pages of 10k, byte-scan parse", Run: scan(dataset.ScanN, false)},
		{Name: "client scan, pages of 10k, encoding/json", Run: scan(dataset.DecodeN, false)},
		{Name: "client scan, closed sub-ranges of 10k, byte-scan parse", Run: scan(dataset.ScanN, true)},
	}
}
