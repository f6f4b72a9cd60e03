//go:build system

package disk

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMain lets the test binary play a test that is killed: it makes a disk, freezes it if it is told to, says so, and waits for its end.
func TestMain(m *testing.M) {
	dir := os.Getenv("DISK_TEST_DIR")
	if dir == "" {
		os.Exit(m.Run())
	}
	d, err := Create(dir, "disk1", 64<<20)
	if err == nil && os.Getenv("DISK_TEST_FREEZE") != "" {
		_, err = run("fsfreeze", "--freeze", d.Path())
	}
	fmt.Println("ready:", err)
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
}

// The disks of a test that was killed are taken down when the next one makes a disk, frozen ones too; those of one that lives are left alone.
func TestSweep(t *testing.T) {
	killed, kill := play(t, "")
	frozen, killFrozen := play(t, "DISK_TEST_FREEZE=1")
	living, end := play(t, "")
	kill()
	killFrozen()
	d, err := Create(t.TempDir(), "disk1", 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{"killed": killed, "killed while frozen": frozen} {
		left, _ := filepath.Glob(filepath.Join(dir, "*")) // the pattern is well formed
		if attached(t, dir) || isMount(filepath.Join(dir, "disk1")) || len(left) > 0 {
			t.Errorf("%s: its disk is still there, and %q", name, left)
		}
	}
	if !attached(t, living) || !isMount(filepath.Join(living, "disk1")) {
		t.Error("the disk of a process that lives was taken down")
	}
	end()
	if err := sweep(); err != nil {
		t.Error(err)
	}
	if attached(t, living) {
		t.Error("the last disk is still there")
	}
}

// play starts a process with a disk in a directory of its own, and returns how to kill it.
func play(t *testing.T, env string) (dir string, kill func()) {
	t.Helper()
	dir = t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "DISK_TEST_DIR="+dir, env)
	_, err1 := cmd.StdinPipe() // kept open, or it would end by itself
	out, err2 := cmd.StdoutPipe()
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
	t.Cleanup(kill)
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready: <nil>\n" || !attached(t, dir) {
		t.Fatalf("no disk: %q, %v", line, err)
	}
	return dir, kill
}

// attached says whether an image below a directory is on a loop device.
func attached(t *testing.T, dir string) bool {
	t.Helper()
	out, err := run("losetup", "--list", "--output", "BACK-FILE")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(out, dir+"/")
}
