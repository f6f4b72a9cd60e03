package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// machine is where and when figures were taken, a line of the JSON file.
type machine struct {
	Kind   string `json:"kind"` // "machine"
	Time   string `json:"time"`
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Memory string `json:"memory"`
	Kernel string `json:"kernel"`
	FS     string `json:"fs"`
	Disk   string `json:"disk"`
	Go     string `json:"go"` // of the load program
	Quick  bool   `json:"quick"`
}

// failure is a row that could not be measured, a line of the JSON file.
type failure struct {
	Kind  string `json:"kind"` // "failed"
	Row   string `json:"row"`
	Error string `json:"error"`
}

func thisMachine(dir string, quick bool) machine {
	m := machine{Kind: "machine", Time: time.Now().UTC().Format(time.RFC3339), Cores: runtime.NumCPU(), Go: runtime.Version(), Quick: quick,
		CPU: field("/proc/cpuinfo", "model name"), Kernel: firstLine("/proc/sys/kernel/osrelease")}
	var kib int
	if fmt.Sscan(field("/proc/meminfo", "MemTotal"), &kib); kib > 0 {
		m.Memory = fmt.Sprintf("%.0f GiB", float64(kib)/(1<<20))
	}
	m.FS, m.Disk = fileSystem(dir)
	return m
}

// field is what follows "name :" in a file of such lines.
func field(file, name string) string {
	b, _ := os.ReadFile(file)
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func firstLine(file string) string {
	b, _ := os.ReadFile(file)
	s, _, _ := strings.Cut(string(b), "\n")
	return s
}

// fileSystem is the type of the file system that dir is on, and the disk below.
func fileSystem(dir string) (fs, disk string) {
	var st syscall.Stat_t
	if syscall.Stat(dir, &st) != nil {
		return "", ""
	}
	dev := fmt.Sprintf("%d:%d", st.Dev>>8&0xfff, st.Dev&0xff|st.Dev>>12&0xfff00)
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		before, after, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if ok && len(f) > 5 && len(g) > 0 && f[2] == dev {
			fs = g[0]
		}
	}
	if link, err := filepath.EvalSymlinks("/sys/dev/block/" + dev); err == nil {
		if _, err := os.Stat(link + "/partition"); err == nil {
			link = filepath.Dir(link)
		}
		disk = filepath.Base(link)
		if model := firstLine(link + "/device/model"); model != "" {
			disk += " (" + strings.TrimSpace(model) + ")"
		}
		if cache := firstLine(link + "/queue/write_cache"); cache != "" {
			disk += ", " + cache
		}
	}
	return fs, disk
}

// versionOf is the first line that a program says about itself.
func versionOf(program, flag string) string {
	out, err := exec.Command(program, flag).Output()
	if err != nil {
		return ""
	}
	s, _, _ := strings.Cut(string(out), "\n")
	return s
}
