package front

import (
	"sync"
	"sync/atomic"
)

// crewIdle is how many goroutines without work a crew keeps.
const crewIdle = 64

// crew runs functions beside their callers, on goroutines that stay for the next ones: a new one
// begins with a small stack that has to be grown, by copying, for every command.
type crew struct {
	work  chan func()
	idle  atomic.Int32
	close func() // sends those away that have no work; may be called again
}

func newCrew() *crew {
	c := &crew{work: make(chan func())}
	c.close = sync.OnceFunc(func() { close(c.work) })
	return c
}

// do runs f at once, whoever else is running. It is not called after close.
func (c *crew) do(f func()) {
	select {
	case c.work <- f:
	default:
		go c.run(f)
	}
}

func (c *crew) run(f func()) {
	for ok := true; ok; {
		f()
		if c.idle.Add(1) > crewIdle {
			c.idle.Add(-1)
			return
		}
		f, ok = <-c.work
		c.idle.Add(-1)
	}
}
