package command

import "testing"

// The shapes of the commands about pins.
func TestValidatePins(t *testing.T) {
	for _, c := range []Command{{Op: OpPin, Int: 1, TTL: 1}, {Op: OpPin, Int: 1 << 62, TTL: MaxPinTTL}, {Op: OpUnpin, Int: 1}} {
		if err := c.Validate(DefaultLimits()); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for name, c := range map[string]Command{
		"pin without an id":         {Op: OpPin, TTL: 1},
		"pin with a negative id":    {Op: OpPin, Int: -1, TTL: 1},
		"pin for no time":           {Op: OpPin, Int: 1},
		"pin for a negative time":   {Op: OpPin, Int: 1, TTL: -1},
		"pin for too long":          {Op: OpPin, Int: 1, TTL: MaxPinTTL + 1},
		"pin of a key":              {Op: OpPin, Int: 1, TTL: 1, Keys: [][]byte{b("k")}},
		"pin with a value":          {Op: OpPin, Int: 1, TTL: 1, Values: [][]byte{b("v")}},
		"pin with a flag":           {Op: OpPin, Int: 1, TTL: 1, Flags: FlagGet},
		"pin in a session":          {Op: OpPin, Int: 1, TTL: 1, Session: 1, Seq: 1, Floor: 1},
		"unpin without an id":       {Op: OpUnpin},
		"unpin with a time to live": {Op: OpUnpin, Int: 1, TTL: 1},
		"unpin in a session":        {Op: OpUnpin, Int: 1, Session: 1, Seq: 1, Floor: 1},
		"pin in a transaction":      {Op: OpMulti, Values: [][]byte{AppendCommands(nil, []Command{{Op: OpPin, Int: 1, TTL: 1}}), AppendIndexes(nil, nil)}},
	} {
		if err := c.Validate(DefaultLimits()); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
