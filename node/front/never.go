package front

import "strings"

// neverCommands are the commands that people look for and that we refuse, with
// what to use instead. COMMAND does not list them.
func neverCommands() []*spec {
	rows := []struct{ names, group, why string }{
		{"keys", "generic", "it would hold every key of the cluster at once: use SCAN cursor MATCH pattern, or 'abacus scan --prefix'"},
		{"flushall flushdb", "server", "nothing here deletes everything by one word: scan and DEL, or stop the cluster and remove its data directories"},
		{"eval eval_ro evalsha evalsha_ro fcall fcall_ro script function", "scripting", "there are no scripts: a job computes over many keys where they are (JOB.SUBMIT, 'abacus job run'); SET key value IFEQ old compares and sets one"},
		{"migrate move copy rename renamenx sort sort_ro restore dump", "generic", "keys stay in the shard that their name hashes to: GET and SET, or 'abacus export' and 'abacus import'"},
		{"replicaof slaveof failover psync sync replconf", "server", "every shard is replicated and elects its leader by itself: start a node with 'abacusd --join', and see 'abacus status'"},
		{"save bgsave bgrewriteaof lastsave", "server", "every acknowledged write is on disk on a majority already"},
		{"debug monitor shutdown slowlog latency module swapdb", "server", "see /metrics and /v1/status on the node's HTTP address, and stop a node with SIGTERM"},
		{"acl", "server", "there are no users yet: ports bind to loopback unless --insecure is given"},
		{"subscribe psubscribe ssubscribe unsubscribe punsubscribe sunsubscribe publish spublish pubsub", "pubsub", "there is no publish and subscribe"},
	}
	var specs []*spec
	for _, r := range rows {
		for _, name := range strings.Fields(r.names) {
			specs = append(specs, &spec{name: name, arity: -1, group: r.group, since: "1.0.0", summary: "Not supported: " + r.why + ".",
				never: "ERR " + strings.ToUpper(name) + " is not supported: " + r.why})
		}
	}
	return specs
}
