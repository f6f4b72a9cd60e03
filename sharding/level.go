package sharding

import "fmt"

// Feature levels. A cluster that was founded by an older version stays at its level while its nodes are upgraded one by one, and can go back; what is newer is
// refused until an administrator raises the level, for which all nodes have to understand it. From then on nobody older can be a member.
const (
	// LevelFirst is v0.4: a map without a level.
	LevelFirst = 0
	// LevelMoves has moves, marks of nodes, zones and balance in the map.
	LevelMoves = 1
	// LevelSlots has slot moves, and shards that are founded later, with no slots. It came with LevelMoves: no version has one without the other.
	LevelSlots = LevelMoves
	// LevelUsers has users, whom an older node would not ask for. It came with LevelMoves, too.
	LevelUsers = LevelMoves
	// LevelPins has pins in the shards' logs (command.OpPin), which an older node cannot read. It came with LevelMoves, too.
	LevelPins = LevelMoves
	// LevelJobs has jobs with filters, groups, expressions and all that job.Spec.Classic does not know. It came with LevelMoves, too.
	LevelJobs = LevelMoves
	// Level is the highest that this build understands.
	Level = LevelSlots
)

// LevelError: something needs a higher feature level than the cluster's.
type LevelError struct{ Has, Needs int }

func (e *LevelError) Error() string {
	return fmt.Sprintf("the cluster is at feature level %d, and this needs level %d: upgrade all nodes, then raise it with abacus upgrade", e.Has, e.Needs)
}

// RaiseLevel lets the cluster use all features of this build. understands is the level of a node, as far as is known; -1 if it is not.
func RaiseLevel(m Map, understands func(NodeID) int) (next Map, changed bool, err error) {
	if m.Level >= Level {
		return m, false, nil
	}
	for _, n := range m.Nodes {
		switch level := understands(n.ID); {
		case level < 0:
			return m, false, &NodeError{Verb: "raise the feature level with", Node: n.ID, Faults: []string{"it does not answer, so nobody knows which version it is"}}
		case level < Level:
			return m, false, &NodeError{Verb: "raise the feature level with", Node: n.ID, Faults: []string{fmt.Sprintf("it understands level %d, and this would be %d: upgrade it first", level, Level)}}
		}
	}
	next = m.Clone()
	next.Epoch++
	next.Level = Level
	return next, true, ValidateTransition(m, next)
}

// needs is the feature level that a map makes use of.
func (m Map) needs() int {
	if m.LastSlotMove > 0 {
		return LevelSlots
	}
	if m.Users {
		return LevelUsers
	}
	if m.Balance != BalanceNever || m.DeadAfterMillis != 0 || Era(m.Epoch) > 0 { // v0.4 says the wrong hello, and would not learn why it is refused
		return LevelMoves
	}
	for _, n := range m.Nodes {
		if n.Cordoned || n.Draining || n.Successor != "" || n.Zone != "" {
			return LevelMoves
		}
	}
	for _, s := range m.Shards {
		switch {
		case s.Founding != "" || len(s.Slots) == 0:
			return LevelSlots
		case s.Move != nil:
			return LevelMoves
		}
	}
	return LevelFirst
}

// fit takes out of what a node says of itself what the cluster cannot store yet.
func (n *Node) fit(m Map) {
	if m.Level < LevelMoves {
		n.Zone = ""
	}
}

// SetUsers notes whether the cluster has users.
func SetUsers(m Map, on bool) (next Map, changed bool, err error) {
	if m.Users == on {
		return m, false, nil
	}
	next = m.Clone()
	next.Epoch++
	next.Users = on
	return next, true, ValidateTransition(m, next)
}
