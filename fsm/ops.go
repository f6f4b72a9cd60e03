package fsm

import (
	"bytes"
	"math"
	"math/big"
	"strconv"
	"strings"

	"github.com/abacusdb/abacus/fsm/command"
)

// The commands on keys. Each has been validated and its slot is owned. What they answer and refuse follows Redis.

func (a *applier) doSet(c *command.Command) command.Result {
	key := c.Keys[0]
	old := a.load(c.Slot, key)
	result := command.OK()
	if c.Flags&command.FlagGet != 0 {
		result = a.answer(old)
	}
	refused := c.Flags&command.FlagIfAbsent != 0 && old.visible ||
		c.Flags&command.FlagIfPresent != 0 && !old.visible ||
		c.Flags&command.FlagIfEqual != 0 && (!old.visible || !bytes.Equal(old.value, c.Values[1]))
	if refused {
		if c.Flags&command.FlagGet == 0 {
			result = command.Nil()
		}
		return result
	}
	if c.TTL < 0 { // it ends as it is set
		a.remove(c.Slot, key, old)
		return result
	}
	deadline := a.deadlineIn(c.TTL)
	if c.Flags&command.FlagKeepTTL != 0 && old.visible {
		deadline = old.deadline
	}
	a.put(c.Slot, key, c.Values[0], deadline, old)
	return result
}

func (a *applier) doMSet(c *command.Command) command.Result {
	ifAbsent := c.Flags&command.FlagIfAbsent != 0
	if ifAbsent {
		for _, k := range c.Keys {
			if a.get(c.Slot, k).visible {
				return command.Int(0)
			}
		}
	}
	for i, k := range c.Keys {
		a.put(c.Slot, k, c.Values[i], 0, a.load(c.Slot, k))
	}
	if ifAbsent {
		return command.Int(1)
	}
	return command.OK()
}

func (a *applier) doDel(c *command.Command) command.Result {
	var n int64
	for _, k := range c.Keys {
		old := a.load(c.Slot, k)
		if old.visible {
			n++
		}
		a.remove(c.Slot, k, old)
	}
	return command.Int(n)
}

func (a *applier) doIncr(c *command.Command) command.Result {
	old := a.load(c.Slot, c.Keys[0])
	var n, deadline int64
	if old.visible {
		var ok bool
		if n, ok = parseInt(old.value); !ok {
			return command.Err(command.CodeNotInteger)
		}
		deadline = old.deadline
	}
	if c.Int > 0 && n > math.MaxInt64-c.Int || c.Int < 0 && n < math.MinInt64-c.Int {
		return command.Err(command.CodeOverflow)
	}
	n += c.Int
	var text [20]byte
	value := strconv.AppendInt(text[:0], n, 10)
	if len(value) > int(a.init.Limits.MaxValue) {
		return tooLarge(int(a.init.Limits.MaxValue))
	}
	a.put(c.Slot, c.Keys[0], value, deadline, old)
	return command.Int(n)
}

// parseInt takes only the one way to write a number: no plus sign, no leading
// zeros, no "-0". So "007" stays the string that somebody stored.
func parseInt(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 20 {
		return 0, false
	}
	digits := b
	if b[0] == '-' {
		digits = b[1:]
	}
	if len(digits) == 0 || digits[0] < '0' || digits[0] > '9' || digits[0] == '0' && len(b) > 1 {
		return 0, false
	}
	n, err := strconv.ParseInt(string(b), 10, 64)
	return n, err == nil
}

func (a *applier) doIncrFloat(c *command.Command) command.Result {
	old := a.load(c.Slot, c.Keys[0])
	sum := new(big.Float).SetPrec(floatPrec)
	var deadline int64
	if old.visible {
		var ok bool
		if sum, ok = parseFloat(old.value); !ok {
			return command.Err(command.CodeNotFloat)
		}
		deadline = old.deadline
	}
	by, ok := parseFloat(c.Values[0])
	if !ok {
		return command.Err(command.CodeNotFloat)
	}
	sum.Add(sum, by)
	if f, _ := sum.Float64(); math.IsInf(f, 0) {
		return command.Err(command.CodeNaN)
	}
	value := formatFloat(sum)
	if len(value) > int(a.init.Limits.MaxValue) {
		return tooLarge(int(a.init.Limits.MaxValue))
	}
	a.put(c.Slot, c.Keys[0], value, deadline, old)
	return command.Bytes(value)
}

// Floats are summed with 64 bits of mantissa and written with 17 decimals, like
// the long double that Redis uses, so that 0.1 and 0.2 make 0.3. math/big is the
// same on every processor.
const (
	floatPrec     = 64
	floatDecimals = 17
	maxFloatText  = 512 // 1e308 written out, and decimals
)

func parseFloat(b []byte) (*big.Float, bool) {
	if len(b) == 0 || len(b) > maxFloatText {
		return nil, false
	}
	for _, ch := range b {
		// Decimal only: no hexadecimal, no underscores, no "inf".
		if (ch < '0' || ch > '9') && ch != '.' && ch != '-' && ch != '+' && ch != 'e' && ch != 'E' {
			return nil, false
		}
	}
	f, _, err := big.ParseFloat(string(b), 10, floatPrec, big.ToNearestEven)
	if err != nil {
		return nil, false
	}
	// Beyond the range of a float64 the text of a number has no bound.
	switch f64, _ := f.Float64(); {
	case math.IsInf(f64, 0):
		return nil, false
	case f64 == 0:
		return new(big.Float).SetPrec(floatPrec), true
	}
	return f, true
}

func formatFloat(f *big.Float) []byte {
	s := f.Text('f', floatDecimals)
	s = strings.TrimRight(s, "0")
	s = strings.TrimSuffix(s, ".")
	if s == "-0" {
		s = "0"
	}
	return []byte(s)
}

func (a *applier) doAppend(c *command.Command) command.Result {
	old := a.load(c.Slot, c.Keys[0])
	var head []byte
	var deadline int64
	if old.visible {
		head, deadline = old.value, old.deadline
	}
	length := len(head) + len(c.Values[0])
	if limit := int(a.init.Limits.MaxValue); length > limit {
		return tooLarge(limit)
	}
	value := append(append(make([]byte, 0, length), head...), c.Values[0]...)
	a.put(c.Slot, c.Keys[0], value, deadline, old)
	return command.Int(int64(length))
}

func (a *applier) doGetDel(c *command.Command) command.Result {
	old := a.load(c.Slot, c.Keys[0])
	result := a.answer(old)
	a.remove(c.Slot, c.Keys[0], old)
	return result
}

func (a *applier) doGetEx(c *command.Command) command.Result {
	key := c.Keys[0]
	old := a.load(c.Slot, key)
	if !old.visible {
		return command.Nil()
	}
	result := a.answer(old)
	switch {
	case c.TTL < 0:
		a.remove(c.Slot, key, old)
	case c.TTL > 0:
		a.put(c.Slot, key, old.value, a.deadlineIn(c.TTL), old)
	case c.Flags&command.FlagPersist != 0 && old.deadline != 0:
		a.put(c.Slot, key, old.value, 0, old)
	}
	return result
}

func (a *applier) doExpire(c *command.Command) command.Result {
	key := c.Keys[0]
	old := a.load(c.Slot, key)
	if !old.visible {
		return command.Int(0)
	}
	deadline := addMillis(a.clock, c.TTL)
	has := old.deadline != 0 // a key without TTL counts as one that ends never
	refused := c.Flags&command.FlagIfNoTTL != 0 && has ||
		c.Flags&command.FlagIfTTL != 0 && !has ||
		c.Flags&command.FlagIfLonger != 0 && (!has || deadline <= old.deadline) ||
		c.Flags&command.FlagIfShorter != 0 && has && deadline >= old.deadline
	switch {
	case refused:
		return command.Int(0)
	case c.TTL <= 0:
		a.remove(c.Slot, key, old)
	default:
		a.put(c.Slot, key, old.value, deadline, old)
	}
	return command.Int(1)
}

func (a *applier) doPersist(c *command.Command) command.Result {
	old := a.load(c.Slot, c.Keys[0])
	if !old.visible || old.deadline == 0 {
		return command.Int(0)
	}
	a.put(c.Slot, c.Keys[0], old.value, 0, old)
	return command.Int(1)
}
