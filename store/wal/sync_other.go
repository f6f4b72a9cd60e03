//go:build !linux

package wal

import "os"

type direct struct{}

func (f *osFile) writeSync([]byte, int64) (done bool, err error) { return false, nil }
func (f *osFile) closeDirect() error                             { return nil }

func datasync(f *os.File) error { return f.Sync() }
