package node

import (
	"errors"
	"fmt"
	"path/filepath"
	"syscall"

	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/store"
)

// ExitFatal is the process's exit code after a failure or a hang of its disk.
const ExitFatal = 70

// FatalError is what Config.Fatal is told: what happened to which file, and what to do.
type FatalError struct {
	Node   string
	Err    error // names the file and the operation
	Advice string
}

func (e *FatalError) Error() string {
	return fmt.Sprintf("node %s ends, for its disk cannot be trusted: %v; %s", e.Node, e.Err, e.Advice)
}

func (e *FatalError) Unwrap() error { return e.Err }

// fatal is where every failure of the disk ends. After a failed sync the kernel has
// marked the pages clean, and nobody knows what is on the disk; a later sync that
// succeeds says nothing about them. What was acknowledged, a majority has.
func (n *Node) fatal(err error) {
	n.cfg.Fatal(&FatalError{Node: n.cfg.ID, Err: err, Advice: advice(err, n.cfg.DataDir)})
}

// advice says what to do about a failure.
func advice(err error, dir string) string {
	var hang *store.HangError
	var corrupt *fsm.CorruptError
	fs := "the file system of " + filepath.Clean(dir)
	switch {
	case errors.As(err, &corrupt):
		return "the file is marked and not used again: start the node again, and it fetches this state from another node"
	case errors.As(err, &hang):
		return fmt.Sprintf("%s does not answer: look at the kernel's log (dmesg) and at the disk, then start the node again; raise --disk-timeout if it is merely slow", fs)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Sprintf("%s is full: make room on it, then start the node again", fs)
	case errors.Is(err, syscall.EROFS):
		return fmt.Sprintf("%s has become read-only, as the kernel does after an error: look at its log (dmesg), mend the file system, then start the node again", fs)
	case errors.Is(err, syscall.EIO):
		return fmt.Sprintf("%s had an error: look at the kernel's log (dmesg), replace the disk if it fails, then start the node again", fs)
	}
	return fmt.Sprintf("look at %s and at the kernel's log (dmesg), then start the node again", fs)
}
