//go:build planted

package client_test

import (
	"testing"

	"github.com/abacusdb/abacus/fsm/planted"
)

// A client that sends an unanswered write again under a new number is caught: the
// counter is higher than what was acknowledged. (go test -tags planted)
func TestPlantedRetryUnknown(t *testing.T) {
	planted.Plant(planted.RetryUnknown)
	defer planted.Plant("")
	if n, acked, _, _ := countUnderFaults(t); n <= acked {
		t.Errorf("the bug is not caught: counter %d, acknowledged %d", n, acked)
	}
}
