package transport

// The methods of the peer protocol. One list, so that no number is used twice.
const (
	_                    Method = iota
	MethodRaftAppend            // store: AppendEntries (in order; heartbeats on LaneControl)
	MethodRaftVote              // store
	MethodRaftPreVote           // store
	MethodRaftTimeoutNow        // store
	MethodRaftInstall           // store: a stream
	MethodJoin                  // node: a node asks to be let in, or announces its addresses
	MethodMap                   // node: fetch the shard map
	MethodStatus                // node: peers exchange what they lead and hold
	MethodExec                  // node: commands for a shard, forwarded to its leader
	MethodScan                  // node: one page of keys
	MethodRecords               // node: read system records of a shard
	MethodShardJob              // compute: coordinator → master
	MethodTask                  // compute: master → worker
	MethodTaskCancel            // compute
	MethodShardJobStatus        // compute: coordinator asks a master for progress
	MethodShardJobCancel        // compute
	MethodReplicaInfo           // node: one replica's indexes, for status
	MethodConfirm               // store: is no term above the leader's known here? (in order, on LaneControl)
	MethodReadIndex             // node: up to which index must a replica be to answer a read?
	MethodSeed                  // store: ask for a copy of a shard's state
	MethodSeedState             // store: that copy, a stream
	MethodHeartbeats            // store: heartbeats of several shards (in order, on LaneControl)
	MethodUsers                 // node: fetch the list of users
	MethodRecover               // node: steps of a recovery from the loss of a majority
	MethodTaskStatus            // compute: master asks a worker how far a task is, and to leave its tail to others
	MethodTaskFetch             // compute: an idle node asks a master for work
	MethodShardJobForget        // compute: coordinator → master: what the shard's log remembers of a job can go
	MethodChecksum              // node: a piece of a replica's hash, or a comparison of a shard's replicas
	MethodEnd
)
