package disk

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// lockPath is a file beside an image. Whoever uses the image has it locked, and the kernel unlocks it when that process ends, however it ends.
func lockPath(image string) string { return strings.TrimSuffix(image, ".img") + ".lock" }

// claim locks an image.
func claim(image string) (*os.File, error) {
	f, err := os.OpenFile(lockPath(image), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
	}
	return f, nil
}

// abandoned says whether an image is ours and the process that used it is gone. Then it is claimed, so that nobody else takes it down as well.
func abandoned(image string) (claimed *os.File, ok bool) {
	if _, err := os.Stat(lockPath(image)); err != nil {
		return nil, false // a stranger's
	}
	claimed, err := claim(image)
	return claimed, err == nil
}

// sweep takes down the disks of processes that ended without: their mounts, loop devices and images would be there until the machine
// starts again, and with them the memory that images may be in.
func sweep() error {
	out, err := run("losetup", "--json", "--list", "--output", "NAME,BACK-FILE")
	if err != nil {
		return err
	}
	images, err := parseLoops(out)
	if err != nil {
		return fmt.Errorf("read the list of loop devices: %w", err)
	}
	var errs []error
	for device, image := range images {
		claimed, ok := abandoned(image)
		if !ok {
			continue
		}
		d := &Disk{image: image, lock: claimed, device: device, mount: strings.TrimSuffix(image, ".img"), mounted: isMount(strings.TrimSuffix(image, ".img"))}
		if d.mounted {
			_, _ = run("fsfreeze", "--unfreeze", d.mount) // it may have been frozen: then nobody could unmount it
		}
		if err := d.Close(); err != nil {
			errs = append(errs, fmt.Errorf("take down what a process that ended has left, %s: %w", image, err))
			continue
		}
		errs = append(errs, gone(os.Remove(image)), gone(os.Remove(d.mount)))
	}
	return errors.Join(errs...)
}

// gone drops the error of what is not there: another process may sweep, too.
func gone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// isMount says whether a directory is another file system than the one around it.
func isMount(dir string) bool {
	var in, around syscall.Stat_t
	return syscall.Stat(dir, &in) == nil && syscall.Stat(filepath.Dir(dir), &around) == nil && in.Dev != around.Dev
}

// parseLoops returns the image of each loop device.
func parseLoops(out string) (map[string]string, error) {
	if strings.TrimSpace(out) == "" {
		return nil, nil // there are none
	}
	var doc struct {
		Loopdevices []struct {
			Name string
			Back string `json:"back-file"`
		}
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		return nil, err
	}
	images := map[string]string{}
	for _, l := range doc.Loopdevices {
		images[l.Name] = l.Back
	}
	return images, nil
}
