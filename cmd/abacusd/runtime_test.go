package main

import (
	"os"
	"runtime/debug"
	"testing"
)

// TestLimitMemory shows that the limit grows with the replicas, and that GOMEMLIMIT is left alone.
func TestLimitMemory(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	if old, ok := os.LookupEnv("GOMEMLIMIT"); ok {
		os.Unsetenv("GOMEMLIMIT")
		defer os.Setenv("GOMEMLIMIT", old)
	}
	for _, replicas := range []int{0, 8} {
		limitMemory(replicas)
		if got, want := debug.SetMemoryLimit(-1), int64(processMemory+replicas*replicaMemory); got != want {
			t.Errorf("%d replicas: %d, want %d", replicas, got, want)
		}
	}
	t.Setenv("GOMEMLIMIT", "1GiB")
	limitMemory(1)
	if got := debug.SetMemoryLimit(-1); got != processMemory+8*replicaMemory {
		t.Errorf("GOMEMLIMIT was overruled: %d", got)
	}
}
