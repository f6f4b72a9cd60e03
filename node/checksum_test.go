package node

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/time/rate"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
	"github.com/abacusdb/abacus/transport"
)

// checked has a shard checked by a node and waits for the end, as a client does.
func checked(t *testing.T, n *Node, shard sharding.ShardID) (r checkReport) {
	t.Helper()
	ask := func(verb string) (r checkReport, err error) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		text, err := n.Admin(ctx, []string{"shard", verb, fmt.Sprint(shard)})
		if err == nil {
			err = json.Unmarshal(text, &r)
		}
		return r, err
	}
	begun, err := ask("check")
	if err != nil || begun.Check == "" {
		t.Fatalf("check shard %d: %+v, %v", shard, begun, err)
	}
	until(t, fmt.Sprintf("shard %d checked", shard), func() error {
		if r, err = ask("checked"); err != nil {
			return err
		}
		switch {
		case r.Check != begun.Check: // the leader has changed, and it is lost
			begun, err = ask("check")
			return fmt.Errorf("begun anew: %w", err)
		case r.State != checkDone:
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	return r
}

// words are the results of a check by node.
func (r checkReport) words() string {
	var list []string
	for _, p := range r.Replicas {
		word := p.Node + " " + p.Result
		if p.Alarm != nil {
			word += "!"
		}
		list = append(list, word)
	}
	return strings.Join(list, ", ")
}

// Replicas of all shards are found equal while clients write, asked at any node; a second look finds them equal at a later index; and when one is down, it is
// not compared, which is no mismatch.
func TestCheckFindsEqual(t *testing.T) {
	nodes, _ := three(t)
	untilBalanced(t, nodes[0])
	ctx, stop := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	defer writers.Wait()
	defer stop()
	writers.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			put(t, nodes[i%3], fmt.Sprintf("k%d", i%500), fmt.Sprint(i))
		}
	})
	for shard := range sharding.ShardID(3) {
		first := checked(t, nodes[shard], shard)
		again := checked(t, nodes[0], shard)
		for _, r := range []checkReport{first, again} {
			if r.Result != checkEqual || r.words() != "n1 equal, n2 equal, n3 equal" || r.Error != "" || r.Index == 0 || r.Replicas[0].Hash == "" || r.Replicas[0].Records != r.Replicas[2].Records {
				t.Errorf("shard %d: %+v", shard, r)
			}
		}
		if again.Index <= first.Index || again.Check == first.Check {
			t.Errorf("shard %d: the second look is the first: %+v, %+v", shard, first, again)
		}
	}
	stop()
	writers.Wait()
	if live := nodes[0].Replica(0).Pins().Live + nodes[1].Replica(1).Pins().Live; live != 0 {
		t.Errorf("%d pins are left", live)
	}

	// Over HTTP, at a node that may lead nothing of it.
	url := "http://" + nodes[1].Addrs().HTTP + "/v1/shards/0/check"
	resp, err := http.Post(url, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK || !strings.Contains(string(text), `"check":"`) {
		t.Errorf("POST: %s %s", resp.Status, text)
	}
	until(t, "the check that was asked for over HTTP", func() error {
		resp, err := http.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if text, _ := io.ReadAll(resp.Body); !strings.Contains(string(text), `"result":"equal"`) {
			return fmt.Errorf("%s %s", resp.Status, text)
		}
		return nil
	})

	if err := nodes[2].Close(); err != nil {
		t.Fatal(err)
	}
	r := checked(t, nodes[0], 1)
	if r.Result != checkEqual || r.words() != "n1 equal, n2 equal, n3 not compared" || r.Replicas[2].Why == "" {
		t.Errorf("with n3 down: %+v", r)
	}
}

// alter changes a value in a replica's state file behind its back, with a checksum that is right.
func alter(t *testing.T, dir string, slot sharding.Slot, key, to string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "state", "state-*.db"))
	if err != nil || len(files) != 1 {
		t.Fatalf("state files %v, %v", files, err)
	}
	db, err := bolt.Open(files[0], 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	name := append(binary.BigEndian.AppendUint16(nil, slot), key...)
	if err := db.Update(func(tx *bolt.Tx) error {
		row := slices.Clone(tx.Bucket([]byte("keys")).Get(name))
		if len(row) < len(to) {
			return fmt.Errorf("row %x", row)
		}
		copy(row[len(row)-len(to):], to)
		table := crc32.MakeTable(crc32.Castagnoli)
		binary.BigEndian.PutUint32(row, crc32.Update(crc32.Checksum(name, table), table, row[4:]))
		return tx.Bucket([]byte("keys")).Put(name, row)
	}); err != nil {
		t.Fatal(err)
	}
}

// A replica that holds another value than the others, with a checksum that is right, is found and named: in the report, in the status of every node, in a metric, beside
// readiness. A change of the leader does not take that away, nor does the replica's being down; that it is made anew, as the runbook says, and found equal does.
func TestCheckFindsMismatch(t *testing.T) {
	nodes, cfgs := three(t)
	untilBalanced(t, nodes[0])
	fill(t, nodes[0], "a")
	key := "a1"
	slot, shard := nodes[0].Router().Locate([]byte(key))
	for i := 2; nodes[0].Router().PreferredLeader(shard) != "n3"; i++ { // the worst case: n3 would lead it
		key = fmt.Sprint("a", i)
		slot, shard = nodes[0].Router().Locate([]byte(key))
	}
	id, dir := replicaPath(t, nodes[2], shard)
	cfgs[2] = stopped(t, nodes[2], cfgs[2])
	alter(t, dir, slot, key, "w")
	nodes[2] = open(t, cfgs[2])
	untilHealthy(t, nodes...)

	wrong := "does not hold what the others hold"
	named := func(what string) {
		t.Helper()
		for _, n := range nodes[:2] {
			until(t, what+", seen by "+n.cfg.ID, func() error {
				s := n.clusterStatus()
				problems := strings.Join(s.Problems, "\n")
				if s.Healthy || strings.Count(problems, wrong) != 1 || !strings.Contains(problems, fmt.Sprintf("shard %d: ", shard)) || !strings.Contains(problems, fmt.Sprintf("replica %s on node n3 ", id)) {
					return fmt.Errorf("problems %q", s.Problems)
				}
				return nil
			})
		}
	}
	r := checked(t, nodes[0], shard)
	if r.Result != checkMismatch || r.words() != "n1 equal, n2 equal, n3 differs!" || r.Replicas[2].Replica != id || r.Replicas[2].Hash == r.Replicas[0].Hash {
		t.Fatalf("found: %+v", r)
	}
	named("n3 is named")
	for other := range sharding.ShardID(3) {
		if other == shard {
			continue
		}
		if r := checked(t, nodes[0], other); r.Result != checkEqual {
			t.Errorf("shard %d: %+v", other, r)
		}
	}
	until(t, "n3 says it of itself", func() error {
		code, text := httpGet(t, nodes[2], "/readyz")
		if code != 200 || !strings.Contains(text, wrong) {
			return fmt.Errorf("%d %s", code, text)
		}
		return nil
	})
	metric := fmt.Sprintf("abacus_replica_mismatch{shard=\"%d\"} 1", shard)
	until(t, "the metric says so", func() error {
		for _, n := range nodes {
			if _, text := httpGet(t, n, "/metrics"); strings.Contains(text, metric) {
				return nil
			}
		}
		return fmt.Errorf("no node has %s", metric)
	})

	// It is not to lead: clients would read what it holds. Whoever has it lead, has it for a moment.
	follows := func() error {
		if leader := nodes[0].Leader(shard); leader == "" || leader == "n3" || nodes[2].Replica(shard).IsLeader() {
			return fmt.Errorf("%q leads", leader)
		}
		return nil
	}
	leading := func() (led *Node) { // and ready: who was just elected is not
		t.Helper()
		until(t, "another leads", func() error {
			i := slices.IndexFunc(nodes[:2], func(n *Node) bool { return n.Replica(shard).IsLeader() })
			if i < 0 {
				return errors.New("neither n1 nor n2 leads")
			}
			led = nodes[i]
			return nil
		})
		return led
	}
	until(t, "n3 follows", follows)
	var term uint64
	until(t, "n3 is to lead", func() error {
		leader := leading().Replica(shard)
		term = leader.Status().Term
		return leader.TransferLeadership(t.Context(), id)
	})
	until(t, "n3 follows again", func() error {
		if now := nodes[0].Replica(shard).Status().Term; now < term+2 {
			return fmt.Errorf("term %d, it was %d", now, term)
		}
		return follows()
	})

	// Another leader knows it.
	led := leading()
	to, ok := led.successor(led.Replica(shard))
	if !ok {
		t.Fatal("there is no successor")
	}
	moveAway(t, led.Replica(shard), to)
	until(t, "another leads, and knows what was found", func() error {
		text, err := nodes[0].Admin(t.Context(), []string{"shard", "checked", fmt.Sprint(shard)})
		if err != nil || led.Replica(shard).IsLeader() || !strings.Contains(string(text), r.Check) {
			return fmt.Errorf("%s, %v", text, err)
		}
		return nil
	})
	named("n3 is named by the next leader")

	// Down it is not compared, and still named.
	cfgs[2] = stopped(t, nodes[2], cfgs[2])
	if r := checked(t, nodes[0], shard); r.Result != checkEqual || r.words() != "n1 equal, n2 equal, n3 not compared!" {
		t.Errorf("with n3 down: %+v", r)
	}
	named("n3 is named while it is down")

	// The runbook: the state is marked as damaged, and given anew by the others.
	files, err := filepath.Glob(filepath.Join(dir, "state", "state-*.db"))
	if err != nil || len(files) != 1 {
		t.Fatalf("state files %v, %v", files, err)
	}
	if err := os.WriteFile(files[0]+".damaged", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	nodes[2] = open(t, cfgs[2])
	until(t, "n3 has its replica again", func() error {
		if nodes[2].Replica(shard) == nil || len(nodes[2].repairs.all()) > 0 {
			return fmt.Errorf("repairs: %v", nodes[2].repairs.all())
		}
		return nil
	})
	named("n3 is named until it is found equal")
	if r := checked(t, nodes[0], shard); r.Result != checkEqual || r.words() != "n1 equal, n2 equal, n3 equal" {
		t.Errorf("after n3 was made anew: %+v", r)
	}
	untilHealthy(t, nodes...)
	if aside, _ := filepath.Glob(filepath.Join(dir, "state.damaged-*")); len(aside) != 1 {
		t.Errorf("what the replica held is not put aside: %v", aside)
	}
}

// moveAway has another lead st's shard: to, or whoever an election chose meanwhile.
func moveAway(t *testing.T, st *store.Store, to string) {
	t.Helper()
	until(t, "another is to lead", func() error {
		if !st.IsLeader() {
			return nil
		}
		return st.TransferLeadership(t.Context(), to)
	})
}

func httpGet(t *testing.T, n *Node, path string) (int, string) {
	t.Helper()
	resp, err := http.Get("http://" + n.Addrs().HTTP + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// A check waits for another of its leader's, is joined by whoever asks meanwhile, and is lost if its leader goes while replicas are hashed: the next one's has
// another name, and it can be begun anew. A replica cannot be asked about a pin that it does not have.
func TestCheckLosesLeader(t *testing.T) {
	nodes, _ := three(t)
	untilBalanced(t, nodes[0])
	fill(t, nodes[0], "a")
	i := slices.IndexFunc(nodes, func(n *Node) bool { return n.Replica(1).IsLeader() })
	led, st := nodes[i], nodes[i].Replica(1)
	led.checks.turn <- struct{}{} // as if another shard were checked
	ask := func(n *Node, verb string) (r checkReport) {
		t.Helper()
		text, err := n.Admin(t.Context(), []string{"shard", verb, "1"})
		if err != nil || json.Unmarshal(text, &r) != nil {
			t.Fatalf("shard %s 1: %s, %v", verb, text, err)
		}
		return r
	}
	waits := ask(nodes[(i+1)%3], "check")
	if joined := ask(led, "check"); waits.State != checkWaiting || joined.Check != waits.Check {
		t.Fatalf("begun %+v, and again %+v", waits, joined)
	}
	for _, n := range nodes { // none may read before the leader has gone
		n.checks.budget.SetLimit(rate.Every(24 * time.Hour))
		n.checks.budget.AllowN(time.Now(), checkPiece)
	}
	<-led.checks.turn
	until(t, "the check is under way", func() error {
		if r := ask(led, "check"); r.Check != waits.Check || r.State != checkRunning || r.Index == 0 {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	to, ok := led.successor(st)
	if !ok {
		t.Fatal("there is no successor")
	}
	moveAway(t, st, to)
	until(t, "the next leader knows nothing of it", func() error {
		text, err := nodes[0].Admin(t.Context(), []string{"shard", "checked", "1"})
		if err != nil || st.IsLeader() || strings.Contains(string(text), waits.Check) {
			return fmt.Errorf("%s, %v", text, err)
		}
		return nil
	})
	for _, n := range nodes {
		n.checks.budget.SetLimit(checkRate)
	}
	if r := checked(t, led, 1); r.Result != checkEqual || r.Check == waits.Check {
		t.Errorf("%+v", r)
	}
	_, err := led.hashPiece(t.Context(), hashRequest{Shard: 1, Pin: 99, Index: 1})
	if transport.CodeOf(err) != transport.CodeNoPin {
		t.Errorf("a pin that never was: %v", err)
	}
}

// What is asked of no shard, or in a cluster whose nodes cannot all pin, is refused in words; and nothing is begun by itself there.
func TestCheckRefuses(t *testing.T) {
	cfg := testConfig(t, "n1")
	cfg.Bootstrap, cfg.Replicas = true, 1
	n := open(t, cfg)
	untilHealthy(t, n)
	if r := checked(t, n, 2); r.Result != checkNotCompared || r.words() != "n1 alone" {
		t.Errorf("one replica: %+v", r)
	}
	for words, want := range map[string]struct {
		code transport.Code
		text string
	}{
		"shard check":     {transport.CodeBadRequest, "want shard check SHARD"},
		"shard check x":   {transport.CodeBadRequest, "want a number"},
		"shard check 7":   {transport.CodeNotFound, "no shard 7"},
		"shard checked 7": {transport.CodeNotFound, "no shard 7"},
	} {
		_, err := n.Admin(t.Context(), strings.Fields(words))
		if transport.CodeOf(err) != want.code || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%s: %v", words, err)
		}
	}
	if text, err := n.Admin(t.Context(), []string{"shard", "checked", "1"}); err != nil || !strings.Contains(string(text), `"check":""`) {
		t.Errorf("never checked: %s, %v", text, err)
	}
	if _, err := n.handleChecksum(t.Context(), "n2", []byte("\x01{}")); transport.CodeOf(err) != transport.CodeBadRequest {
		t.Errorf("nothing is asked: %v", err)
	}
	low := n.Router().Map().Clone()
	low.Level, low.Epoch = sharding.LevelPins-1, low.Epoch+1000
	n.router.Store(sharding.NewRouter(low))
	_, err := n.Admin(t.Context(), []string{"shard", "check", "1"})
	if want := (&sharding.LevelError{Has: low.Level, Needs: sharding.LevelPins}).Error(); transport.CodeOf(err) != transport.CodeRefused || !strings.Contains(err.Error(), want) {
		t.Errorf("at level %d: %v", low.Level, err)
	}
}

// TestUntilCheck: what keeps a check that is overdue from being made.
func TestUntilCheck(t *testing.T) {
	overdue := checkReport{Check: "long ago", BeganMillis: 1}
	for name, tc := range map[string]struct {
		level   int
		every   time.Duration
		running time.Duration
		e       shardChecks
		least   time.Duration
		most    time.Duration
	}{
		"nothing":          {sharding.LevelPins, time.Minute, time.Hour, shardChecks{judged: overdue}, -1 << 62, 0},
		"the level":        {sharding.LevelPins - 1, time.Minute, time.Hour, shardChecks{judged: overdue}, checkLook, checkLook},
		"it never is":      {sharding.LevelPins, 0, time.Hour, shardChecks{judged: overdue}, checkLook, checkLook},
		"one that failed":  {sharding.LevelPins, time.Minute, time.Hour, shardChecks{judged: overdue, failed: time.Now()}, 50 * time.Second, time.Minute},
		"failed long ago":  {sharding.LevelPins, time.Minute, time.Hour, shardChecks{judged: overdue, failed: time.Now().Add(-time.Hour)}, -1 << 62, 0},
		"a start":          {sharding.LevelPins, time.Hour, 0, shardChecks{judged: overdue}, 2 * time.Minute, 150 * time.Second},
		"made just now":    {sharding.LevelPins, 24 * time.Hour, 24 * time.Hour, shardChecks{judged: checkReport{Check: "c", BeganMillis: time.Now().UnixMilli()}}, 1, checkLook},
		"never, and up to": {sharding.LevelPins, time.Minute, time.Hour, shardChecks{}, -1 << 62, 0},
	} {
		cfg := DefaultConfig()
		cfg.CheckInterval, cfg.Now = tc.every, time.Now
		n := &Node{cfg: cfg, checks: newChecks(), started: time.Now().Add(-tc.running)}
		n.router.Store(sharding.NewRouter(sharding.Map{Level: tc.level, Shards: []sharding.Shard{{}, {ID: 1}}}))
		if wait := n.untilCheck(1, &tc.e); wait < tc.least || wait > tc.most {
			t.Errorf("%s: %v", name, wait)
		}
	}
}

// A shard is compared by itself when it is due, and then not before the next time.
func TestCheckBySchedule(t *testing.T) {
	cfg := testConfig(t, "n1")
	cfg.Bootstrap, cfg.Replicas, cfg.Shards = true, 1, 1
	cfg.CheckInterval = time.Minute
	n := open(t, cfg)
	untilHealthy(t, n)
	report := checkReport{Check: "yesterday", BeganMillis: time.Now().Add(-24 * time.Hour).UnixMilli(), State: checkDone}
	if err := saveCheck(t.Context(), n.Replica(0), report); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Bootstrap = false
	n = open(t, cfg)
	until(t, "what is overdue is compared", func() error {
		if r := n.checks.last(0); r.Check == "" || r.Check == "yesterday" {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	first := n.checks.last(0)
	if wait := n.untilCheck(0, &shardChecks{judged: first}); wait <= 0 || wait > time.Minute {
		t.Errorf("the next is due in %v", wait)
	}
}

// Replicas are found equal after slots have moved, and after one has been started anew: whether it has its state from its file, from the log, or from another.
func TestCheckAfterSlotsMoved(t *testing.T) {
	nodes, cfgs := three(t)
	fill(t, nodes[0], "a")
	if _, err := nodes[0].Admin(t.Context(), []string{"shard", "split", "0"}); err != nil {
		t.Fatal(err)
	}
	until(t, "the shard is split", func() error {
		m := nodes[1].Router().Map()
		if len(m.Shards) != 4 || len(m.SlotMoves) > 0 {
			return fmt.Errorf("%d shards, moves %v", len(m.Shards), m.SlotMoves)
		}
		return nil
	})
	untilHealthy(t, nodes...)
	cfgs[2] = stopped(t, nodes[2], cfgs[2])
	fill(t, nodes[0], "b")
	nodes[2] = open(t, cfgs[2])
	untilHealthy(t, nodes...)
	wantAll(t, "a", nodes...)
	for shard := range sharding.ShardID(4) {
		if r := checked(t, nodes[shard%3], shard); r.words() != "n1 equal, n2 equal, n3 equal" {
			t.Errorf("shard %d: %+v", shard, r)
		}
	}
}
