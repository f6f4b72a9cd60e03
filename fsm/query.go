package fsm

import (
	"github.com/abacusdb/abacus/fsm/command"
)

// Query answers commands that read from one state, the present one, and tells
// its index. It may be called from anywhere at any time; it waits for no disk but
// what it reads from, and for no more than one entry being applied.
func (f *FSM) Query(cmds []command.Command) (results []command.Result, index uint64, err error) {
	defer f.guard(&err)
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.closed {
		return nil, 0, ErrClosed
	}
	r := querier{layers: &f.ap.layers, clock: f.ap.clock, sess: f.ap.sess}
	results = make([]command.Result, len(cmds))
	for i := range cmds {
		c := &cmds[i]
		switch refused, ok := f.ap.refuses(c); {
		case c.Op == command.OpNoop:
			results[i] = command.OK()
		case ok:
			results[i] = refused
		case !c.Op.IsRead():
			results[i] = command.Err(command.CodeBadCommand)
		default:
			results[i] = r.answer(c)
		}
	}
	return results, f.ap.index, nil
}

// querier answers reads. It changes nothing and may be used beside others.
type querier struct {
	layers *layers
	clock  int64
	sess   *sessions
	buf    []byte
}

// read is for reads that lie between writes, in one entry.
func (a *applier) read(c *command.Command) command.Result {
	if !a.answering {
		return command.Nil()
	}
	r := querier{layers: &a.layers, clock: a.clock, sess: a.sess, buf: a.keyBuf}
	return r.answer(c)
}

func (r *querier) get(slot uint16, key []byte) entry {
	r.buf = appendKey(r.buf[:0], slot, key)
	row, stored := r.layers.get(inKeys, r.buf)
	if e := seen(row, stored, r.clock); e.visible {
		return e
	}
	return entry{}
}

// answer answers a command that is not refused.
func (r *querier) answer(c *command.Command) command.Result {
	switch c.Op {
	case command.OpGet:
		return r.value(c.Slot, c.Keys[0])
	case command.OpMGet:
		values := make([]command.Result, len(c.Keys))
		for i, k := range c.Keys {
			values[i] = r.value(c.Slot, k)
		}
		return command.Array(values)
	case command.OpStrlen:
		return command.Int(int64(len(r.get(c.Slot, c.Keys[0]).value)))
	case command.OpExists:
		var n int64
		for _, k := range c.Keys {
			if r.get(c.Slot, k).visible {
				n++
			}
		}
		return command.Int(n)
	case command.OpType:
		if r.get(c.Slot, c.Keys[0]).visible {
			return command.Bytes([]byte("string"))
		}
		return command.Bytes([]byte("none"))
	case command.OpTTL:
		switch e := r.get(c.Slot, c.Keys[0]); {
		case !e.visible:
			return command.Int(-2)
		case e.deadline == 0:
			return command.Int(-1)
		default:
			return command.Int(e.deadline - r.clock)
		}
	case command.OpSessionCheck:
		return r.sess.check(uint64(c.Int))
	}
	return command.Err(command.CodeBadCommand)
}

func (r *querier) value(slot uint16, key []byte) command.Result {
	if e := r.get(slot, key); e.visible {
		return valueOf(e)
	}
	return command.Nil()
}
