package podnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/vishvananda/netlink"

	"github.com/clustermesh/clustermesh/pkg/podnet/journal"
)

// Cleanup removes all veths of ours from the calling thread's network namespace
// and the journal from the disk. It is for uninstalling: the pods that are left
// lose their network. It waits until no agent has the journal.
func Cleanup(ctx context.Context, dir string, log *slog.Logger) error {
	if _, err := os.Stat(dir); err == nil {
		j, err := journal.Open(ctx, dir)
		if err != nil {
			return err
		}
		defer j.Close()
	}
	h, err := netlink.NewHandle()
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	veths, err := listVeths(h)
	if err != nil {
		return err
	}
	var errs []error
	for name := range veths {
		errs = append(errs, deleteVeth(h, name))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	log.Info("pod interfaces removed", "count", len(veths))
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove journal: %w", err)
	}
	return nil
}
