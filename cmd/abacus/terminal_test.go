//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/abacusdb/abacus/client/clienttest"
	"github.com/abacusdb/abacus/compute/job"
)

// screen is a terminal, and all that was written to it.
type screen struct {
	tty  *os.File
	over chan []byte
}

func newScreen(t *testing.T) *screen {
	t.Helper()
	far, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	if err := unix.IoctlSetPointerInt(int(far.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(far.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(far.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 200}); err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	s := &screen{tty: tty, over: make(chan []byte, 1)}
	go func() {
		var all bytes.Buffer
		_, _ = all.ReadFrom(far) // ends with EIO, when nobody has the terminal open any more
		s.over <- all.Bytes()
	}()
	return s
}

// shown ends the terminal and tells what was written.
func (s *screen) shown(t *testing.T) string {
	t.Helper()
	s.tty.Close()
	select {
	case all := <-s.over:
		return string(all)
	case <-time.After(10 * time.Second):
		t.Fatal("the terminal does not end")
		return ""
	}
}

// slowly has a job take four steps, so far apart that a bar is drawn for each; end tells how it ends.
func slowly(end func(*job.Record)) func(*job.Record) {
	step := 0
	return func(r *job.Record) {
		time.Sleep(120 * time.Millisecond) // bars are drawn ten times a second
		if step++; step > 4 {
			end(r)
			return
		}
		r.Progress = job.Progress{Tasks: 4, TasksDone: step - 1, Shards: 1, Records: int64(1000 * step), Bytes: int64(9000 * step)}
	}
}

// On a terminal a job's progress is a bar, with its rate and the time that is left, which is gone when the result is there.
func TestBarOfAJob(t *testing.T) {
	c := clienttest.New(t, 1)
	jobs(c, slowly(succeeds(job.Number("285"))))
	s := newScreen(t)
	var out bytes.Buffer
	code := run([]string{"--addr", strings.Join(c.Addrs(), ","), "job", "run", "--id", "mine"}, strings.NewReader(""), &out, s.tty)
	shown := s.shown(t)
	if code != 0 || out.String() != "285\n" {
		t.Errorf("exit code %d, %q", code, out.String())
	}
	for _, want := range []string{"job mine: ", "records/s", " left", "%"} {
		if !strings.Contains(shown, want) {
			t.Errorf("%q was not shown in %q", want, shown)
		}
	}
	if strings.Count(shown, "\r") < 3 || strings.Contains(shown, "job mine is running") {
		t.Errorf("no bar, or lines beside it: %q", shown)
	}
	if last := shown[strings.LastIndex(shown, "\r")+1:]; strings.TrimSpace(last) != "" {
		t.Errorf("the bar stays: %q", last)
	}
}

// On a terminal the state of a job that is watched is drawn in place.
func TestStatusInPlace(t *testing.T) {
	c := clienttest.New(t, 1)
	jobs(c, slowly(func(r *job.Record) { r.State, r.Code, r.Error = job.Failed, job.CodeFailed, "it broke" }))
	check(t, c, "mine\n", "", 0, "job", "submit", "--id", "mine")
	s := newScreen(t)
	code := run([]string{"--addr", strings.Join(c.Addrs(), ","), "job", "status", "-w", "mine"}, strings.NewReader(""), s.tty, s.tty)
	shown := s.shown(t)
	if n := strings.Count(shown, clearScreen); code != 0 || n < 3 || !strings.Contains(shown, "it broke") {
		t.Errorf("exit code %d, drawn %d times: %q", code, n, shown)
	}
}

// Whoever interrupts a run on a terminal is told how to cancel the job, and that it goes on.
func TestInterruptOnATerminal(t *testing.T) {
	c := clienttest.New(t, 1)
	jobs(c, slowly(func(*job.Record) { syscall.Kill(os.Getpid(), syscall.SIGINT) }))
	s := newScreen(t)
	var out bytes.Buffer
	code := run([]string{"--addr", strings.Join(c.Addrs(), ","), "job", "run", "--id", "mine"}, strings.NewReader(""), &out, s.tty)
	shown := s.shown(t)
	if code != exitInterrupted || out.Len() != 0 || !strings.Contains(shown, "job mine goes on; wait for it with: ") || !strings.Contains(shown, "Ctrl-C again within 2s cancels it") {
		t.Errorf("exit code %d, %q: %q", code, out.String(), shown)
	}
}
