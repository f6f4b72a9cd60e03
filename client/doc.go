// Package client is the Go client of Abacus: it finds the node that leads a
// key, keeps one pipelined connection to it, and repeats what may be repeated.
//
//	c, err := client.Open(client.Config{Addrs: []string{"127.0.0.1:7401"}})
//	defer c.Close()
//	err = c.Put(ctx, "num/1", []byte("1"))
//	value, err := c.Get(ctx, "num/1")
//
// The one loop to know is Client.run (retry.go): it sends commands, sorts the
// answers into done, may be sent again, and unknown, and sends again what may
// be, until the deadline. Nothing else in this package retries.
//
// What may be sent again is decided by one question: can the command have been
// executed? An answer of MOVED, TRYAGAIN or CLUSTERDOWN, a refused connection, a
// command that never left this process: certainly not, so it is sent again. A
// connection that broke after the command left, an answer that did not come in
// time, an answer of UNCERTAIN: nobody knows. Then a read is sent again, and so is a
// write on keys, for it is numbered (session.go): the shards carry out a number of a
// session once, and answer it alike however often it comes. What has no number (JOB.CANCEL, a
// command that the client does not know) fails with ErrUncertain, unless the caller
// says with Cmd.Repeatable that it may run twice. ErrUncertain is left to a write when its
// deadline passes, or when the cluster has forgotten its session between two attempts.
//
// Who owns what: a Client owns a route table (routes.go, an immutable value
// swapped whole), and a link per address (link.go) that dials when needed. A
// link owns at most one conn (conn.go), and a conn owns two goroutines, its
// writing and its reading loop. Callers on any number of goroutines share
// conns: whatever waits when the writing loop comes round goes out in one
// write. Close ends all of it and waits.
//
// Commands of one batch (DoMulti) that go to one node keep their order, unless
// one of them has to be sent again. Whoever needs an order over failures waits
// for one command before sending the next.
package client
