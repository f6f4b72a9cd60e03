// Package compute runs jobs where the data lives: map a function over every
// key with a prefix and combine what comes out.
//
// Three parts do it, each on top of the next:
//
//	Jobs         the ledger in shard 0: submit, follow, cancel, delete, retry, explain; its loop runs on shard 0's leader
//	Coordinator  one job over all shards: asks each shard's master, combines their partials
//	Master       one shard's part, on the shard's leader: pins it, cuts the slots into tasks (plan.go), hands
//	             them to followers first and itself last (schedule.go), takes each task's result once and has the
//	             shard's log remember it (work.go), so that the next master goes on from there (begin.go)
//	Worker       one task, on any replica: scans a run of slots of a view and folds it into a Partial; asks
//	             for work when there is none here and some elsewhere (fetch.go)
//
// A record's way through a worker is in functions.go: filter, read, flat_map, map, group, fold; what each does is in
// filter.go, read.go, jsonscan.go and jsonshape.go, or an expression's (package expr). What comes of it is a Partial (partial.go, codec.go), which keeps
// sums and extremes itself and all else in a fold.Table. A program may bring functions of its own: RegisterMap and
// RegisterFilter, called by its main before it opens a node, make `go:NAME` known to jobs.
//
// What tasks and masters may take of a node is its Admission's affair: turns, processor time, memory, bytes read.
//
// plan.go, schedule.go, work.go, steer.go, functions.go and partial.go decide and compute; they
// start nothing and know no clock. The loops are Jobs.RunLeader, jobRound.loop,
// shardRun.loop and, while there are tasks, Admission.runSteering; each owns its state and waits for the goroutines that it starts.
//
// Three rules make the answer right. All tasks of a shard's part read one state of it, that of a pin, which was
// taken after the submit, so a job sees every write acknowledged before it and none by half. A partial is taken once per task and once per
// shard, after checking that tasks and shards cover every slot exactly once: a
// job is answered whole or fails. And slots may change hands between shards meanwhile:
// a view answers only for what its shard owned at its index, and when the shards'
// answers do not fit together, a new round asks them all again.
//
// The package knows no Raft and no storage: node hands it views (Views), shards
// (Shards), the way to a shard's leader (Env) and the ledger (Ledger).
package compute
