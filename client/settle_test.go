package client

import (
	"errors"
	"testing"
)

// A write that was sent before is uncertain, although the client was closed before
// it could be sent again; one that never was sent, and a read, are not.
func TestClosedBetweenAttempts(t *testing.T) {
	for _, tc := range []struct {
		cmd    Cmd
		unsure bool
		want   error
	}{
		{Command("INCR", "n"), false, ErrClosed},
		{Command("INCR", "n"), true, ErrUncertain},
		{Command("GET", "n"), true, ErrClosed},
	} {
		p := &call{cmd: tc.cmd, plan: planOf(tc.cmd), out: &Result{}, attempts: 2, unsure: tc.unsure, last: &linkError{addr: "n1", err: ErrClosed}}
		var failed *CommandError
		if again := p.settle(&Client{}); again || !errors.As(p.out.Err, &failed) || failed.Kind != tc.want {
			t.Errorf("%s, unsure %v: %v, again %v", tc.cmd.Name(), tc.unsure, p.out.Err, again)
		}
	}
}
