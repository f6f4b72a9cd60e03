package node

import (
	"context"
	"testing"
	"time"
)

// A forwarded proposal is given up before its caller gives up, and never too early.
func TestAnswerMargin(t *testing.T) {
	for _, given := range []time.Duration{10 * time.Millisecond, time.Second, time.Minute} {
		ctx, cancel := context.WithTimeout(t.Context(), given)
		inner, stop := withAnswerMargin(ctx)
		outer, _ := ctx.Deadline()
		d, ok := inner.Deadline()
		if margin := outer.Sub(d); !ok || margin <= 0 || margin > answerMargin || margin > given/8 {
			t.Errorf("of %v, %v are kept to answer in", given, margin)
		}
		stop()
		cancel()
	}
	ctx, stop := withAnswerMargin(context.Background())
	defer stop()
	if _, ok := ctx.Deadline(); ok {
		t.Error("a call without a deadline got one")
	}
}
