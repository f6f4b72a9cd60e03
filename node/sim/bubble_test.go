package sim

import (
	"strings"
	"testing"
)

// A goroutine that outlives its scenario is reported.
func TestLeftBehind(t *testing.T) {
	if left := bubble(t, func() { go func() { <-make(chan int) }() }); !strings.Contains(left, "TestLeftBehind") {
		t.Errorf("left behind: %q", left)
	}
	if left := bubble(t, func() {}); left != "" {
		t.Errorf("left behind: %s", left)
	}
}
