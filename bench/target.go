package bench

import (
	"context"
	"errors"

	"github.com/abacusdb/abacus/client"
)

// Cluster is a Target: an Abacus cluster, by way of its Go client. Many workers
// share the client's connections.
type Cluster struct{ Client *client.Client }

// Do sends the operations as one pipeline. A Get of a key that is not there is no error.
func (t Cluster) Do(ctx context.Context, ops []Op, errs []error) {
	cmds := make([]client.Cmd, len(ops))
	for i, op := range ops {
		switch op.Kind {
		case Get:
			cmds[i] = client.Command("GET", op.Key)
		case Incr:
			cmds[i] = client.Command("INCR", op.Key)
		default:
			cmds[i] = client.Cmd{Args: [][]byte{[]byte("SET"), []byte(op.Key), op.Value}}
		}
	}
	for i, r := range t.Client.DoMulti(ctx, cmds) {
		errs[i] = r.Err
	}
}

// DescribeError names the kind of a client's error, so that a report does not
// have a line for each.
func DescribeError(err error) string {
	var refused *client.ServerError
	switch {
	case errors.Is(err, client.ErrUncertain):
		return "uncertain"
	case errors.Is(err, client.ErrUnavailable):
		return "unavailable (not executed)"
	case errors.As(err, &refused):
		return "refused: " + refused.Code
	case errors.Is(err, client.ErrClosed):
		return "closed"
	}
	return "other: " + err.Error()
}
