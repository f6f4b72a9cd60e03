// Package compute runs jobs where the data lives: map a function over every
// key with a prefix and combine what comes out.
//
// Three parts do it, each on top of the next:
//
//	Jobs         the ledger in shard 0: submit, follow, cancel; its loop runs on shard 0's leader
//	Coordinator  one job over all shards: asks each shard's master, combines their partials
//	Master       one shard's part, on the shard's leader: cuts the slots into tasks (plan.go), hands
//	             them to followers first and itself last (schedule.go), takes each task's result once
//	Worker       one task, on any replica: scans a run of slots of a view and folds it into a Partial
//
// plan.go, schedule.go, functions.go and partial.go decide and compute; they
// start nothing and know no clock. The loops are Jobs.RunLeader, Coordinator.Run
// and shardRun.loop; each owns its state and waits for the goroutines that it starts.
//
// Two rules make the answer right. A task reads a view at or above an
// index that the master took as a fence after the submit, so a job sees every
// write acknowledged before it. And a partial is taken once per task and once per
// shard, after checking that tasks and shards cover every slot exactly once: a
// job is answered whole or fails.
//
// The package knows no Raft and no storage: node hands it views (Views), shards
// (Shards), the way to a shard's leader (Env) and the ledger (Ledger).
package compute
