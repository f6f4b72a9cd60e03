// Package front serves the Redis protocol (RESP 2 and 3) on a node's ports.
//
// Its one loop is (*conn).serve: read a whole pipeline, cut it into windows,
// run each window as a plan, write the replies in the order asked, again. A plan
// groups the parts of its commands by shard and calls Backend.Exec once per
// shard, all shards at once, so the writes of one pipeline to one shard become
// one log entry. Commands that are about more than keys (SCAN, JOB.SUBMIT,
// HELLO, ...) end a window and run alone.
//
// The mode belongs to the port. ModeForward serves any client on any node:
// whatever shard a key is in, the Backend finds its leader, and SCAN and DBSIZE
// are about the whole cluster. ModeCluster is what CLUSTER SLOTS advertises:
// keys of shards led elsewhere are answered MOVED, and SCAN and DBSIZE cover the
// slots led here.
//
// A write may be numbered (session.go), and is then carried out once however often it comes.
// What is queued between MULTI and EXEC (multi.go) is planned as a window when it is
// queued, and executed as one command.
//
// Before a command is looked at otherwise, permit says whether the connection's user may run it (rights.go, auth.go).
//
// State: a conn belongs to its goroutine, but for the few fields CLIENT LIST
// shows, which are behind its mutex. A Server owns the set of conns. Everything
// else is the Backend's, and is read as immutable values.
//
// # What a reply promises
//
// Client libraries retry MOVED, CLUSTERDOWN and TRYAGAIN by themselves, so
// these are answered only when the command certainly had no effect (or is a
// read). UNCERTAIN is answered when its effect is unknown, or when only some of
// the shards of a MSET or DEL did their part.
//
// # Time
//
// A shard's clock is its own and knows no dates. Absolute times (EXAT, PXAT,
// EXPIREAT, PEXPIREAT) are turned into relative ones here, at the edge, with this
// node's wall clock, and EXPIRETIME back again; a wrong wall clock shifts such an
// expiry by its error, and nothing else depends on it.
package front
