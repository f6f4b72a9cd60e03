package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/abacusdb/abacus/compute/job"
)

// jobProgress shows how far a job is: a bar on a terminal, else a line now and then.
type jobProgress struct {
	w    io.Writer
	id   string
	bar  bar
	last time.Time
	pace pace
}

func newJobProgress(w io.Writer, id string) *jobProgress {
	return &jobProgress{w: w, id: id, bar: newBar(w, "job "+id, 1, false), last: time.Now()}
}

func (p *jobProgress) to(r job.Record) {
	now := time.Now()
	speed := p.pace.look(now, r)
	if terminal(p.w) {
		p.bar.describe("job " + p.id + ": " + speed)
		p.bar.set(int(1000*shareOf(r.Progress)), 1000)
		return
	}
	if now.Sub(p.last) >= progressEvery {
		p.last = now
		fmt.Fprintln(p.w, progressOf(r)+", "+speed)
	}
}

func (p *jobProgress) clear() { p.bar.clear() }

// progressOf says in a line how far a job is.
func progressOf(r job.Record) string {
	return fmt.Sprintf("job %s is %s: %d of %d tasks, %d of %d shards, %s records", r.ID, r.State, r.Progress.TasksDone, r.Progress.Tasks, r.Progress.ShardsDone, r.Progress.Shards, count(r.Progress.Records))
}

// shareOf is how much of the work is done, 0 to 1. An older server tells only of whole tasks.
func shareOf(p job.Progress) float64 {
	if p.Share > 0 || p.Tasks == 0 {
		return min(p.Share, 1)
	}
	return float64(p.TasksDone) / float64(p.Tasks)
}

// pace is how fast a job goes since somebody has begun to look: the clocks of nodes are not compared with this one.
type pace struct {
	began  time.Time
	first  job.Progress
	rounds int
	epoch  uint64
}

// look says at which rate the job goes and when it will be done, as far as that can be told.
func (p *pace) look(now time.Time, r job.Record) string {
	if r.State == job.Queued {
		return "waits for its turn"
	}
	if p.began.IsZero() || r.Epoch != p.epoch || r.Rounds != p.rounds || r.Progress.Records < p.first.Records || shareOf(r.Progress) < shareOf(p.first) { // it began, or began again, or what an attempt had read is lost
		*p = pace{began: now, first: r.Progress, rounds: r.Rounds, epoch: r.Epoch}
	}
	took := now.Sub(p.began).Seconds()
	records, read := r.Progress.Records-p.first.Records, r.Progress.Bytes-p.first.Bytes
	if took <= 0 || records <= 0 {
		return "no rate yet"
	}
	out := []string{count(int64(float64(records)/took)) + " records/s"}
	if read > 0 {
		out = append(out, byteCount(int64(float64(read)/took))+"/s")
	}
	if share := shareOf(r.Progress); share-shareOf(p.first) > 0.01 {
		eta := time.Duration((1 - share) / (share - shareOf(p.first)) * took * float64(time.Second))
		out = append(out, eta.Round(time.Second).String()+" left")
	}
	return strings.Join(out, ", ")
}
