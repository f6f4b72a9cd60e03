package workload

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// Who has seen something binds all who ask later, also where nobody was told that it was done: the write is still under way. Each case is
// one key, a write without an answer, and then reads one after the other, each begun when the one before was answered.
func TestReadsBindLaterReads(t *testing.T) {
	const anything = Reading(-1)
	for _, c := range []struct {
		name  string
		load  func(Keys) Workload
		reads []string // what each shows
		first Reading  // of the first read
		end   Result
		wrong string // in the finding, "" if there is none to be
	}{
		{"a list grows", func(k Keys) Workload { return NewLists(k) }, []string{"", "1;", "1;"}, Linearizable, Result{Value: "1;"}, ""},
		{"a list shrinks", func(k Keys) Workload { return NewLists(k) }, []string{"1;", ""}, Linearizable, Result{Value: "1;"}, "lacks what it should have"},
		{"a list shrinks after a stale read", func(k Keys) Workload { return NewLists(k) }, []string{"1;", ""}, Stale, Result{Value: "1;"}, "lacks what it should have"},
		{"a counter goes up", func(k Keys) Workload { return NewCounters(k) }, []string{"", "1", "1"}, anything, Result{Value: "1"}, ""},
		{"a counter goes back", func(k Keys) Workload { return NewCounters(k) }, []string{"1", ""}, anything, Result{Value: "1"}, "want 1 to 1"},
		{"a counter ends below what was seen", func(k Keys) Workload { return NewCounters(k) }, []string{"1"}, anything, Result{Value: "0"}, "ends at"},
		{"an element appears", func(k Keys) Workload { return NewSets("set/", k) }, []string{"", "in", "in"}, anything, Result{Parts: []Result{{Value: "set/{k0.1}"}}}, ""},
		{"an element goes again", func(k Keys) Workload { return NewSets("set/", k) }, []string{"in", ""}, anything, Result{Parts: []Result{{Value: "set/{k0.1}"}}}, "does not show it"},
		{"an element that was seen is lost", func(k Keys) Workload { return NewSets("set/", k) }, []string{"in"}, anything, Result{}, "is lost"},
	} {
		t.Run(c.name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 2))
			load := c.load(numbered(0))
			write := load.Next(rng, 0, false)
			for i, shows := range c.reads {
				want := c.first
				if i > 0 && want != anything {
					want = Linearizable
				}
				call := load.Next(rng, 0, true)
				for want != anything && call.Op.Reading != want { // one that fails says nothing
					call.Settle(Failed, Result{})
					call = load.Next(rng, 0, true)
				}
				call.Settle(Answered, Result{Value: shows})
			}
			write.Settle(Uncertain, Result{})
			for _, call := range load.Final() {
				call.Settle(Answered, c.end)
			}
			judge(t, load, c.wrong)
		})
	}
}

// An element that was seen to be gone stays so, whatever became of the one who took it out.
func TestGoneForEver(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	s := NewSets("set/", numbered(0))
	s.Next(rng, 0, false).Settle(Answered, Result{Done: true})
	var out Call
	for out.Op.Kind != Delete {
		out = s.Next(rng, 0, false)
	}
	read := func(shows string) {
		call := s.Next(rng, 0, true)
		for call.Op.Key != out.Op.Key {
			call = s.Next(rng, 0, true)
		}
		call.Settle(Answered, Result{Value: shows})
	}
	read("in")
	read("")
	read("in")
	out.Settle(Uncertain, Result{})
	for _, call := range s.Final() {
		call.Settle(Answered, Result{})
	}
	judge(t, s, "a read shows it")
}

// What was appended after an answer stands behind what that told.
func TestAppendsInOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	l := NewLists(numbered(0))
	l.Next(rng, 0, false).Settle(Answered, Result{Int: 4}) // behind the second, it says
	l.Next(rng, 0, false).Settle(Answered, Result{Int: 2})
	for _, call := range l.Final() {
		call.Settle(Answered, Result{Value: "2;1;"})
	}
	judge(t, l, "were there before it")
}

// Where an increment is uncertain nobody counts on: what hides behind it is no more than that one.
func TestCountersKeepSlackSmall(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	c := NewCounters(numbered(0))
	first := c.Next(rng, 0, false)
	first.Settle(Uncertain, Result{})
	if next := c.Next(rng, 0, false); next.Op.Key == first.Op.Key {
		t.Error("a counter goes on after an increment of which nobody knows")
	}
	if increments, keys := c.Slack(); increments != 1 || keys != 1 {
		t.Errorf("slack of %d increments in %d keys, want 1 in 1", increments, keys)
	}
}

// What could not be read is one line, and what is known is judged all the same.
func TestJudgedWithoutAnEnd(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	l := NewLists(numbered(0))
	l.Next(rng, 0, false).Settle(Answered, Result{Int: 2})
	l.Next(rng, 0, false).Settle(Answered, Result{Int: 4})
	l.Next(rng, 0, true).Settle(Answered, Result{Value: "2;1;"})
	l.Next(rng, 0, false).Settle(Answered, Result{Int: 6}) // nobody has looked since
	for range 400 {                                        // several lists
		l.Next(rng, 0, false).Settle(Failed, Result{})
	}
	f := &Findings{Dir: t.TempDir()}
	for _, call := range l.Final() {
		call.Settle(Failed, Result{})
	}
	l.Check(f)
	all := strings.Join(f.Faults(), "\n")
	if !strings.Contains(all, `"1;" ends at 4, the answer said 2`) {
		t.Errorf("what was seen is not judged: %s", all)
	}
	if strings.Contains(all, `"3;"`) {
		t.Errorf("accused of what nobody can know: %s", all)
	}
	if strings.Count(all, "could not be read") != 1 {
		t.Errorf("not one line about what could not be read: %s", all)
	}
}

// A run that was ended early is no violation, whatever nobody has read.
func TestPartial(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	f := &Findings{Dir: t.TempDir(), Partial: true}
	banks := NewBanks("bank/", 1, numbered(0))
	banks.Opening()[0].Settle(Answered, Result{})
	for _, load := range []Workload{NewLists(numbered(1)), NewCounters(numbered(2)), NewSets("set/", numbered(3)), NewTTLs(numbered(4)), NewRegisters(new(Order), numbered(5)), banks} {
		load.Next(rng, 0, false).Settle(Answered, Result{Int: 1, Done: true, Parts: []Result{{}, {}, {Int: 2}}})
		load.Check(f)
	}
	if faults := f.Faults(); len(faults) > 0 {
		t.Errorf("%q", faults)
	}
}

// judge checks a workload, and wants a finding that holds a text, or none.
func judge(t *testing.T, load Workload, wrong string) {
	t.Helper()
	f := &Findings{Dir: t.TempDir()}
	load.Check(f)
	all := strings.Join(f.Faults(), "\n")
	if wrong == "" && all != "" || !strings.Contains(all, wrong) {
		t.Errorf("found %q, want %q", all, wrong)
	}
}
