//go:build tools

package chaos_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/abacusdb/abacus/chaos/load"
	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/transport/resp"
)

// TestToolsSplit shows a cluster of four shards that are all split, twice, and whose slots then go back and forth, while clients work: they write keys, registers and
// counters, move money in transactions, write keys that end, scan, run jobs and make backups. No operation fails, none takes more than five seconds, none is lost or counted
// twice; jobs are exact; a scan has every key that was there all the time, once; keys end when they should; and in the end replicas and leaders are even.
func TestToolsSplit(t *testing.T) {
	c := startCluster(t, proc.Config{Nodes: 3, Shards: 4, Replicas: 3})
	u := &splitUsers{t: t, c: c, cl: open(t, c), dir: t.TempDir(), stop: make(chan struct{})}
	u.prepare()
	l := load.Start(open(t, c), load.Config{Prefix: "split/", Writers: 4, Pause: 5 * time.Millisecond})
	t.Cleanup(l.Stop)
	l.Tally(true)
	for _, work := range []func(){u.transfer, u.end, u.scan, u.jobs, u.backup, u.freezes} {
		u.wg.Go(func() {
			for !u.stopped() {
				work()
			}
		})
	}
	stop := sync.OnceFunc(func() { close(u.stop); u.wg.Wait() })
	t.Cleanup(stop)
	progress(t, l, "before anything moves", 300, 30*time.Second)

	for _, shards := range []int{8, 16} {
		began := time.Now()
		u.say("shard", "split", "all")
		eventually(t, 3*time.Minute, fmt.Sprintf("%d shards", shards), func() bool { return u.owning() == shards })
		t.Logf("%d shards own slots after %v", shards, time.Since(began).Round(time.Millisecond))
		progress(t, l, fmt.Sprintf("with %d shards", shards), 300, 30*time.Second)
	}
	const moves = 8
	for i := range moves {
		s, err := u.cl.Status(timeout(t, 10*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		from, to := s.Shards[i*3%16], s.Shards[(i*5+1)%16]
		if from.ID == to.ID {
			to = s.Shards[(i*5+2)%16]
		}
		slots, _, _ := strings.Cut(from.Slots, ",")
		u.say("slots", "move", slots, fmt.Sprint(to.ID))
		eventually(t, time.Minute, "slots "+slots+" are away", func() bool { return u.owns(to.ID, slots) })
		u.say("slots", "move", slots, fmt.Sprint(from.ID))
		eventually(t, time.Minute, "slots "+slots+" are back", func() bool { return u.owns(from.ID, slots) })
	}
	u.say("rebalance", "once")
	why := ""
	defer func() {
		if t.Failed() {
			t.Log("uneven: " + why)
		}
	}()
	eventually(t, 2*time.Minute, "all is even", func() bool { why = uneven(t, c.Node(1), 3, 16, 3); return why == "" })
	progress(t, l, "in the end", 300, 30*time.Second)
	stop()
	t.Logf("the slowest write took %v, the slowest of the rest %v (%s); %d transfers, %d keys that ended, %d scans, %d jobs, %d backups; slots were frozen for %v at most",
		l.Tally(false).Slowest, u.slowest, u.what, u.transfers, u.ended, u.scans, u.jobsDone, u.backups, u.frozen)
	within(t, l)
	check(t, c, l)
	for _, f := range u.wrong {
		t.Error(f)
	}
	if u.slowest > splitPatience {
		t.Errorf("%s took %v", u.what, u.slowest)
	}
	if u.transfers < 100 || u.ended < 20 || u.scans < 10 || u.jobsDone < 10 || u.backups < 3 || u.frozen == 0 {
		t.Error("too little was done: this shows nothing")
	}
	u.restored()
}

// splitPatience is what an operation may take while slots move.
const splitPatience = 5 * time.Second

const (
	banks, bankMoney = 40, 1000
	stableKeys       = 3000
)

// splitUsers are the clients beside the writers. Their counts belong to their goroutines, and to the test when these have ended; mu is for what they share.
type splitUsers struct {
	t    *testing.T
	c    *proc.Cluster
	cl   *client.Client
	dir  string // of backups
	stop chan struct{}
	wg   sync.WaitGroup

	transfers, ended, scans, jobsDone, backups int
	uneven                                     int // backups that found no moment at which every slot was in one shard
	raw                                        *rawUser
	dying                                      []dyingKey
	frozen                                     time.Duration

	mu      sync.Mutex
	slowest time.Duration
	what    string // that was slowest
	wrong   []string
}

type dyingKey struct {
	key         string
	began, born time.Time // the write began, and was answered
}

func (u *splitUsers) stopped() bool {
	select {
	case <-u.stop:
		return true
	default:
		return false
	}
}

func (u *splitUsers) accuse(format string, args ...any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.wrong) < 20 {
		u.wrong = append(u.wrong, fmt.Sprintf(format, args...))
	}
}

// do carries out one operation, which must succeed, and notes how long it took. limit is for those that are many in one.
func (u *splitUsers) do(what string, limit time.Duration, f func(context.Context) error) bool {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	began := time.Now()
	err := f(ctx)
	took := time.Since(began)
	if err != nil {
		u.accuse("%s failed after %v: %v", what, took, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if took > u.slowest {
		u.slowest, u.what = took, what
	}
	return err == nil
}

func (u *splitUsers) say(words ...string) {
	u.t.Helper()
	if _, err := u.cl.Admin(timeout(u.t, 20*time.Second), words...); err != nil {
		u.t.Fatalf("%v: %v", words, err)
	}
}

// owning is how many shards own slots, 0 if any still move.
func (u *splitUsers) owning() (n int) {
	s, err := u.cl.Status(timeout(u.t, 5*time.Second))
	if err != nil || len(s.SlotMoves) > 0 {
		return 0
	}
	for _, sh := range s.Shards {
		if sh.Slots != "" {
			n++
		}
	}
	return n
}

// owns says whether a shard owns a range of slots, and no slots move.
func (u *splitUsers) owns(shard uint32, slots string) bool {
	s, err := u.cl.Status(timeout(u.t, 5*time.Second))
	if err != nil || len(s.SlotMoves) > 0 {
		return false
	}
	first, _, _ := strings.Cut(slots, "-")
	wanted, _ := strconv.Atoi(first)
	for _, sh := range s.Shards {
		for run := range strings.SplitSeq(sh.Slots, ",") {
			a, b, _ := strings.Cut(run, "-")
			from, err1 := strconv.Atoi(a)
			to, err2 := strconv.Atoi(b)
			if errors.Join(err1, err2) == nil && from <= wanted && wanted <= to {
				return sh.ID == shard
			}
		}
	}
	return false
}

func stableKey(i int) string          { return fmt.Sprintf("stable/%d", i) }
func accountKey(bank, n int) string   { return fmt.Sprintf("bank/{b%d}/%d", bank, n) }
func (u *splitUsers) put(k, v string) { u.must(u.cl.Put(timeout(u.t, 10*time.Second), k, []byte(v))) }
func (u *splitUsers) must(err error) {
	u.t.Helper()
	if err != nil {
		u.t.Fatal(err)
	}
}

func (u *splitUsers) prepare() {
	var cmds []client.Cmd
	for i := range stableKeys {
		cmds = append(cmds, client.Command("SET", stableKey(i), strconv.Itoa(i)))
	}
	for _, r := range u.cl.DoMulti(timeout(u.t, 30*time.Second), cmds) {
		u.must(r.Err)
	}
	for b := range banks {
		u.put(accountKey(b, 0), strconv.Itoa(bankMoney))
		u.put(accountKey(b, 1), strconv.Itoa(bankMoney))
	}
	raw, err := dialRaw(u.c.Node(2).Addrs().Client)
	u.must(err)
	u.t.Cleanup(func() { _ = raw.nc.Close() })
	u.raw = raw
}

// transfer moves money in a bank, and sees that none is lost.
func (u *splitUsers) transfer() {
	b, sum := u.transfers%banks, 1+u.transfers%7
	from, to := accountKey(b, u.transfers%2), accountKey(b, 1-u.transfers%2)
	u.transfers++
	u.do("a transfer", splitPatience, func(context.Context) error {
		left, err := u.raw.multi([]string{"INCRBY", from, strconv.Itoa(-sum)}, []string{"INCRBY", to, strconv.Itoa(sum)})
		if err == nil && left[0]+left[1] != 2*bankMoney {
			u.accuse("bank %d has %d and %d, want %d together", b, left[0], left[1], 2*bankMoney)
		}
		return err
	})
}

// end writes a key that ends, and looks at those written before.
func (u *splitUsers) end() {
	const ttl, late = 3 * time.Second, 3 * time.Second // a shard's clock stands still while nobody leads it
	key, before := fmt.Sprintf("ttl/%d", u.ended+len(u.dying)), time.Now()
	if u.do("a write of a key that ends", splitPatience, func(ctx context.Context) error {
		_, err := u.cl.PutWith(ctx, key, []byte("x"), client.PutOptions{TTL: ttl})
		return err
	}) {
		u.dying = append(u.dying, dyingKey{key, before, time.Now()})
	}
	there := func(k string) (there bool) {
		u.do("a read of a key that ends", splitPatience, func(ctx context.Context) error {
			_, err := u.cl.Get(ctx, k)
			if there = err == nil; errors.Is(err, client.ErrNotFound) {
				return nil
			}
			return err
		})
		return there
	}
	if len(u.dying) > 0 {
		if d := u.dying[len(u.dying)/2]; !there(d.key) && time.Since(d.began) < ttl {
			u.accuse("%s has ended early: %v after its write began", d.key, time.Since(d.began))
		}
	}
	for len(u.dying) > 0 && time.Since(u.dying[0].born) > ttl+late {
		if there(u.dying[0].key) {
			u.accuse("%s is there %v after it was written, and was to end after %v", u.dying[0].key, time.Since(u.dying[0].born), ttl)
		}
		u.dying = u.dying[1:]
		u.ended++
	}
	time.Sleep(20 * time.Millisecond)
}

// scan looks for all keys that are there all the time.
func (u *splitUsers) scan() {
	u.do("a scan", 4*splitPatience, func(ctx context.Context) error {
		seen := map[string]int{}
		for key, err := range u.cl.Scan(ctx, client.ScanOptions{Prefix: "stable/"}) {
			if err != nil {
				return err
			}
			seen[key]++
		}
		for i := range stableKeys {
			if seen[stableKey(i)] == 0 {
				u.accuse("a scan has not seen %s, one of %d keys, and %d were seen", stableKey(i), stableKeys, len(seen))
				break
			}
		}
		return nil
	})
	u.scans++
}

// jobs counts the money, and the keys that are there all the time.
func (u *splitUsers) jobs() {
	for _, j := range []struct {
		prefix string
		want   int
	}{{"bank/", 2 * banks * bankMoney}, {"stable/", stableKeys * (stableKeys - 1) / 2}} {
		u.do("a job", splitPatience, func(ctx context.Context) error {
			id, err := u.cl.SubmitJob(ctx, job.Spec{Prefix: j.prefix, As: "int", Reduce: "sum", TimeoutMillis: splitPatience.Milliseconds()})
			if err != nil {
				return err
			}
			rec, err := u.cl.JobWait(ctx, id, nil)
			if err != nil {
				return err
			}
			if rec.State != job.Succeeded || rec.Result == nil {
				return fmt.Errorf("job %s is %s: %s", id, rec.State, rec.Error)
			}
			if got := rec.Result.String(); got != strconv.Itoa(j.want) {
				u.accuse("the sum over %s is %s, want %d", j.prefix, got, j.want)
			}
			return nil
		})
		u.jobsDone++
	}
	time.Sleep(100 * time.Millisecond)
}

// backup makes one, and reads all of it. While slots move one after another it may say that it cannot; it does not leave any out.
func (u *splitUsers) backup() {
	path := u.backupPath()
	out, err := exec.Command(abacus, "--addr", strings.Join(u.c.ClientAddrs(), ","), "backup", "create", path, "--timeout", "60s").CombinedOutput()
	switch {
	case err == nil:
		if out, err := exec.Command(abacus, "backup", "verify", path).CombinedOutput(); err != nil || !strings.Contains(string(out), "the backup is whole") {
			u.accuse("backup %d: %v: %s", u.backups, err, out)
		}
		u.backups++
	case strings.Contains(string(out), "slots are moving between shards"):
		u.uneven++
	default:
		u.accuse("backup %d: %v: %s", u.backups, err, out)
	}
	time.Sleep(4 * time.Second)
}

func (u *splitUsers) backupPath() string {
	return filepath.Join(u.dir, fmt.Sprintf("%d.abk", u.backups))
}

// restored looks at what is in some of the backups: every key that was there all the time, and in each bank all of its money.
func (u *splitUsers) restored() {
	u.t.Helper()
	const some = 3
	made := u.backups
	for i := range some {
		u.backups = i * (made - 1) / (some - 1)
		other := startCluster(u.t, proc.Config{Nodes: 1, Shards: 2, Replicas: 1})
		cli(u.t, other.Node(1), "backup", "restore", u.backupPath()).must(u.t)
		cl := open(u.t, other)
		for _, ask := range []struct {
			what string
			spec job.Spec
			want int
		}{
			{"the sum of stable keys", job.Spec{Prefix: "stable/", As: job.AsInt, Reduce: job.ReduceSum}, stableKeys * (stableKeys - 1) / 2},
			{"all money", job.Spec{Prefix: "bank/", As: job.AsInt, Reduce: job.ReduceSum}, 2 * banks * bankMoney},
		} {
			rec, err := runJob(u.t, cl, ask.spec)
			if err != nil || rec.Result == nil || rec.Result.String() != strconv.Itoa(ask.want) {
				u.t.Errorf("backup %d: %s: %v (%v, %s), want %d", u.backups, ask.what, rec.Result, err, rec.Error, ask.want)
			}
		}
		for b := range banks {
			left, err := cl.MGet(timeout(u.t, 10*time.Second), accountKey(b, 0), accountKey(b, 1))
			u.must(err)
			x, errX := strconv.Atoi(string(left[0]))
			y, errY := strconv.Atoi(string(left[1]))
			if errX != nil || errY != nil || x+y != 2*bankMoney {
				u.t.Errorf("backup %d: bank %d has %q, want %d together", u.backups, b, left, 2*bankMoney)
			}
		}
		u.must(other.Kill())
	}
	u.t.Logf("%d backups were made, and %d restored; %d found slots on their way", made, some, u.uneven)
}

// freezes looks how long slots were frozen.
func (u *splitUsers) freezes() {
	for _, n := range u.c.Nodes() {
		ctx, cancel := context.WithTimeout(context.Background(), splitPatience)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.Addrs().HTTP+"/metrics", nil)
		if err == nil {
			var r *http.Response
			if r, err = http.DefaultClient.Do(req); err == nil {
				for s := bufio.NewScanner(r.Body); s.Scan(); {
					if v, ok := strings.CutPrefix(s.Text(), "abacus_slot_freeze_seconds "); ok {
						seconds, _ := strconv.ParseFloat(v, 64)
						u.frozen = max(u.frozen, time.Duration(seconds*float64(time.Second)))
					}
				}
				_ = r.Body.Close()
			}
		}
		cancel()
		if err != nil {
			u.accuse("metrics of %s: %v", n.ID(), err)
		}
	}
	time.Sleep(100 * time.Millisecond)
}

// rawUser speaks RESP on one connection, as any client for the protocol does.
type rawUser struct {
	nc net.Conn
	rd *resp.ReplyReader
}

func dialRaw(addr string) (*rawUser, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &rawUser{nc, resp.NewReplyReader(nc, resp.DefaultReplyLimits())}, nil
}

// multi is a transaction of commands that are answered with numbers.
func (r *rawUser) multi(cmds ...[]string) (numbers []int64, err error) {
	out := resp.AppendCommandStrings(nil, "MULTI")
	for _, cmd := range cmds {
		out = resp.AppendCommandStrings(out, cmd...)
	}
	out = resp.AppendCommandStrings(out, "EXEC")
	if err := r.nc.SetDeadline(time.Now().Add(2 * splitPatience)); err != nil {
		return nil, err
	}
	if _, err := r.nc.Write(out); err != nil {
		return nil, err
	}
	var last resp.Reply
	var errs []error
	for range len(cmds) + 2 {
		if last, err = r.rd.ReadReply(); err != nil {
			return nil, err
		}
		errs = append(errs, last.Err())
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(last.Elems) != len(cmds) {
		return nil, fmt.Errorf("EXEC of %d commands answers %v", len(cmds), last)
	}
	for _, e := range last.Elems {
		if err := e.Err(); err != nil {
			return nil, err
		}
		numbers = append(numbers, e.Int)
	}
	return numbers, nil
}
