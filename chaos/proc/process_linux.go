package proc

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

func processAttributes(dieWithParent bool) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if dieWithParent {
		attr.Pdeathsig = syscall.SIGKILL
	}
	return attr
}

// StartTime tells two processes of one id apart: clock ticks since boot.
func StartTime(pid int) string {
	if f := statFields(pid); len(f) > 19 {
		return f[19] // field 22 of the whole line
	}
	return ""
}

// processState is the letter of the process's state, 0 if there is none: T stopped, Z ended.
func processState(pid int) byte {
	if f := statFields(pid); len(f) > 0 && len(f[0]) == 1 {
		return f[0][0]
	}
	return 0
}

// statFields returns the fields of /proc/PID/stat from the third on: the second is
// the program's name in parentheses and may hold anything.
func statFields(pid int) []string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	_, rest, ok := strings.Cut(string(data[strings.LastIndexByte(string(data), ')')+1:]), " ")
	if !ok {
		return nil
	}
	return strings.Fields(rest)
}
