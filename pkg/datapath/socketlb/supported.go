package socketlb

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Unsupported says why sockets can't be served here, and what to do about it.
type Unsupported struct{ Reason, Remedy string }

func (u *Unsupported) Error() string { return u.Reason }

// Supported asks whether kernel and machine can do it, and changes nothing. The
// error is an *Unsupported.
func Supported(opt Options) error {
	if _, magic, err := fileSystem(opt.Cgroup); err != nil || magic != unix.CGROUP2_SUPER_MAGIC {
		return &Unsupported{fmt.Sprintf("%s is no version 2 cgroup", opt.Cgroup),
			"boot with cgroup v2, or set pods.agent.cgroupRoot to where it is mounted"}
	}
	in, magic, err := fileSystem(opt.Pins)
	if err != nil || magic != unix.BPF_FS_MAGIC {
		return &Unsupported{fmt.Sprintf("%s is in no BPF file system", opt.Pins), "mount one on the node: mount -t bpf bpf /sys/fs/bpf"}
	}
	if err := unix.Access(in, unix.W_OK|unix.X_OK); err != nil {
		return &Unsupported{fmt.Sprintf("%s can't be written to: %v", in, err), "mount the BPF file system writable: mount -o remount,rw /sys/fs/bpf"}
	}
	spec, err := loadObject()
	if err != nil {
		return &Unsupported{err.Error(), "this is a fault of ours; report it"}
	}
	for _, m := range spec.Maps {
		m.MaxEntries = min(m.MaxEntries, 64) // a map of socket storage has none
	}
	programs, err := load(spec, nil)
	if err != nil {
		return &Unsupported{"the kernel refuses the programs: " + firstLine(err), "use Linux 5.15 or later with CONFIG_CGROUP_BPF"}
	}
	closePrograms(programs)
	return nil
}

// fileSystem is the magic number of the one that path is, or would be, in, and
// the part of path that is there.
func fileSystem(path string) (in string, magic int64, err error) {
	var stat unix.Statfs_t
	err = unix.Statfs(path, &stat)
	for errors.Is(err, os.ErrNotExist) && path != filepath.Dir(path) {
		path = filepath.Dir(path)
		err = unix.Statfs(path, &stat)
	}
	return path, int64(stat.Type), err
}

// firstLine leaves the verifier's log out.
func firstLine(err error) string {
	var verifier *ebpf.VerifierError
	if errors.As(err, &verifier) {
		return verifier.Cause.Error()
	}
	return err.Error()
}
