// Package sim runs whole clusters in virtual time: several nodes, each the
// product's own node package over an in-memory network and real files, inside one
// testing/synctest bubble, under seeded faults and checked clients.
//
// Run is one scenario: it opens a cluster, lets clients work while the loops of
// nemesis.go break things, heals everything, waits until all replicas hold the same
// state, reads everything back, and judges what the clients saw (outside the
// bubble, where a time limit is real time).
//
// # A crash
//
// A crash comes when every goroutine waits for something (synctest.Wait). Then the
// node's files are copied as they are, its links break, its clients' calls are
// uncertain, and what still runs of it works on the old files, cut off, until it
// ends. The restarted node opens the copy: what it had written by then, synced
// or not, as after SIGKILL. Power cuts are another test's.
//
// # What a seed gives
//
// The same faults and the same choices of the clients, not the same interleaving:
// goroutines run in parallel within one instant, and Raft draws its own numbers. Running a
// seed some more times brings a failure back.
package sim
