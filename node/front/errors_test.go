package front

import (
	"slices"
	"strings"
	"testing"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/fsm/command"
)

// Every code that a shard or its leader can refuse a command with has words of its
// own, and a prefix that is counted. Only those that say that it will pass by itself are
// among those that client libraries repeat.
func TestResultErrors(t *testing.T) {
	repeated := []string{"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "READONLY"}
	for code, want := range map[command.Code]string{
		command.CodeDiskFull:      "DISKFULL nothing was done: ",
		command.CodeTooLarge:      "TOOLARGE ",
		command.CodeWrongShard:    "TRYAGAIN nothing was done: ",
		command.CodeUninitialized: "CLUSTERDOWN nothing was done",
		command.CodeNotInteger:    "ERR value is not an integer",
	} {
		got := resultError(&command.Result{Kind: command.KindError, Code: code})
		prefix, _, _ := strings.Cut(got, " ")
		if !strings.HasPrefix(got, want) || !slices.Contains(errorPrefixes[:len(errorPrefixes)-1], prefix) {
			t.Errorf("%v: %q, want %q", code, got, want)
		}
		if passes := code == command.CodeWrongShard || code == command.CodeUninitialized; slices.Contains(repeated, prefix) != passes {
			t.Errorf("%v: clients would repeat %q: %v", code, prefix, !passes)
		}
	}
}

// The place of a fault in a spec goes over the wire, in the one line that an error is.
func TestBadJobShowsThePlace(t *testing.T) {
	_, err := job.ParseSpec([]byte(`{"filter":"key sufix .jpg"}`))
	text := errorText(err, true)
	if want := "BADJOB filter: character 5: unknown \"sufix\" (one of prefix, suffix, re, range comes here; quote a text that has \" and \" in it)\tkey sufix .jpg\t    ^"; text != want {
		t.Errorf("got  %q\nwant %q", text, want)
	}
}
