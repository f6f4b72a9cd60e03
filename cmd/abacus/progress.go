package main

import (
	"fmt"
	"io"
	"time"
)

// progress shows how far a long work is, with its rate and the time that is left: a bar on a terminal, else a line now and then.
type progress struct {
	w           io.Writer
	what        string
	bar         bar
	began, last time.Time
}

// progressEvery is how often there is a line where there is no terminal.
const progressEvery = 5 * time.Second

func newProgress(w io.Writer, what string) *progress {
	now := time.Now()
	return &progress{w: w, what: what, bar: newBar(w, what, 1, true), began: now, last: now}
}

// to says how many bytes are done, of how many.
func (p *progress) to(done, total int64) {
	if terminal(p.w) {
		p.bar.set(int(done), int(total))
		return
	}
	if now := time.Now(); now.Sub(p.last) >= progressEvery {
		p.last = now
		fmt.Fprintln(p.w, progressLine(p.what, done, total, now.Sub(p.began)))
	}
}

// note says something beside the progress.
func (p *progress) note(text string) {
	p.bar.clear()
	fmt.Fprintln(p.w, text)
}

func (p *progress) clear() { p.bar.clear() }

func progressLine(what string, done, total int64, took time.Duration) string {
	line := fmt.Sprintf("%s: %s of %s", what, byteCount(done), byteCount(total))
	if done > 0 && took > 0 {
		rate := float64(done) / took.Seconds()
		left := time.Duration(float64(max(0, total-done)) / rate * float64(time.Second))
		line += fmt.Sprintf(", %s/s, %v left", byteCount(int64(rate)), left.Round(time.Second))
	}
	return line
}
