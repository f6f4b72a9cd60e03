package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// hungWriter is standard error on a disk that hangs.
type hungWriter struct{}

func (hungWriter) Write([]byte) (int, error) { select {} }

// The process ends with 70 after one line, also when nothing can be written and
// others die at the same time. The test runs itself as that process.
func TestDie(t *testing.T) {
	switch os.Getenv("ABACUSD_TEST_DIE") {
	case "hung":
		go die(hungWriter{}, errors.New("first"))
		die(hungWriter{}, errors.New("second"))
	case "plain":
		die(os.Stderr, errors.New("raft.db: input/output error"))
	}
	for _, how := range []string{"plain", "hung"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestDie$")
		cmd.Env = append(os.Environ(), "ABACUSD_TEST_DIE="+how)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		began := time.Now()
		err := cmd.Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != exitFatal {
			t.Errorf("%s: %v, want exit code %d", how, err, exitFatal)
		}
		if took := time.Since(began); took > 10*lastWord {
			t.Errorf("%s: it took %v", how, took)
		}
		if want := "abacusd: raft.db: input/output error (exit code 70)\n"; how == "plain" && !strings.HasSuffix(stderr.String(), want) {
			t.Errorf("it says %q", stderr.String())
		}
	}
}
