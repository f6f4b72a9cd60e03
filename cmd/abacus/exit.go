package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/client/backup"
	"github.com/abacusdb/abacus/compute/job"
)

// Exit codes. Scripts depend on them.
const (
	exitOK          = 0
	exitFailed      = 1   // no such key, no records, a job that failed, a sick cluster
	exitUsage       = 2   // the command line or a job's specification
	exitCancelled   = 3   // the job was cancelled
	exitNotFound    = 4   // no such job
	exitUnavailable = 5   // the cluster did not take it; nothing was done
	exitUncertain   = 6   // it may or may not have been done
	exitDenied      = 7   // the cluster does not let the user in, or not do that
	exitTimeout     = 124 // as of timeout(1)
	exitInterrupted = 130 // 128 + SIGINT
)

var (
	errInterrupted = errors.New("interrupted")
	// errQuiet: everything was said already.
	errQuiet = errors.New("")
)

// usageError is a command line that cannot be meant so.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{err: fmt.Errorf(format, args...)} }

// exitError has an exit code of its own.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func exitCode(err error) int {
	var (
		exit  *exitError
		usage *usageError
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &exit):
		return exit.code
	case errors.As(err, &usage), errors.Is(err, client.ErrBadJob):
		return exitUsage
	case errors.Is(err, client.ErrUncertain):
		return exitUncertain
	case errors.Is(err, errInterrupted):
		return exitInterrupted
	case errors.Is(err, job.ErrCancelled):
		return exitCancelled
	case errors.Is(err, client.ErrAuth), errors.Is(err, client.ErrNoPermission):
		return exitDenied
	case errors.Is(err, client.ErrNotFound):
		return exitNotFound
	case errors.Is(err, job.ErrTimeout):
		return exitTimeout
	case errors.Is(err, client.ErrUnavailable), errors.Is(err, client.ErrBusy), errors.Is(err, client.ErrDiskFull), errors.Is(err, backup.ErrUneven), errors.Is(err, backup.ErrSnapshotLost):
		return exitUnavailable
	case errors.Is(err, client.ErrTimeout), errors.Is(err, context.DeadlineExceeded):
		return exitTimeout
	}
	return exitFailed
}

// hintFor says what to do next, where that is not plain from the error.
func hintFor(err error, a *app, cmd *cobra.Command) string {
	var usage *usageError
	switch {
	case errors.As(err, &usage):
		if cmd.HasAvailableSubCommands() {
			return fmt.Sprintf("usage: %s COMMAND\nsee:   %[1]s --help", cmd.CommandPath())
		}
		return fmt.Sprintf("usage: %s\nsee:   %s --help", cmd.UseLine(), cmd.CommandPath())
	case errors.Is(err, errInterrupted):
		return ""
	case errors.Is(err, client.ErrAuth), errors.Is(err, client.ErrNoPermission):
		return a.authHint(err)
	case errors.Is(err, client.ErrNotFound) && strings.HasPrefix(nameOf(cmd), "job"):
		return "see which jobs there are: " + a.try("job list")
	case errors.Is(err, client.ErrTooManyClients):
		return fmt.Sprintf("the nodes at %s have no room for another connection: end some clients, give other nodes with --addr or ABACUS_ADDR, or raise --max-clients of abacusd", a.addrs)
	case errors.Is(err, client.ErrTLS) && a.files.CA == "" && !a.tls:
		return "speak TLS with --tls, and name the CA that vouches for the nodes with --ca FILE (or ABACUS_CA)"
	case errors.Is(err, client.ErrTLS):
		return "check --ca (who vouches for the nodes), --cert and --key (who vouches for you), --server-name, and whether the nodes speak TLS at all"
	case errors.Is(err, client.ErrNotClientPort):
		return fmt.Sprintf("%s is not a client port; give one with --addr or ABACUS_ADDR: 7401 by default (7601 is HTTP, 7501 is for the nodes among themselves)", a.addrs)
	case errors.Is(err, client.ErrDiskFull):
		return fmt.Sprintf("delete what is not needed, or make room on the nodes' disks; see with \"%s\" on which", a.try("status"))
	case errors.Is(err, client.ErrUnavailable) && a.nobodyThere():
		return fmt.Sprintf("no node listens at %s: check the address, start a cluster here with \"%s dev up\", or name running nodes with --addr a,b,c / ABACUS_ADDR", a.addrs, self)
	case errors.Is(err, client.ErrUnavailable):
		return fmt.Sprintf("a node is there, but it needs others: a shard is served while a majority of its replicas is up; see with \"%s\" what is down", a.try("status"))
	case errors.Is(err, client.ErrUncertain) && (errors.Is(err, client.ErrTimeout) || errors.Is(err, context.DeadlineExceeded)):
		return fmt.Sprintf("the time (--timeout %v) ended while a node was at it; see with \"%s\" whether every shard has a leader", a.timeout, a.try("status"))
	}
	return ""
}

// nobodyThere says that nothing listens at any of the addresses that were given. It tries them: what the last attempt met may
// have been a node further on, of which another one told us.
func (a *app) nobodyThere() bool {
	for _, addr := range strings.Split(a.addrs, ",") {
		c, err := net.DialTimeout("tcp", strings.TrimPrefix(strings.TrimSpace(addr), "rediss://"), 300*time.Millisecond)
		if err == nil {
			c.Close()
			return false
		}
	}
	return true
}
