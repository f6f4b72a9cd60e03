// Package store is one node's replica of one shard: a Raft group's member over
// an fsm.FSM. It is the only place that makes a raft.Raft.
//
// # Its loops
//
// A Store has one supervisor (Store.run), which replaces the Raft instance when
// that is the only way out, and one snapshot loop. Each Raft instance has a
// leadership loop (instance.run) fed by Raft's unbuffered notify channel. While
// this replica leads, that loop owns a leadership, whose own loop
// (leadership.run) is the only caller of raft.Apply: it opens the term with a
// no-op of ours, folds waiting proposals into one log entry after the other, in turn with the node's
// other leaderships, and moves the shard's clock when a key's time comes due. Raft cannot begin a second
// leadership before the first one's loop has ended, so an entry is never
// accepted in another term than the one it was made for, and no time counts twice.
//
// # Who owns what
//
//	Store       the directory, its part of the node's log, the state machine, the present instance
//	instance    one raft.Raft, its peers and its leadership loop
//	leadership  one term in office: queue of proposals, clock, entries in flight
//	Net         the node's Raft traffic: finds the replica that a frame is for
//	pacer       the node's rounds of entries: whose turn it is (pacer.go)
//	beats       the node's heartbeats that wait for a message (heartbeat.go)
//	confirms    the node's questions for reads (confirm.go): messages on the way, rounds open
//	logStore    the log: monotonic, cached, stops the process when it fails; a leader's entries go out while it writes
//	stableStore term and vote: the term never falls, the vote is one value
//	admission   what was held back or refused
//	snapshots   metadata of our own snapshots, the file of one being received
//
// # Reads
//
// A read does not go through the log (read.go). The leader takes its commit index
// and the voters, asks as many of these as it needs whether they know of a term above its own, and, once a
// majority does not, answers from the state at or above that index. Read and ReadView
// are for the leader; ReadIndex gives others the index, for ReadAt and ViewAt on
// any replica. ReadStale and StaleView promise less. Probe is a committed entry still:
// it shows that writes get through.
//
// Pin has every replica keep a view at one index, which Pinned opens on any of them (pins.go).
//
// # Certain and uncertain
//
// A proposal fails with an error for which transport.Certain holds only if it
// is proven that no log has it. From the moment that raft may have taken an
// entry, everything but Raft's own refusals is CodeUncertain, our own time-out
// included.
//
// # Damage
//
// Open tells damage of the state from damage of the log (DamageOf). Reseed mends the
// first from a peer, with raft not running; the second ends the replica's life under
// its id. What is read at a start is checked first: raft and bbolt believe what they find.
//
// # Loss of a majority
//
// Recover makes what a replica has that of another one, whose only voter is itself, from files alone. The id is
// another so that nothing of the old group, wherever it lives on, can reach it (recover.go).
//
// # Fail-stop
//
// An error of the log, the votes, a snapshot's metadata, an install or a checkpoint
// goes to Config.Fatal, which ends the process: after a failed sync nobody knows what
// is on the disk, and hashicorp/raft would go on with a wrong idea of its log. Watch,
// one goroutine per node, does the same for an operation that does not return. A leader whose
// disk is slow stops to lead long before (Timing.Stuck).
//
// # What is let in
//
// The leader's loop takes no writes from its queue while the state in memory, its own
// or a voter's, is over a bound, and Propose refuses what adds data where a disk is
// full (admit.go). Both are decided before the log, so both refusals are certain.
package store
