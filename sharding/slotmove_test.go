package sharding

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// split is a map of three nodes with shards 0 and 1, and a split of shard 1 into 2, which n2.4 founds.
func split(t testing.TB) Map {
	t.Helper()
	m, err := StartSplit(cluster(t, 3, 2, 3), 1, "n2")
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// founded is that with shard 2 founded.
func founded(t *testing.T) Map { return must(t)(Founded(split(t), 2)) }

func TestValidateFindsFaultsOfSlotMoves(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*Map)
		want  string
	}{
		"an id not given":     {func(m *Map) { m.SlotMoves[0].ID = 2 }, "in order and from 1 to 1"},
		"no id":               {func(m *Map) { m.SlotMoves[0].ID = 0 }, "in order and from 1 to 1"},
		"an id twice":         {func(m *Map) { m.SlotMoves = append(m.SlotMoves, m.SlotMoves[0]) }, "unique"},
		"an unknown giver":    {func(m *Map) { m.SlotMoves[0].From = 9 }, "two that are there"},
		"an unknown receiver": {func(m *Map) { m.SlotMoves[0].To = 9 }, "two that are there"},
		"to itself":           {func(m *Map) { m.SlotMoves[0].To = 1 }, "two that are there"},
		"no slots":            {func(m *Map) { m.SlotMoves[0].Slots = nil }, "apart and in order"},
		"a range too far":     {func(m *Map) { m.SlotMoves[0].Slots = []SlotRange{{16000, Slots}} }, "apart and in order"},
		"ranges that touch":   {func(m *Map) { m.SlotMoves[0].Slots = []SlotRange{{9000, 9001}, {9002, 9003}} }, "apart and in order"},
		"slots of another":    {func(m *Map) { m.SlotMoves[0].Slots = []SlotRange{{8191, 8192}} }, "slot 8191 is not shard 1's"},
		"two of one slot": {func(m *Map) {
			again := m.SlotMoves[0]
			again.ID, m.LastSlotMove = 2, 2
			m.SlotMoves = append(m.SlotMoves, again)
		}, "is in another"},
		"too many":              {func(m *Map) { m.SlotMoves = make([]SlotMove, MaxSlotMoves+1) }, "must be at most 1024"},
		"a founder of no shard": {func(m *Map) { m.Shards[2].Founding = "n1.4" }, "its only replica"},
		"a founder and another": {func(m *Map) { m.Shards[2].Replicas = append(m.Shards[2].Replicas, Replica{"n1.4", "n1"}) }, "its only replica"},
		"slots and no group": {func(m *Map) {
			m.Shards[1].Slots[0].To--
			m.Shards[2].Slots, m.SlotMoves = []SlotRange{{16383, 16383}}, nil
		}, "before it is founded"},
	} {
		t.Run(name, func(t *testing.T) {
			m := split(t)
			if err := m.Validate(); err != nil {
				t.Fatal(err)
			}
			tc.spoil(&m)
			var me *MapError
			if err := m.Validate(); !errors.As(err, &me) || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want a MapError with %q", err, tc.want)
			}
		})
	}
}

func TestSlotMoveTransitions(t *testing.T) {
	young, old := split(t), founded(t)
	cancelled, err := CancelSlotMove(old, 1)
	if err != nil {
		t.Fatal(err)
	}
	give := func(m *Map) { m.hand(m.SlotMoves[0]) }
	end := func(m *Map) { m.forget(1) }
	come := func(m *Map, s Shard) { m.Shards = append(m.Shards, s) }
	fresh := func(m *Map) Shard {
		r := Replica{replicaID("n1", m.Epoch), "n1"}
		return Shard{ID: 3, Slots: []SlotRange{}, Replicas: []Replica{r}, Founding: r.ID}
	}
	for name, tc := range map[string]struct {
		old    Map
		change func(*Map)
		want   string // "": legal
	}{
		"it ends, and hands over":           {old, func(m *Map) { give(m); end(m) }, ""},
		"cancelled, and hands over":         {cancelled, func(m *Map) { give(m); end(m) }, ""},
		"cancelled, and ends":               {cancelled, end, ""},
		"it ends":                           {old, end, "must be cancelled first"},
		"it ends before it is founded":      {young, end, ""},
		"it hands over and stays":           {old, give, "is not shard 1's"},
		"slots go without it":               {old, func(m *Map) { m.Shards[0].Slots[0].To--; m.Shards[1].Slots[0].From-- }, "no slot move ends"},
		"other slots go":                    {old, func(m *Map) { m.Shards[0].Slots[0].To--; m.Shards[1].Slots[0].From--; end(m) }, "not by slot move 1"},
		"more slots go":                     {old, func(m *Map) { m.hand(SlotMove{From: 1, To: 2, Slots: []SlotRange{{9000, 16383}}}); end(m) }, "not by slot move 1"},
		"fewer slots go":                    {old, func(m *Map) { m.hand(SlotMove{From: 1, To: 2, Slots: []SlotRange{{16383, 16383}}}); end(m) }, "not by slot move 1"},
		"to another shard":                  {old, func(m *Map) { mv := m.SlotMoves[0]; mv.To = 0; m.hand(mv); end(m) }, "not by slot move 1"},
		"another slot":                      {old, func(m *Map) { m.SlotMoves[0].Slots[0].From++ }, "becomes another"},
		"another receiver":                  {old, func(m *Map) { m.SlotMoves[0].To = 0 }, "becomes another"},
		"another number":                    {old, func(m *Map) { m.SlotMoves[0].ID = 2; m.LastSlotMove = 2 }, "must be cancelled first"},
		"it pauses":                         {old, func(m *Map) { m.SlotMoves[0].Paused = true }, ""},
		"it is not cancelled after all":     {cancelled, func(m *Map) { m.SlotMoves[0].Cancelled = false }, "not taken back"},
		"a number is left out":              {old, func(m *Map) { m.LastSlotMove++ }, "must be 1, with 0 that begin"},
		"numbers begin again":               {cancelled, func(m *Map) { end(m); m.LastSlotMove = 0 }, "must be 1"},
		"founded again":                     {old, func(m *Map) { m.Shards[2].Founding = "n2.4" }, "founded anew"},
		"founded, and its founder is gone":  {young, func(m *Map) { m.Shards[2].Replicas[0] = Replica{"n2.5", "n2"}; m.Shards[2].Founding = "" }, "is not in it"},
		"another founder on the node":       {young, func(m *Map) { m.Shards[2].Replicas[0].ID = "n2.5"; m.Shards[2].Founding = "n2.5" }, ""},
		"another founder elsewhere":         {young, func(m *Map) { m.Shards[2].Replicas[0] = Replica{"n1.5", "n1"}; m.Shards[2].Founding = "n1.5" }, "one change a step"},
		"the only replica of a group":       {old, func(m *Map) { m.Shards[2].Replicas[0].ID = "n2." + fmt.Sprint(m.Epoch) }, "it cannot be replaced"},
		"a shard comes for no move":         {old, func(m *Map) { come(m, fresh(m)) }, "no slot move to it begins"},
		"a shard comes founded":             {old, func(m *Map) { s := fresh(m); s.Founding = ""; come(m, s) }, "nobody founds it"},
		"a shard comes with an old replica": {old, func(m *Map) { s := fresh(m); s.Replicas[0].ID, s.Founding = "n1.2", "n1.2"; come(m, s) }, "must end in the new epoch"},
		"a shard comes below others": {gap(old), func(m *Map) {
			s := fresh(m)
			m.Shards = slices.Insert(m.Shards, 3, s)
		}, "its id must be above 9"},
		"a shard goes": {cancelled, func(m *Map) { end(m); m.Shards = m.Shards[:2] }, "shard 2 is gone"},
	} {
		t.Run(name, func(t *testing.T) {
			next := tc.old.Clone()
			next.Epoch++
			tc.change(&next)
			err := ValidateTransition(tc.old, next)
			switch {
			case tc.want == "" && err != nil:
				t.Fatal(err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Fatalf("got %v, want %q", err, tc.want)
			}
		})
	}
	// Two ends in one step could hide each other.
	two, err := StartSlotMove(old, SlotRange{0, 9}, 1)
	if err != nil {
		t.Fatal(err)
	}
	next := two.Clone()
	next.Epoch++
	next.hand(next.SlotMoves[0])
	next.SlotMoves = nil
	if err := ValidateTransition(two, next); err == nil || !strings.Contains(err.Error(), "one a step") {
		t.Errorf("two end: %v", err)
	}
}

// gap is a map with an empty shard 9 after the others.
func gap(m Map) Map {
	m = m.Clone()
	s := m.Shards[2]
	s.ID = 9
	m.Shards = append(m.Shards, s)
	return m
}

// What cannot be done says so with a type, and changes nothing.
func TestSlotMovesRefuse(t *testing.T) {
	one := cluster(t, 1, MaxShards, 1)
	low := cluster(t, 3, 2, 3)
	low.Level = LevelFirst
	cordoned := must(t)(CordonNode(cluster(t, 3, 2, 3), "n2"))
	asSlots, asNode, asLevel := new(*SlotsError), new(*NodeError), new(*LevelError)
	for name, c := range map[string]struct {
		err  func() (Map, error)
		as   any
		want string
	}{
		"more shards":      {func() (Map, error) { return StartSplit(one, 3, "n1") }, asSlots, "there are 1024 shards"},
		"all and no room":  {func() (Map, error) { return StartSplits(one, func(ShardID) NodeID { return "n1" }) }, asSlots, "there are 1024 shards"},
		"on a cordoned":    {func() (Map, error) { return StartSplit(cordoned, 1, "n2") }, asNode, "uncordon it first"},
		"an older cluster": {func() (Map, error) { return StartSplit(low, 1, "n2") }, asLevel, "needs level 1"},
		"slots of it":      {func() (Map, error) { return StartSlotMove(low, SlotRange{1, 2}, 1) }, asLevel, "needs level 1"},
		"founding none":    {func() (Map, error) { m, _, err := Founded(low, 9); return m, err }, asSlots, "no such shard"},
	} {
		m, err := c.err()
		if err == nil || !errors.As(err, c.as) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %+v", name, err, m.Epoch)
		}
	}
	for what, f := range map[string]func(Map, uint64) (Map, error){"finish": FinishSlotMove, "abort": AbortSlotMove, "cancel": CancelSlotMove,
		"pause": func(m Map, id uint64) (Map, error) { return PauseSlotMove(m, id, true) }} {
		if _, err := f(split(t), 7); !errors.Is(err, ErrNoSlotMove) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A shard cut into as many pieces as a map may hold takes no more moves, and those under way end.
func TestSlotRangesAreBounded(t *testing.T) {
	m := cluster(t, 1, 2, 1)
	var even, odd slotSet
	for slot := range Slots {
		even[slot], odd[slot] = slot%2 == 0 && slot < MaxSlotRanges-2, slot%2 == 1 || slot >= MaxSlotRanges-2
	}
	m.Shards[0].Slots, m.Shards[1].Slots = even.ranges(), odd.ranges()
	n := m.mostRanges()
	if n != MaxSlotRanges-2 {
		t.Fatalf("%d ranges", n)
	}
	m, err := StartSlotMove(m, SlotRange{12000, 12000}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := StartSlotMove(m, SlotRange{14000, 14000}, 0); err == nil || !strings.Contains(err.Error(), "at most 8192") {
		t.Errorf("one more: %v", err)
	}
	if size := len(m.Encode()); size > 1<<18 {
		t.Errorf("%d bytes", size)
	}
	if m, err = FinishSlotMove(m, 1); err != nil || m.mostRanges() != MaxSlotRanges {
		t.Errorf("%d ranges, %v", m.mostRanges(), err)
	}
}

// All that a map can hold of slot moves comes back as it went, and readers of the map before see nothing of what follows.
func TestSlotMovesEncode(t *testing.T) {
	m := split(t)
	const want = `{"id":1,"slots":[{"from":8192,"to":16383}],"replicas":[{"id":"n1.1","node":"n1"},{"id":"n2.2","node":"n2"},{"id":"n3.3","node":"n3"}]},` +
		`{"id":2,"slots":[],"replicas":[{"id":"n2.4","node":"n2"}],"founding":"n2.4"}],` +
		`"slot_moves":[{"id":1,"from":1,"to":2,"slots":[{"from":12288,"to":16383}]}],"last_slot_move":1}`
	if got := string(m.Encode()); !strings.HasSuffix(got, want) {
		t.Fatalf("got  %s\nwant …%s", got, want)
	}
	before := m.Clone()
	for _, change := range []func() (Map, error){
		func() (Map, error) { m, _, err := Founded(m, 2); return m, err },
		func() (Map, error) { return PauseSlotMove(m, 1, true) },
		func() (Map, error) { return CancelSlotMove(m, 1) },
		func() (Map, error) { return FinishSlotMove(founded(t), 1) },
		func() (Map, error) { return CancelSlotMove(founded(t), 1) },
	} {
		next, err := change()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := DecodeMap(next.Encode()); err != nil || !reflect.DeepEqual(again, next) {
			t.Errorf("got %+v, %v, want %+v", again, err, next)
		}
	}
	if !reflect.DeepEqual(m, before) {
		t.Errorf("%+v was changed to %+v", before, m)
	}
	for _, spoil := range []func(*Map){func(*Map) {}, func(m *Map) { m.SlotMoves, m.LastSlotMove = nil, 0 }, func(m *Map) { m.SlotMoves, m.LastSlotMove, m.Shards[2].Founding = nil, 0, "" }} {
		low := m.Clone()
		spoil(&low)
		if low.needs() != LevelSlots {
			t.Errorf("level %d is enough for %+v", low.needs(), low)
		}
	}
}

// Ranges against sets of slots.
func TestSlotSets(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	random := func() (s slotSet) {
		for range 1 + rng.IntN(40) {
			from := rng.IntN(Slots)
			s.put([]SlotRange{{Slot(from), Slot(min(Slots-1, from+rng.IntN(900)))}}, rng.IntN(3) > 0)
		}
		return s
	}
	for range 200 {
		a, b := random(), random()
		var both, rest slotSet
		count := 0
		for slot := range Slots {
			both[slot], rest[slot] = a[slot] || b[slot], a[slot] && !b[slot]
			if a[slot] {
				count++
			}
		}
		for what, c := range map[string]struct {
			got  []SlotRange
			want slotSet
		}{"joined": {joinSlots(a.ranges(), b.ranges()), both}, "without": {withoutSlots(a.ranges(), b.ranges()), rest}} {
			var got slotSet
			got.put(c.got, true)
			if got != c.want || !legal(c.got) {
				t.Fatalf("%s: %v", what, c.got)
			}
		}
		upper := upperHalf(a.ranges())
		lower := withoutSlots(a.ranges(), upper)
		if !legal(upper) || countSlots(upper) != count/2 || countSlots(lower) != count-count/2 || count > 1 && lower[len(lower)-1].To >= upper[0].From {
			t.Fatalf("half of %d slots: %v", count, upper)
		}
	}
}
