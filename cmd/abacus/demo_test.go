package main

import (
	"testing"
	"time"

	"github.com/abacusdb/abacus/compute/job"
)

// Only a job that ran before, during and after the kill has shown anything.
func TestSpanning(t *testing.T) {
	began, gone := time.UnixMilli(1000).Add(500*time.Microsecond), time.UnixMilli(1010)
	for _, tc := range []struct {
		name              string
		started, finished int64
		want              bool
	}{
		{"from before to after", 999, 1011, true},
		{"finished before", 900, 999, false},
		{"finished during", 900, 1010, false},
		{"begun during", 1000, 1500, false},
		{"begun after", 1011, 1500, false},
		{"never begun", 0, 1500, false},
	} {
		rec := job.Record{StartedMillis: tc.started, FinishedMillis: tc.finished}
		if got := len(spanning([]job.Record{rec}, began, gone)) == 1; got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}
