package main

import (
	"os"
	"runtime"
	"runtime/debug"
)

// sparePs are more of Go's processors than there are of the machine's. One that waits for a
// sync of the disk is taken for busy until the runtime notices, for up to milliseconds;
// docs/decisions/0011-fail-stop.md has the measurement.
const sparePs = 2

// growth is how many percent of what is alive the heap grows by before the collector runs. What is alive is little, for the
// state lies in files and recent rows, so the usual 100 runs it many times a second under load;
// docs/decisions/0018-processor-time.md has the measurement.
const growth = 300

// Above so much for the process and for each replica, whose state in memory may have 32 MiB, the collector works
// harder: what a checkpoint leaves would else stay with the process, four times over. A limit that what is alive comes
// near to would cost more than it saves, so it grows with the replicas. docs/benchmarks.md has the measurement.
const (
	processMemory = 384 << 20
	replicaMemory = 24 << 20
)

// tuneRuntime sets what the environment does not set.
func tuneRuntime() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + sparePs)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(growth)
	}
	limitMemory(0)
}

// limitMemory sets when the collector begins to work harder, for so many replicas, unless GOMEMLIMIT does.
func limitMemory(replicas int) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(processMemory + int64(replicas)*replicaMemory)
	}
}
