// Package disk makes file systems whose power can be cut.
//
// A Disk is an ext4 file system in an image file, on a loop device. Tear forces
// some of the pages that are only in the page cache out to the device, so that
// writes reach it torn and out of order. Cut is the power failure: the kernel's
// EXT4_IOC_SHUTDOWN without a flush of the journal, after which nothing more
// reaches the device, whatever is dirty, and every sync fails. Restore is the
// power coming back: the file system is unmounted, everything that was only in
// memory is gone, and the next mount replays the journal.
//
// What is not shown: a device that loses what it has accepted but not flushed
// (a loop device has no such cache), and a page of 4 KiB that is torn in itself.
//
// It needs Linux and root.
package disk
