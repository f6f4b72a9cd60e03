//go:build linux

package campaign

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/abacusdb/abacus/chaos/workload"
	"github.com/abacusdb/abacus/client"
)

// numbered has a worker raise counters under numbers (IDEM), on connections of its own: an increment without an answer is sent again
// under its number, perhaps through another node and when the fault is over, until it is known. So in the end each counts once or not at
// all, and a counter is exact.
type numbered struct {
	session string // "": none
	last    uint64 // number given out
	// debts are increments whose end is not known, those that were tried last behind.
	debts []debt
	// known were debts, and have an answer now; forgotten, those whose session a node said to have forgotten.
	known, forgotten int
}

// debt is an increment that was sent and has no answer.
type debt struct {
	call    workload.Call
	session string
	number  uint64
}

const (
	// mostDebts and widest bound what a session has to remember: then old ones are seen to before anything else.
	mostDebts = 8
	widest    = 200
	// repayLimit is for all debts of a run, once nothing is broken any more.
	repayLimit = time.Minute
)

// errOwed is of an increment that stays under way.
var errOwed = fmt.Errorf("to be sent again: %w", client.ErrUncertain)

// raise sends an increment under the next number.
func (w *worker) raise(call workload.Call) (r workload.Result, err error) {
	addr := w.cs.plain[w.home]
	if w.session == "" {
		replies, err := w.on(addr, []string{"IDEM", "OPEN", call.Op.Key})
		if err == nil {
			err = replies[0].Err()
		}
		if err != nil {
			return r, fmt.Errorf("%w: open a session: %w", errSurely, err)
		}
		w.session = string(replies[0].Str)
	}
	w.last++
	d := debt{call, w.session, w.last}
	r, err = w.send(addr, d)
	switch {
	case codeOf(err) == sessionExpired: // the node may have sent it before
		w.session = ""
		w.forgotten++
	case outcomeOf(call.Op, err) == workload.Uncertain:
		w.debts = append(w.debts, d)
		return r, fmt.Errorf("%w: %w", errOwed, err)
	}
	return r, err
}

const sessionExpired = "SESSIONEXPIRED"

// floor is the lowest number whose answer is still wanted.
func (n *numbered) floor() uint64 {
	least := n.last
	for _, d := range n.debts {
		if d.session == n.session {
			least = min(least, d.number)
		}
	}
	return least
}

func (w *worker) send(addr string, d debt) (r workload.Result, err error) {
	number := strconv.FormatUint(d.number, 10)
	if d.session == w.session {
		number += "/" + strconv.FormatUint(min(d.number, w.floor()), 10)
	}
	replies, err := w.on(addr, []string{"IDEM", d.session, number, "INCRBY", d.call.Op.Key, strconv.FormatInt(d.call.Op.By, 10)})
	if err != nil {
		return r, err
	}
	return workload.Result{Int: replies[0].Int}, replies[0].Err()
}

// owes says whether it is time for an old increment.
func (w *worker) owes() bool {
	return len(w.debts) > 0 && (len(w.debts) >= mostDebts || w.last-w.floor() >= widest || w.rng.IntN(4) == 0)
}

// repay sends the increment that was tried longest ago again, through a node by chance. What a refusal says is said of this attempt alone.
func (w *worker) repay() {
	d := w.debts[0]
	w.debts = w.debts[1:]
	switch r, err := w.send(w.cs.plain[w.rng.IntN(len(w.cs.plain))], d); {
	case err == nil:
		w.known++
		d.call.Settle(workload.Answered, r)
	case codeOf(err) == sessionExpired:
		w.forgotten++
		d.call.Settle(workload.Uncertain, workload.Result{})
	default:
		w.debts = append(w.debts, d)
	}
}

// repayAll repays until nothing is owed or the time is over, and says what is left, which is settled as uncertain.
func (w *worker) repayAll(limit time.Time) error {
	defer w.close()
	for len(w.debts) > 0 && time.Now().Before(limit) {
		w.repay()
	}
	left := len(w.debts)
	for _, d := range w.debts {
		d.call.Settle(workload.Uncertain, workload.Result{})
	}
	w.debts = nil
	var errs []error
	if left > 0 {
		errs = append(errs, fmt.Errorf("%d numbered increments have no answer", left))
	}
	if w.forgotten > 0 {
		errs = append(errs, fmt.Errorf("%d numbered increments met a session that was forgotten, though few were used", w.forgotten))
	}
	return errors.Join(errs...)
}
