package etcdserver

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// dataDir is the directory of a store:
//
//	lock           held while the directory is in use
//	store/boot     the boot of the machine that wrote it, or "synced"
//	store/opening  there while the store is being opened
//	store/etcd     etcd's own
//	aside          the last store that was put aside
//
// etcd runs without fsync: the rows are derived, a killed process loses nothing
// that the kernel has, and a row is visible in a fraction of the time. Only a
// machine that goes down loses writes, and may lose them out of order. So a
// store that was not closed is believed during the same boot only, and none that
// was not in use for an hour.
type dataDir struct {
	root string
	lock *os.File
}

const synced = "synced"

// errInUse says that another process serves from the directory.
var errInUse = errors.New("it is in use by another process")

// bootIDFile is different after each boot (Linux, random(4)).
const bootIDFile = "/proc/sys/kernel/random/boot_id"

func (d dataDir) store() string   { return filepath.Join(d.root, "store") }
func (d dataDir) etcd() string    { return filepath.Join(d.store(), "etcd") }
func (d dataDir) bootID() string  { return filepath.Join(d.store(), "boot") }
func (d dataDir) opening() string { return filepath.Join(d.store(), "opening") }
func (d dataDir) database() string {
	return filepath.Join(d.etcd(), "member", "snap", "db")
}
func (d dataDir) aside() string { return filepath.Join(d.root, "aside") }

// openDir makes the directory, takes it, and puts aside a store in it that can't
// be trusted.
func openDir(root string, log *slog.Logger) (dataDir, error) {
	d := dataDir{root: root}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return d, fmt.Errorf("make directory %s: %w", root, err)
	}
	if err := d.take(); err != nil {
		return d, fmt.Errorf("open directory %s: %w", root, err)
	}
	why, err := d.doubt()
	if err == nil && why != "" {
		log.Warn("starting with an empty store", "dir", root, "reason", why)
		err = d.putAside()
	}
	if err != nil {
		return d, errors.Join(err, d.release())
	}
	return d, nil
}

// take locks the directory: a store in use must not be put aside. The lock ends
// with the process.
func (d *dataDir) take() error {
	f, err := os.OpenFile(filepath.Join(d.root, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errInUse
		}
		return errors.Join(err, f.Close())
	}
	d.lock = f
	return nil
}

func (d dataDir) release() error { return d.lock.Close() }

// doubt says why the store in the directory should not be used; it is empty if
// it is good, or if there is none.
func (d dataDir) doubt() (string, error) {
	if _, err := os.Stat(d.store()); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if _, err := os.Stat(d.opening()); err == nil {
		return "the last attempt to open it did not come back", nil
	}
	wrote, err := os.ReadFile(d.bootID())
	if errors.Is(err, fs.ErrNotExist) {
		return "it does not say who wrote it", nil
	}
	if err != nil {
		return "", fmt.Errorf("read %s: %w", d.bootID(), err)
	}
	if s := string(wrote); s != synced && s != currentBoot() {
		return "the machine went down while it was in use", nil
	}
	info, err := os.Stat(d.database())
	if err == nil && time.Since(info.ModTime()) > longAway {
		return "it was last written at " + info.ModTime().UTC().Format(time.RFC3339), nil
	}
	return "", nil
}

// longAway is how long ago a store may have been written to be believed. A server
// writes its heartbeat every few seconds; one that comes back to a node after
// days would otherwise vouch, with the marks of then, for who was there then, and
// agents and peers would delete who has come since.
const longAway = time.Hour

// putAside makes place for a new store and keeps the old one for inspection.
func (d dataDir) putAside() error {
	if err := removeAll(d.aside()); err != nil {
		return err
	}
	if err := os.Rename(d.store(), d.aside()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("put store %s aside: %w", d.store(), err)
	}
	return nil
}

// markOpening notes that the store is being opened and that it is dirty from now on.
func (d dataDir) markOpening() error {
	if err := os.MkdirAll(d.etcd(), 0o700); err != nil {
		return fmt.Errorf("make directory %s: %w", d.etcd(), err)
	}
	return errors.Join(write(d.opening(), ""), write(d.bootID(), currentBoot()))
}

// markOpened notes that the store serves.
func (d dataDir) markOpened() error {
	if err := os.Remove(d.opening()); err != nil {
		return fmt.Errorf("remove %s: %w", d.opening(), err)
	}
	return nil
}

// markSynced puts all that was written on the disk, then notes so.
func (d dataDir) markSynced() error {
	f, err := os.Open(d.store())
	if err != nil {
		return fmt.Errorf("open %s: %w", d.store(), err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", d.store(), err)
	}
	return write(d.bootID(), synced)
}

// checkDatabase opens the database once before etcd does, which opens it in a
// goroutine of its own and panics there, out of our reach.
func (d dataDir) checkDatabase() error {
	path := d.database()
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("open database %s: %w", path, err)
	}
	err = db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(_ []byte, b *bolt.Bucket) error {
			b.Cursor().Last()
			return nil
		})
	})
	return errors.Join(err, db.Close())
}

func write(path, s string) error {
	if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// currentBoot is never equal to itself where the kernel does not tell.
func currentBoot() string {
	b, err := os.ReadFile(bootIDFile)
	if err != nil {
		return fmt.Sprintf("unknown, process %d", os.Getpid())
	}
	return strings.TrimSpace(string(b))
}
