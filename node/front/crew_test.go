package front

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

// TestCrew shows that functions run beside each other whatever their number, that goroutines are
// used again, and that none is left after the end.
func TestCrew(t *testing.T) {
	before := runtime.NumGoroutine()
	c := newCrew()
	const n = 3 * crewIdle
	var started, ended sync.WaitGroup
	all := make(chan struct{})
	for range n {
		started.Add(1)
		ended.Add(1)
		c.do(func() {
			started.Done()
			<-all // so each needs a goroutine of its own
			ended.Done()
		})
	}
	started.Wait()
	close(all)
	ended.Wait()
	await(t, func() bool { return c.idle.Load() == crewIdle && runtime.NumGoroutine() <= before+crewIdle })
	await(t, func() bool { // one that has said that it is idle may not have begun to wait
		idle := make(chan int32)
		c.do(func() { idle <- c.idle.Load() })
		return <-idle < crewIdle
	})
	c.close()
	await(t, func() bool { return runtime.NumGoroutine() <= before })
}

func await(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("did not come: %d goroutines", runtime.NumGoroutine())
		}
	}
}
