//go:build unix && !linux

package proc

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// Only Linux can tie a child's life to its parent's.
func processAttributes(bool) *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// StartTime tells two processes of one id apart.
func StartTime(pid int) string { return ps(pid, "lstart=") }

// processState is the letter of the process's state, 0 if there is none: T stopped, Z ended.
func processState(pid int) byte {
	if s := ps(pid, "state="); s != "" {
		return s[0]
	}
	return 0
}

func ps(pid int, column string) string {
	out, err := exec.Command("ps", "-o", column, "-p", strconv.Itoa(pid)).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}
