package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// lastWord is how long the last line may take. Standard error may be a file on
// the very disk that hangs, and the process must end all the same.
const lastWord = time.Second

var dying sync.Once

// die says why and ends the process, whatever its other goroutines are doing. It does
// not return; whoever comes second waits for the first one's end.
func die(stderr io.Writer, err error) {
	dying.Do(func() {
		said := make(chan struct{})
		go func() {
			fmt.Fprintf(stderr, "abacusd: %v (exit code %d)\n", err, exitFatal)
			close(said)
		}()
		select {
		case <-said:
		case <-time.After(lastWord):
		}
		os.Exit(exitFatal)
	})
	select {}
}
