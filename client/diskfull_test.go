package client_test

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/client/clienttest"
)

// A full disk is told at once and not asked again. But when an earlier attempt may have
// been executed, "nothing was done" is true of the last one only: the write is uncertain.
func TestDiskFull(t *testing.T) {
	c := clienttest.New(t, 2)
	cl, ctx := open(t, c), t.Context()
	var sent, lose atomic.Int64
	c.Hook(func(r *clienttest.Request) clienttest.Fate {
		if r.Args[0] != "INCRBY" && r.Args[0] != "SET" {
			return clienttest.Serve
		}
		if sent.Add(1) <= lose.Load() {
			return clienttest.Lose
		}
		r.Reply.Error("DISKFULL nothing was done: a disk has no room for more data")
		return clienttest.Done
	})
	incr := func() error { _, err := cl.Incr(ctx, "n", 1); return err }
	put := func() error { return cl.Put(ctx, "k", []byte("v")) }
	for name, write := range map[string]func() error{"incr": incr, "put": put} {
		sent.Store(0)
		lose.Store(0)
		if err := write(); !errors.Is(err, client.ErrDiskFull) || errors.Is(err, client.ErrUncertain) || sent.Load() != 1 {
			t.Errorf("%s: %v after %d attempts", name, err, sent.Load())
		}
		sent.Store(0)
		lose.Store(1)
		if err := write(); !errors.Is(err, client.ErrUncertain) || sent.Load() != 2 {
			t.Errorf("%s, after an attempt that was executed: %v after %d attempts", name, err, sent.Load())
		}
	}
}
