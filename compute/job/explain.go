package job

// Explanation is what a job would do, told without running it. Records and Bytes are what the shards hold
// with any prefix, as their leaders last said: a job does not read more, and with a prefix perhaps much less.
type Explanation struct {
	// Spec is the specification with its defaults filled in, as it would be run.
	Spec    Spec             `json:"spec"`
	Shards  []ExplainedShard `json:"shards"`
	Records int64            `json:"records"`
	Bytes   int64            `json:"bytes"`
	Tasks   int              `json:"tasks"`
	// Nodes would read for it, sorted.
	Nodes []string `json:"nodes"`
	// Notes are what a person should know: shards that could not be read now, say.
	Notes []string `json:"notes"`
}

// ExplainedShard is one shard's part of an Explanation.
type ExplainedShard struct {
	Shard uint32 `json:"shard"`
	Slots string `json:"slots"`
	// Master leads the shard and would hand out its tasks; empty if no leader is known.
	Master string `json:"master,omitempty"`
	// Nodes hold replicas that could read now, the master first.
	Nodes   []string `json:"nodes"`
	Records int64    `json:"records"`
	Bytes   int64    `json:"bytes"`
	Tasks   int      `json:"tasks"`
}
