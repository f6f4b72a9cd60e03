package node

import (
	"errors"
	"testing"
)

// A replica that was lost and replaced never opens here again, though the cached map
// be older than its replacement and still place it here.
func TestRepairLostStaysLost(t *testing.T) {
	path := t.TempDir()
	d, err := openDataDir(path, "n1")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := d.replicaDir(3, "n1.1")
	if err != nil || dir == "" {
		t.Fatal(dir, err)
	}
	if _, err := d.quarantine(3, "n1.1"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // not before it is noted, and not after
		if _, err := d.replicaDir(3, "n1.1"); !errors.Is(err, errReplicaLost) {
			t.Errorf("opened again: %v", err)
		}
		if err := d.lose(3, "n1.1"); err != nil {
			t.Fatal(err)
		}
	}
	if got := d.replicas(3); len(got) != 0 {
		t.Errorf("still here: %v", got)
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	if d, err = openDataDir(path, "n1"); err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if _, err := d.replicaDir(3, "n1.1"); !errors.Is(err, errReplicaLost) {
		t.Errorf("after a restart: %v", err)
	}
	if _, err := d.replicaDir(3, "n1.2"); err != nil {
		t.Errorf("its successor: %v", err)
	}
}
