// Package planted holds bugs that are put in on purpose, to see whether the
// tests catch them. A checker that catches nothing proves nothing.
//
// A build with the tag planted has the one that ABACUS_PLANTED names. In every other
// build Is is a constant false, and the compiler leaves the bugs out.
package planted

// Bug names a planted bug.
type Bug string

const (
	LocalRead         Bug = "local-read"           // a leader reads without asking a majority
	VerifyLeaderRead  Bug = "verify-leader-read"   // a leader asks with raft.VerifyLeader (hazard R1)
	CountNonVoters    Bug = "count-non-voters"     // learners confirm a read (R2)
	NoTermBarrier     Bug = "no-term-barrier"      // a new leader reads before its first own entry (R3)
	AppliedIndexWait  Bug = "applied-index-wait"   // a read waits for raft's idea of applied (R4)
	LogNotMonotonic   Bug = "log-not-monotonic"    // old entries stay below an installed snapshot (R5)
	NoSyncLog         Bug = "no-sync-log"          // the log is not synced
	NoSyncState       Bug = "no-sync-state"        // checkpoints are not synced
	SkipSessionCheck  Bug = "skip-session-check"   // a repeated command is carried out again
	RetryUnknown      Bug = "retry-unknown"        // a client sends an unanswered write again under a new number
	DropAppliedSkip   Bug = "drop-applied-skip"    // entries at or below the applied index are applied again
	EarlyCompaction   Bug = "early-compaction"     // the log is cut before the state is durable
	AckBeforeCommit   Bug = "ack-before-commit"    // a write is answered when it is proposed
	WrongQuorumOfFour Bug = "wrong-quorum-of-four" // two of four voters count as a majority
	EarlyCommit       Bug = "early-commit"         // a leader counts what its own disk does not have yet
	FreezeLate        Bug = "freeze-late"          // a shard serves slots that it has frozen for another
	ForgetAnswers     Bug = "forget-answers"       // slots move without what numbered commands were answered
	LoseChanges       Bug = "lose-changes"         // what changes in slots while they are copied does not move
)

// All are the planted bugs.
var All = []Bug{LocalRead, VerifyLeaderRead, CountNonVoters, NoTermBarrier, AppliedIndexWait, LogNotMonotonic, NoSyncLog, NoSyncState,
	SkipSessionCheck, RetryUnknown, DropAppliedSkip, EarlyCompaction, AckBeforeCommit, WrongQuorumOfFour, EarlyCommit,
	FreezeLate, ForgetAnswers, LoseChanges}
