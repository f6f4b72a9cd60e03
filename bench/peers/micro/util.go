package main

import (
	"github.com/abacusdb/abacus/bench/peers/internal/measure"
	"os"
	"strconv"
	"strings"
	"syscall"
)

func ints(s string) (out []int) {
	for _, f := range strings.Split(s, ",") {
		n, err := strconv.Atoi(f)
		measure.Check(err)
		out = append(out, n)
	}
	return
}

func fdatasync(f *os.File) error { return syscall.Fdatasync(int(f.Fd())) }
