package socketlb

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// outcomes are the names of enum outcome in socketlb.c.
var outcomes = []string{"forwarded", "missed"}

// Outcomes counts what became of sockets and datagrams to Services since the
// programs came: forwarded to a backend, or missed, which means that the set of
// slots was just replaced and nftables got the packet. It is empty if there are
// no programs.
func Outcomes(pins string) (map[string]uint64, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(pins, "outcomes"), nil)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open map outcomes: %w", err)
	}
	defer m.Close()
	out := map[string]uint64{}
	for i, name := range outcomes {
		var perCPU []uint64
		if err := m.Lookup(uint32(i), &perCPU); err != nil {
			return nil, fmt.Errorf("read outcome %s: %w", name, err)
		}
		for _, n := range perCPU {
			out[name] += n
		}
	}
	return out, nil
}
