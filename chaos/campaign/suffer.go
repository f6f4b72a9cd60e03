//go:build linux

package campaign

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/abacusdb/abacus/chaos/lan"
)

// Faults that a node does to itself, for the machine cannot: bytes that come late, and clocks that are wrong.

// faults is what a node is told to suffer, in its --fault-file.
type faults struct {
	// DelayMS is what its bytes to each peer wait, by peer address: at least, at most, and in how long it grows from the one to
	// the other (0: it varies), in ms.
	DelayMS map[string][3]int `json:"delay_ms,omitempty"`
	// AnswerDelayMS is what its answers to each peer wait, by the peer's host.
	AnswerDelayMS map[string][3]int `json:"answer_delay_ms,omitempty"`
	// Cut are the addresses of peers that nothing reaches.
	Cut []string `json:"cut,omitempty"`
	// ClockOffsetMS is how wrong its wall clock is, and ClockRate how fast it runs (0: as it should).
	ClockOffsetMS int64   `json:"clock_offset_ms,omitempty"`
	ClockRate     float64 `json:"clock_rate,omitempty"`
}

// faultsNoticed is how long it may take until a node has read its file.
const faultsNoticed = 300 * time.Millisecond

func writeFaults(path string, f faults) error {
	data, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".tmp", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

func (s *siege) suffer(detail string, nodes []int, each func(n int) faults, bit func() (bool, error)) (*fault, error) {
	set := func(each func(int) faults) error {
		var errs []error
		for _, n := range nodes {
			errs = append(errs, writeFaults(s.b.faultFile(n), each(n)))
		}
		return errors.Join(errs...)
	}
	f := &fault{detail: detail, nodes: nodes, bit: bit}
	f.mend = func() error {
		err := set(func(int) faults { return faults{} })
		f.healed = time.Now()
		wait(s.ctx, faultsNoticed)
		return err
	}
	return f, set(each)
}

// delay has the bytes of a node to all others, or of all, come late.
func (s *siege) delay() (*fault, error) {
	least := 1 + s.rng.IntN(100)
	most := least + s.rng.IntN(10*least)
	most = min(most, 900)
	nodes, where := s.some(1), "all nodes"
	if s.rng.IntN(2) == 0 {
		nodes = s.order()
	} else {
		where = fmt.Sprintf("n%d", nodes[0])
	}
	late := func(int) faults {
		f := faults{DelayMS: map[string][3]int{}}
		for _, n := range s.b.c.Nodes() {
			f.DelayMS[n.Addrs().Peer] = [3]int{least, most}
		}
		return f
	}
	return s.suffer(fmt.Sprintf("%d to %d ms from %s", least, most, where), nodes, late, func() (bool, error) { return s.b.noticed(nodes) })
}

// lateThenAlone has the others' answers to a leader come ever later, until it is cut off: by what it has heard it leads on for a while, when
// another may lead already. Who would read there without asking the others, reads what was.
func (s *siege) lateThenAlone() (*fault, error) {
	n := s.leader()
	const most, grows = 850 * time.Millisecond, 4 * time.Second // below what an election waits
	var others []int
	for o := 1; o <= s.b.nodes(); o++ {
		if o != n {
			others = append(others, o)
		}
	}
	late := faults{AnswerDelayMS: map[string][3]int{s.b.net.(*lan.LAN).Addr(n): {50, int(most.Milliseconds()), int(grows.Milliseconds())}}}
	f, err := s.suffer(fmt.Sprintf("n%d hears answers up to %v late, and then nothing", n, most), others, func(int) faults { return late },
		func() (bool, error) { return s.b.noticed(others) })
	if err != nil {
		return nil, err
	}
	wait(s.ctx, grows+time.Duration(s.rng.IntN(1500))*time.Millisecond)
	cut, err := s.cut("", nil, lan.Alone(n, s.b.nodes()))
	if err != nil {
		return nil, errors.Join(err, f.end())
	}
	mend, bit := f.mend, f.bit
	f.bit = func() (bool, error) {
		one, err := bit()
		two, err2 := cut.bit()
		return one && two, errors.Join(err, err2)
	}
	f.mend = func() error {
		err := errors.Join(mend(), cut.end())
		f.healed = time.Now()
		return err
	}
	return f, nil
}

// clock has a node's wall clock be wrong, by minutes or by a year, and go too fast or too slow.
func (s *siege) clock() (*fault, error) {
	nodes := s.some(1 + s.rng.IntN(s.b.nodes()))
	off := []int64{-3_600_000, -60_000, 60_000, 3_600_000, 365 * 86_400_000}[s.rng.IntN(5)]
	rate := []float64{0.5, 0.99, 1.01, 2}[s.rng.IntN(4)]
	return s.suffer(fmt.Sprintf("%s by %v, at %v times its speed", names(nodes), time.Duration(off)*time.Millisecond, rate), nodes,
		func(int) faults { return faults{ClockOffsetMS: off, ClockRate: rate} },
		func() (bool, error) {
			read, err := s.b.noticed(nodes)
			return read && s.b.misdates(s.ctx, nodes, time.Duration(off)*time.Millisecond), err
		})
}

// noticed says whether nodes have said that they suffer what their files say: those that run, for one that another fault
// has ended notices nothing.
func (b *bed) noticed(nodes []int) (noticed bool, err error) {
	for _, n := range nodes {
		if !b.node(n).Running() {
			continue
		}
		info, err := os.Stat(b.faultFile(n))
		if err != nil {
			return false, err
		}
		seen, err := os.ReadFile(b.faultFile(n) + ".seen")
		if err != nil || string(seen) != strconv.FormatInt(info.ModTime().UnixNano(), 10) {
			return false, nil
		}
		noticed = true
	}
	return noticed, nil
}

const (
	// clockSlack is what a clock may be off from what its node was told: at twice its speed it gains as much as a fault is long.
	clockSlack = 20 * time.Second
	// clockPatience is for all nodes of a fault together to show that they are wrong.
	clockPatience = 5 * time.Second
)

// misdates says whether a node's clock is seen to be wrong by so much, from outside: of those that it is done to, one that serves.
func (b *bed) misdates(ctx context.Context, nodes []int, off time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, clockPatience)
	defer cancel()
	for {
		for _, n := range nodes {
			if got, err := b.clockError(n); err == nil && isOff(got, off) {
				return true
			}
		}
		if !wait(ctx, 200*time.Millisecond) {
			return false
		}
	}
}

func isOff(got, want time.Duration) bool { return (got - want).Abs() <= clockSlack }

// clockError is how wrong a node's wall clock is: it takes a date, and says how long a key that ends then has to live.
func (b *bed) clockError(n int) (time.Duration, error) {
	w := &worker{cs: &clients{dial: b.dial}, patience: time.Second}
	defer w.close()
	const far = 10 * 365 * 24 * time.Hour
	key := fmt.Sprintf("clock/%d", n)
	end := time.Now().Add(far)
	replies, err := w.on(b.node(n).Addrs().Client, []string{"SET", key, "x", "PXAT", strconv.FormatInt(end.UnixMilli(), 10)}, []string{"PTTL", key})
	if err == nil {
		err = errors.Join(replies[0].Err(), replies[1].Err())
	}
	if err != nil {
		return 0, err
	}
	return far - time.Duration(replies[1].Int)*time.Millisecond, nil
}
