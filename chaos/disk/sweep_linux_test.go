package disk

import (
	"maps"
	"path/filepath"
	"testing"
)

// An image is abandoned when nobody has it locked any more: not while somebody does, and not if it is a stranger's.
func TestAbandoned(t *testing.T) {
	image := filepath.Join(t.TempDir(), "disk1.img")
	if _, ok := abandoned(image); ok {
		t.Error("an image without a lock is a stranger's")
	}
	owner, err := claim(image)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := abandoned(image); ok {
		t.Error("its owner lives")
	}
	if err := owner.Close(); err != nil { // as the kernel does for one that was killed
		t.Fatal(err)
	}
	claimed, ok := abandoned(image)
	if !ok {
		t.Fatal("its owner is gone")
	}
	defer claimed.Close()
	if _, ok := abandoned(image); ok {
		t.Error("two take it down")
	}
}

func TestParseLoops(t *testing.T) {
	got, err := parseLoops(`{"loopdevices": [{"name":"/dev/loop0","back-file":"/a/disk1.img"},{"name":"/dev/loop1","back-file":"/b.img (deleted)"}]}`)
	if want := map[string]string{"/dev/loop0": "/a/disk1.img", "/dev/loop1": "/b.img (deleted)"}; err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := parseLoops(""); err != nil || len(got) > 0 {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := parseLoops("junk"); err == nil {
		t.Error("junk is no list")
	}
}
