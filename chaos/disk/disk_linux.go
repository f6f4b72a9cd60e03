package disk

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// pageBytes is the block of the file systems and the page of the page cache.
const pageBytes = 4096

// shutdownIoctl is EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32); noLogFlush is its way
// that leaves the journal as it is, where the others would first write it out.
const (
	shutdownIoctl = 0x8004587d
	noLogFlush    = 2
)

// canaryFile is ours, in the root of each file system. It holds canaryOld, synced;
// each cut first writes canaryNew over it, not synced. If that is still there
// afterwards, the cut cut nothing.
const canaryFile = "canary"

var canaryOld, canaryNew = bytes.Repeat([]byte("old "), pageBytes/4), bytes.Repeat([]byte("new "), pageBytes/4)

// Disk is one file system. Only Tear may run at the same time as another method, Cut.
type Disk struct {
	image, device, mount string
	mounted              bool
	lock                 *os.File // see claim
	// cut: there is no power. Tear runs beside Cut, and looks here when it fails.
	cut atomic.Bool
}

// Create makes a file system of that size in dir/name.img and mounts it at
// dir/name. Close takes it down again; so does the next Create of any process when this one has ended without.
func Create(dir, name string, sizeBytes int64) (*Disk, error) {
	if err := sweep(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	d := &Disk{image: filepath.Join(dir, name+".img"), mount: filepath.Join(dir, name)}
	if err := d.create(sizeBytes); err != nil {
		return nil, errors.Join(fmt.Errorf("make disk %s: %w", d.image, err), d.Close())
	}
	return d, nil
}

func (d *Disk) create(sizeBytes int64) error {
	if err := os.Mkdir(d.mount, 0o755); err != nil {
		return err
	}
	var err error
	if d.lock, err = claim(d.image); err != nil {
		return err
	}
	f, err := os.Create(d.image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(sizeBytes), f.Close()); err != nil {
		return err
	}
	// No reserve for root: the file system is as full as it looks.
	if _, err := run("mkfs.ext4", "-q", "-F", "-b", fmt.Sprint(pageBytes), "-m", "0", d.image); err != nil {
		return err
	}
	// To find a free device and to take it are two steps; another may come in between.
	for tries := 0; ; tries++ {
		if d.device, err = run("losetup", "--find", "--show", d.image); err == nil {
			break
		} else if tries == 10 {
			return err
		}
	}
	if err := d.mountIt(); err != nil {
		return err
	}
	c, err := os.OpenFile(filepath.Join(d.mount, canaryFile), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = c.Write(canaryOld)
	return errors.Join(err, c.Sync(), c.Close())
}

// Path is where the file system is mounted, Image the file that it is in.
func (d *Disk) Path() string  { return d.mount }
func (d *Disk) Image() string { return d.image }

// Close unmounts the file system and gives the loop device back. The image stays.
func (d *Disk) Close() error {
	err := d.unmount()
	if d.device != "" {
		_, e := run("losetup", "--detach", d.device)
		err = errors.Join(err, e)
		d.device = ""
	}
	if d.lock != nil && err == nil { // or it is for who sweeps
		err = errors.Join(err, os.Remove(d.lock.Name()), d.lock.Close())
		d.lock = nil
	}
	return err
}

// noauto_da_alloc: by default ext4 writes out the bytes of a file that is renamed
// over another, which hides that somebody forgot to sync them.
func (d *Disk) mountIt() error {
	if err := syscall.Mount(d.device, d.mount, "ext4", syscall.MS_NOATIME, "noauto_da_alloc"); err != nil {
		return fmt.Errorf("mount %s: %w", d.device, err)
	}
	d.mounted = true
	d.cut.Store(false)
	return nil
}

func (d *Disk) unmount() error {
	if !d.mounted {
		return nil
	}
	// A process that was killed may hold it a moment longer.
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := syscall.Unmount(d.mount, 0)
		if err == nil {
			d.mounted = false
			return nil
		}
		if !errors.Is(err, syscall.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("unmount %s: %w", d.mount, err)
		}
		time.Sleep(time.Millisecond)
	}
}

// Tear forces about that share of the pages below Path out to the device, in runs
// of random length and in random order. Files that come and go meanwhile are
// passed over; a Cut ends it.
func (d *Disk) Tear(share float64, rng *rand.Rand) error {
	type pages struct {
		path  string
		at, n int64
	}
	var all []pages
	err := d.walk(func(path string, size int64) error {
		const most = 16 // pages in a run
		for at := int64(0); at*pageBytes < size; {
			n := 1 + rng.Int64N(most)
			if rng.Float64() < share {
				all = append(all, pages{path, at, n})
			}
			at += n
		}
		return nil
	})
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	open := map[string]*os.File{}
	defer func() {
		for _, f := range open {
			_ = f.Close()
		}
	}()
	for _, p := range all {
		if err != nil {
			break
		}
		f := open[p.path]
		if f == nil {
			if f, err = os.Open(p.path); errors.Is(err, os.ErrNotExist) {
				err = nil
				continue
			} else if err != nil {
				break
			}
			open[p.path] = f
		}
		const waitWriteWait = 7
		if err = syscall.SyncFileRange(int(f.Fd()), p.at*pageBytes, p.n*pageBytes, waitWriteWait); err != nil {
			err = fmt.Errorf("sync_file_range of %s: %w", p.path, err)
		}
	}
	return d.unlessCut(err)
}

// Dirty counts the pages below Path that are only in memory, or says
// errors.ErrUnsupported: Linux can tell since 6.5 (cachestat).
func (d *Disk) Dirty() (pages int, err error) {
	const cachestat = 451 // on every architecture
	var span = struct{ off, len uint64 }{}
	var stat struct{ cache, dirty, writeback, evicted, recentlyEvicted uint64 }
	err = d.walk(func(path string, _ int64) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		// A length of 0 is the whole file.
		if _, _, errno := syscall.Syscall6(cachestat, f.Fd(), uintptr(unsafe.Pointer(&span)), uintptr(unsafe.Pointer(&stat)), 0, 0, 0); errno == syscall.ENOSYS {
			return errors.ErrUnsupported
		} else if errno != 0 {
			return fmt.Errorf("cachestat of %s: %w", path, errno)
		}
		pages += int(stat.dirty)
		return nil
	})
	return pages, err
}

// unlessCut drops the errors that follow a Cut.
func (d *Disk) unlessCut(err error) error {
	if d.cut.Load() {
		return nil
	}
	return err
}

// walk visits all files but the canary. What is gone when it is visited is passed over.
func (d *Disk) walk(visit func(path string, size int64) error) error {
	return filepath.Walk(d.mount, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() && info.Name() != canaryFile {
			err = visit(path, info.Size())
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	})
}

// Cut cuts the power of all disks at the same moment. Those who write to them go
// on to run, and meet errors.
func Cut(disks ...*Disk) error {
	var wg sync.WaitGroup
	errs := make([]error, len(disks))
	now := make(chan struct{})
	for i, d := range disks {
		f, err := os.Open(d.mount)
		if err != nil {
			close(now)
			return errors.Join(fmt.Errorf("cut the power of %s: %w", d.mount, err), errors.Join(errs...))
		}
		defer f.Close()
		if err := d.startle(); err != nil {
			close(now)
			return err
		}
		wg.Go(func() {
			<-now
			d.cut.Store(true)
			flags := uint32(noLogFlush)
			if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), shutdownIoctl, uintptr(unsafe.Pointer(&flags))); errno != 0 {
				errs[i] = fmt.Errorf("cut the power of %s: %w", d.mount, errno)
			}
		})
	}
	close(now)
	wg.Wait()
	return errors.Join(errs...)
}

// startle writes the canary's new text, unsynced.
func (d *Disk) startle() error {
	f, err := os.OpenFile(filepath.Join(d.mount, canaryFile), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("write the canary: %w", err)
	}
	_, err = f.WriteAt(canaryNew, 0)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the canary: %w", err)
	}
	return nil
}

// Restore gives the power back after a Cut. Nobody may use the disk any more. It
// says whether the cut is seen to have lost what was not synced.
func (d *Disk) Restore() (lost bool, err error) {
	deadline := time.Now().Add(elsewhere)
	for {
		if err := d.unmount(); err != nil {
			return false, err
		}
		if err := d.mountIt(); err != nil {
			return false, err
		}
		text, err := os.ReadFile(filepath.Join(d.mount, canaryFile))
		switch {
		case err == nil:
			return bytes.Equal(text, canaryOld), nil
		case !errors.Is(err, syscall.EIO):
			return false, fmt.Errorf("read the canary: %w", err)
		case time.Now().After(deadline):
			return false, fmt.Errorf("read the canary: %w: somebody has had the file system for %v, perhaps a container that was started meanwhile, with a copy of every mount", err, elsewhere)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// elsewhere is how long Restore puts up with the file system being mounted elsewhere: a container that starts has a copy of every mount for a
// moment, and while it does, a mount gives the file system back as it was, without power.
const elsewhere = 30 * time.Second

func run(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}
