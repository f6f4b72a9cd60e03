// Package wal is one node's log: the raft.LogStore of all its replicas in one
// sequence of segment files, so that what they append at the same time shares one
// write and one sync. docs/wal.md has the bytes, and for each operation why a crash
// in its middle does no harm.
//
// # Its loop
//
// WAL.run takes what waits, makes one commit of it, writes it at the end of the
// newest segment, syncs, and answers. There is no timer: who finds the loop idle
// is written at once, who comes while it syncs shares the next commit. The loop also
// begins the next segment when one is full, and brings the oldest to its end: what is
// still alive in it is copied forward, a piece with each append, until nothing is.
//
// # Who owns what
//
//	WAL      mu guards the queue and the table of logs; the rest is the loop's
//	Log      mu guards one replica's range and where its entries lie: changed by
//	         the callers (what they appended and deleted) and the loop (where it is)
//	segment  a file; readers hold it while they read, who reuses it waits for them
//	prepare  a goroutine that has the next segment ready before it is needed
package wal
