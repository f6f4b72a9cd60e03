package main

import (
	"os"
	"runtime"
)

// sparePs are more of Go's processors than there are of the machine's. One that waits for a
// sync of the disk is taken for busy until the runtime notices, for up to milliseconds;
// docs/decisions/0011-fail-stop.md has the measurement.
const sparePs = 2

// tuneRuntime sets what the environment does not set.
func tuneRuntime() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + sparePs)
	}
}
