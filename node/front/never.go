package front

import "strings"

// onlyStrings begins the reply to commands on types that there are not.
const onlyStrings = "values are strings: "

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
		{"hset hget hmset hmget hgetall hgetdel hgetex hsetex hdel hexists hincrby hincrbyfloat hkeys hlen hrandfield hscan hsetnx hstrlen hvals hexpire hexpireat hexpiretime hpexpire hpexpireat hpexpiretime hpersist httl hpttl", "hash",
			onlyStrings + "SET each field under a key of its own (user/7/name), or one JSON document, of which jobs take fields (--as json --map json:PATH)"},
		{"lpush lpushx rpush rpushx lpop rpop llen lindex linsert lrange lrem lset ltrim lpos lmove lmpop rpoplpush blpop brpop blmove blmpop brpoplpush", "list",
			onlyStrings + "number the items with INCR and SET each under a key of its own (queue/000000007), or APPEND to one value"},
		{"sadd srem smembers sismember smismember scard spop srandmember smove sinter sintercard sinterstore sunion sunionstore sdiff sdiffstore sscan", "set",
			onlyStrings + "SET each member under a key of its own (tag/red/7), ask with EXISTS, list with SCAN MATCH tag/red/*, count with a job (JOB.SUBMIT, 'abacus job run --prefix')"},
		{"zadd zrem zscore zmscore zcard zcount zincrby zrange zrangestore zrangebyscore zrangebylex zrevrange zrevrangebyscore zrevrangebylex zrank zrevrank zlexcount zrandmember zpopmin zpopmax zmpop bzpopmin bzpopmax bzmpop zremrangebyrank zremrangebyscore zremrangebylex zinter zintercard zinterstore zunion zunionstore zdiff zdiffstore zscan", "sorted-set",
			onlyStrings + "SET each score under a key of its own, and let a job find the smallest, the largest or the mean (JOB.SUBMIT, 'abacus job run --as float --reduce max')"},
		{"xadd xlen xrange xrevrange xread xreadgroup xgroup xack xackdel xclaim xautoclaim xpending xdel xdelex xtrim xinfo xsetid", "stream",
			onlyStrings + "number the entries with INCR and SET each under a key of its own"},
		{"setrange lcs", "string", "a value is replaced as a whole: GET it, change it, and SET key value IFEQ old; APPEND adds to its end, GETRANGE reads a part"},
		{"setbit getbit bitcount bitpos bitop bitfield bitfield_ro", "bitmap",
			onlyStrings + "SET each flag under a key of its own, or GET, change, and SET key value IFEQ old"},
		{"pfadd pfcount pfmerge pfdebug pfselftest", "hyperloglog", onlyStrings + "SET each element under a key of its own, and count exactly with a job (JOB.SUBMIT, 'abacus job run --prefix')"},
		{"geoadd geodist geohash geopos geosearch geosearchstore georadius georadius_ro georadiusbymember georadiusbymember_ro", "geo", onlyStrings + "SET each place as a JSON document under a key that begins with its geohash, and SCAN MATCH"},
		{"object memory", "generic", onlyStrings + "STRLEN says how long one is, TYPE and TTL the rest; see /metrics on the node's HTTP address for memory"},
		{"waitaof", "generic", "every acknowledged write is on disk on a majority already: WAIT answers at once"},
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
