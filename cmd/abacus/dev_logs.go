package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/abacusdb/abacus/chaos/proc"
)

// devLogs copies what the nodes write to their log files to one writer, each
// line behind the node's id. The files are followed rather than the processes'
// pipes, for a node may be restarted by another command.
type devLogs struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// startDevLogs begins at the present end of each log.
func startDevLogs(c *proc.Cluster, to io.Writer) *devLogs {
	ctx, cancel := context.WithCancel(context.Background())
	l := &devLogs{cancel: cancel}
	colours := []string{"36", "33", "35", "32", "34", "31"}
	var mu sync.Mutex // lines of two nodes must not mix
	for i, n := range c.Nodes() {
		prefix := n.ID() + " | "
		if devColour(to) {
			prefix = "\x1b[" + colours[i%len(colours)] + "m" + prefix + "\x1b[0m"
		}
		var offset int64
		if info, err := os.Stat(n.LogPath()); err == nil {
			offset = info.Size()
		}
		l.wg.Go(func() {
			follow(ctx, n.LogPath(), offset, func(line []byte) {
				mu.Lock()
				defer mu.Unlock()
				fmt.Fprintf(to, "%s%s\n", prefix, line)
			})
		})
	}
	return l
}

// Close prints what is still unread and stops.
func (l *devLogs) Close() {
	l.cancel()
	l.wg.Wait()
}

// follow hands over the lines of a file as they come, until ctx ends.
func follow(ctx context.Context, path string, offset int64, line func([]byte)) {
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	var f *os.File
	var partial []byte
	chunk := make([]byte, 64<<10)
	for last := false; ; {
		if f == nil {
			if f, _ = os.Open(path); f != nil {
				defer f.Close()
				_, _ = f.Seek(offset, io.SeekStart)
			}
		}
		for f != nil {
			n, err := f.Read(chunk)
			partial = append(partial, chunk[:n]...)
			for {
				i := bytes.IndexByte(partial, '\n')
				if i < 0 {
					break
				}
				line(partial[:i])
				partial = partial[i+1:]
			}
			if err != nil || n == 0 {
				break
			}
		}
		if last {
			return
		}
		select {
		case <-ctx.Done():
			last = true // one more look: what a node said at its end
		case <-poll.C:
		}
	}
}

// watchOutput returns a writer and a context that ends when nobody reads any
// more (abacus dev up | head): the nodes must not outlive that, nor the
// process die of SIGPIPE before it has stopped them.
func watchOutput(parent context.Context, w io.Writer) (io.Writer, context.Context) {
	signal.Ignore(syscall.SIGPIPE)
	ctx, cancel := context.WithCancel(parent)
	return &watchedWriter{w: w, gone: cancel}, ctx
}

type watchedWriter struct {
	w    io.Writer
	gone func()
}

func (w *watchedWriter) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	if err != nil {
		w.gone()
	}
	return n, err
}

// devColour says whether the writer is a terminal whose user did not ask for plain text.
func devColour(w io.Writer) bool {
	if watched, ok := w.(*watchedWriter); ok {
		w = watched.w
	}
	f, ok := w.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && term.IsTerminal(int(f.Fd()))
}
