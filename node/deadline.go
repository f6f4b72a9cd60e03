package node

import (
	"context"
	"time"
)

// answerMargin is how long before its caller gives up a forwarded proposal is given
// up here, at most.
const answerMargin = 100 * time.Millisecond

// withAnswerMargin ends a little before ctx does. A caller's deadline travels with the
// call, so without this both would give up at once: the leader could say that nothing
// was logged, and nobody would be left to hear it.
func withAnswerMargin(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, deadline.Add(-min(answerMargin, time.Until(deadline)/8)))
}
