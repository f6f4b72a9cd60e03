//go:build system

package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/abacusdb/abacus/transport/resp"
)

// powerWriter writes to keys of its own, in pipelines over one connection, until
// the connection breaks.
type powerWriter struct {
	rng       *rand.Rand
	registers []*register
	counters  []*counter // shared by all writers of the cluster

	done         chan error   // nil: does not run
	acked, reads atomic.Int64 // since start
}

// start begins to write; wait ends with the connection, that is, with the server.
func (w *powerWriter) start(addr string) {
	w.done = make(chan error, 1)
	go func() { w.done <- w.run(addr) }()
}

// wait returns what was wrong with the answers.
func (w *powerWriter) wait(r *powerReport) error {
	if w.done == nil {
		return nil
	}
	err := <-w.done
	w.done = nil
	r.acked += w.acked.Swap(0)
	r.reads += w.reads.Swap(0)
	return err
}

// errAnswer is an answer that a server must not give; other errors of a writer
// are the end of its connection.
var errAnswer = errors.New("wrong answer")

func (w *powerWriter) run(addr string) error {
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return nil // the cut was quicker
	}
	defer conn.Close()
	replies := resp.NewReplyReader(conn, resp.ReplyLimits{})
	for {
		if err := w.pipeline(conn, replies); errors.Is(err, errAnswer) {
			return err
		} else if err != nil {
			return nil
		}
	}
}

// operation is one command of a pipeline.
type operation struct {
	r     *register
	w     write    // of r; the zero value: a read
	count *counter // an increment, instead
}

// pipeline sends some commands to as many different keys, and notes every answer.
func (w *powerWriter) pipeline(conn net.Conn, replies *resp.ReplyReader) error {
	var ops []operation
	var out []byte
	// Long pipelines make large entries of the log, short ones many.
	size := 1 + w.rng.IntN(24)
	if w.rng.IntN(3) == 0 {
		size = 1 + w.rng.IntN(2)
	}
	for _, i := range w.rng.Perm(len(w.registers)) {
		if len(ops) == size {
			break
		}
		if w.rng.IntN(8) == 0 {
			c := w.counters[w.rng.IntN(len(w.counters))]
			c.mu.Lock()
			c.pending++
			c.mu.Unlock()
			out = resp.AppendCommandStrings(out, "INCR", c.name)
			ops = append(ops, operation{count: c})
			continue
		}
		r := w.registers[i]
		if r.closed {
			continue
		}
		op := operation{r: r}
		if w.rng.IntN(10) == 0 {
			out = resp.AppendCommandStrings(out, "GET", r.name)
		} else {
			op.w = w.invent(r)
			out = appendWrite(out, r, op.w)
			r.pending = append(r.pending, op.w)
		}
		ops = append(ops, op)
	}
	if len(ops) == 0 {
		return io.EOF
	}
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write(out); err != nil {
		return err
	}
	refused := false
	for _, op := range ops {
		reply, err := replies.ReadReply()
		if err != nil {
			return err
		}
		no, err := w.noteReply(op, reply)
		if err != nil {
			return err
		}
		refused = refused || no
	}
	if refused {
		time.Sleep(5 * time.Millisecond) // a leader is being elected: not so fast
	}
	return nil
}

// invent makes up the next write to a key.
func (w *powerWriter) invent(r *register) write {
	r.version++
	op := write{version: r.version, sent: time.Now()}
	switch at := w.rng.IntN(1000); {
	case at < 700:
		op.size = w.rng.IntN(200)
	case at < 980:
		op.size = w.rng.IntN(4 << 10)
	case at < 997:
		op.size = w.rng.IntN(32 << 10)
	default:
		op.size = 100 << 10
	}
	switch at := w.rng.IntN(100); {
	case at < 8:
		op.del = true
	case at < 16:
		op.ttl = 24 * time.Hour
	case at < 20:
		op.ttl = time.Duration(50+w.rng.IntN(400)) * time.Millisecond
	}
	return op
}

func appendWrite(out []byte, r *register, w write) []byte {
	switch {
	case w.del:
		return resp.AppendCommandStrings(out, "DEL", r.name)
	case w.ttl > 0:
		return resp.AppendCommand(out, []byte("SET"), []byte(r.name), r.value(w), []byte("PX"), strconv.AppendInt(nil, w.ttl.Milliseconds(), 10))
	}
	return resp.AppendCommand(out, []byte("SET"), []byte(r.name), r.value(w))
}

// noteReply remembers what became of an operation, and says whether it was
// certainly not done.
func (w *powerWriter) noteReply(op operation, reply resp.Reply) (refused bool, err error) {
	var failed *resp.ServerError
	if err := reply.Err(); errors.As(err, &failed) {
		switch failed.Code() {
		case "CLUSTERDOWN", "TRYAGAIN":
			refused = true
		case "UNCERTAIN":
		default:
			return false, fmt.Errorf("%w: %s", errAnswer, failed.Text)
		}
	}
	if c := op.count; c != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if refused || failed == nil {
			c.pending--
		}
		if failed == nil {
			c.acked++
			w.acked.Add(1)
			if reply.Type != resp.TypeInt || reply.Int < c.base+1 || reply.Int > c.base+c.acked+c.pending {
				return false, fmt.Errorf("%w: INCR %s answers %c%d: it was %d, %d increments are acknowledged and %d under way", errAnswer, c.name, reply.Type, reply.Int, c.base, c.acked, c.pending)
			}
		}
		return refused, nil
	}
	r := op.r
	switch read := op.w.version == 0; {
	case read && failed != nil:
	case read:
		w.reads.Add(1)
		if now := time.Now(); !r.matches(r.last, reply.Str, !reply.IsNull(), now) {
			return false, fmt.Errorf("%w: under load %s %s; %s", errAnswer, r.name, shown(reply.Str, !reply.IsNull()), r.known(now))
		}
	case refused:
		r.pending = nil
	case failed != nil:
		r.closed = true
	default:
		w.acked.Add(1)
		r.last, r.pending = op.w, nil
	}
	return refused, nil
}

// powerValue is what a key held when it was read.
type powerValue struct {
	bytes []byte
	found bool
	at    time.Time
}

// readPowerValues asks for those of the names that are not found yet. It returns
// the last error, of some keys or of all.
func readPowerValues(ctx context.Context, addr string, names []string, found map[string]powerValue) error {
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	replies := resp.NewReplyReader(conn, resp.ReplyLimits{})
	var last error
	const batch = 64
	for at := 0; at < len(names); at += batch {
		var asked []string
		var out []byte
		for _, name := range names[at:min(at+batch, len(names))] {
			if _, ok := found[name]; !ok {
				asked = append(asked, name)
				out = resp.AppendCommandStrings(out, "GET", name)
			}
		}
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		if _, err := conn.Write(out); err != nil {
			return err
		}
		got := 0
		for _, name := range asked {
			reply, err := replies.ReadReply()
			if err != nil {
				return err
			}
			if err := reply.Err(); err != nil {
				last = err
				continue
			}
			got++
			found[name] = powerValue{reply.Str, !reply.IsNull(), time.Now()}
		}
		if got == 0 && len(asked) > 0 {
			return last // it is not ready: asking for the rest would only keep it busy
		}
	}
	return last
}
