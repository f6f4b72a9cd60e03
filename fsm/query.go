package fsm

import "github.com/abacusdb/abacus/fsm/command"

// Query answers read commands from the present state, all of them from one, and
// returns the index that it stands at: the same results, limits and refusals as
// if an entry of these commands had been applied there. It changes nothing and
// takes no turn among the entries, so whoever wants to see a certain write waits
// for its index first.
func (f *FSM) Query(cmds []command.Command) ([]command.Result, uint64, error) {
	v, err := f.View()
	if err != nil {
		return nil, 0, err
	}
	defer v.Close()
	results := make([]command.Result, len(cmds))
	for i := range cmds {
		results[i] = v.query(&cmds[i])
	}
	return results, v.index, nil
}

// query is applier.exec for reads. Whether the slot is ours and what it holds come
// from one view: a slot that moves away cannot show an old value in between.
func (v *View) query(c *command.Command) command.Result {
	if c.Op == command.OpNoop {
		return command.OK()
	}
	in := v.head.init
	if in == nil {
		return command.Err(command.CodeUninitialized)
	}
	if !owns(in, c.Slot) {
		return command.Err(command.CodeWrongShard)
	}
	if err := c.Validate(in.Limits); err != nil {
		if e, ok := err.(*command.LimitError); ok && e.Size > 0 {
			return tooLarge(e.Max)
		}
		return command.Err(command.CodeBadCommand)
	}
	switch c.Op {
	case command.OpGet:
		return v.value(c.Slot, c.Keys[0])
	case command.OpMGet:
		values := make([]command.Result, len(c.Keys))
		for i, k := range c.Keys {
			values[i] = v.value(c.Slot, k)
		}
		return command.Array(values)
	case command.OpStrlen:
		value, _ := v.Get(c.Slot, c.Keys[0])
		return command.Int(int64(len(value)))
	case command.OpExists:
		var n int64
		for _, k := range c.Keys {
			if _, ok := v.Get(c.Slot, k); ok {
				n++
			}
		}
		return command.Int(n)
	case command.OpType:
		if _, ok := v.Get(c.Slot, c.Keys[0]); ok {
			return command.Bytes([]byte("string"))
		}
		return command.Bytes([]byte("none"))
	case command.OpTTL:
		return v.ttl(c.Slot, c.Keys[0])
	}
	return command.Err(command.CodeBadCommand) // no read
}

// value copies a value out of the view.
func (v *View) value(slot uint16, key []byte) command.Result {
	value, ok := v.Get(slot, key)
	if !ok {
		return command.Nil()
	}
	return command.Bytes(clone(value))
}

func (v *View) ttl(slot uint16, key []byte) command.Result {
	v.keyBuf = appendKey(v.keyBuf[:0], slot, key)
	switch e := decodeEntry(v.keys.Get(v.keyBuf), v.clock); {
	case !e.visible:
		return command.Int(-2)
	case e.deadline == 0:
		return command.Int(-1)
	default:
		return command.Int(e.deadline - v.clock)
	}
}

func owns(in *command.Init, slot uint16) bool {
	for _, r := range in.Slots {
		if r.From <= slot && slot <= r.To {
			return true
		}
	}
	return false
}
