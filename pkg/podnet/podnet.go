// Package podnet wires pods to their node: it serves the CNI verbs that the
// plugin passes on, owns the veths named cm…, their addresses (by pkg/ipam) and
// the journal that remembers them, and reports every attachment as a row of the
// Pods table. Routes, neighbours and source checks on the node's side are made
// from that table by the datapath's loops; podnet never touches them, and
// waits for them before it answers ADD.
package podnet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/clustermesh/clustermesh/pkg/ipam"
	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/podnet/api"
	"github.com/clustermesh/clustermesh/pkg/podnet/journal"
	"github.com/clustermesh/clustermesh/pkg/state"
	"github.com/clustermesh/clustermesh/pkg/status"
)

const (
	// SourceName is the source of podnet's rows in the Pods table.
	SourceName = "podnet"
	// DefaultSocket is where the agent listens for the plugin.
	DefaultSocket = api.DefaultSocket
	// DefaultJournal is where the attachments are remembered.
	DefaultJournal = "/var/lib/clustermesh/pods"

	defaultInterval = 60 * time.Second
	syncTimeout     = 20 * time.Second
)

// HostMAC is the hardware address of the node's end of every pod veth. It can
// be the same everywhere, because every veth is a link of its own.
var HostMAC = model.MAC{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}

// Next hops of every pod. Neither is asked for by ARP or ND: the pod has a
// permanent neighbour for both. GatewayV6 is the EUI-64 address of HostMAC.
var (
	GatewayV4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	GatewayV6 = HostMAC.LinkLocal()
)

// HostIf is the name of the node's end of a pod's veth: it fits IFNAMSIZ, and
// says to a restarted agent (and to nftables) whose it is.
func HostIf(key model.PodKey) string {
	sum := sha256.Sum256([]byte(key.ContainerID + "/" + key.IfName))
	return hostIfPrefix + hex.EncodeToString(sum[:])[:hostIfDigits]
}

// podMAC is the hardware address of the pod's end: locally administered,
// unicast, the same when ADD is repeated.
func podMAC(key model.PodKey) model.MAC {
	sum := sha256.Sum256([]byte("clustermesh pod\x00" + key.ContainerID + "/" + key.IfName))
	return model.MAC{0x02, sum[0], sum[1], sum[2], sum[3], sum[4]}
}

// MTU is the MTU of pods in bytes. Device is that of the underlay and lets in
// whatever arrives unencapsulated; Route bounds what pods send.
type MTU struct{ Device, Route int }

// Options of a Server. Pods, Sync and MTU must be set.
type Options struct {
	Log   *slog.Logger
	Board *status.Board
	// Pods receives one row per attachment.
	Pods *state.Table[model.PodKey, model.Pod]
	// Sync waits until the kernel holds what Pods asks for of one of them.
	Sync func(context.Context, model.Pod) error
	// Ready says why pods cannot be added now; nil means always.
	Ready func() error
	MTU   func() MTU // asked at every ADD

	Journal string // directory; empty means DefaultJournal
	Metrics *Metrics
	Observe func(Outcome)  // called after every verb; must not block
	HostNS  netns.NsHandle // where the node's ends live; zero means the caller's
	Now     func() time.Time
	// GCInterval is how often dead attachments are looked for, Grace how old
	// an attachment must be for that. Zero means one minute.
	GCInterval, Grace time.Duration
}

// Server serves the CNI verbs. Create it with New, then Restore.
type Server struct {
	opt       Options
	hostNS    netns.NsHandle
	host      *netlink.Handle
	keys      keyLocks
	failpoint func(step string) error // tests only

	mu       sync.Mutex
	alloc    *ipam.Allocator                // guarded by mu
	entries  map[model.PodKey]journal.Entry // guarded by mu
	removing map[string]bool                // guarded by mu: orphan veths that are being deleted
	restored bool                           // guarded by mu: Restore is done
	journal  *journal.Journal               // set by Restore, before restored
}

// New returns a server that serves nothing yet.
func New(opt Options) (*Server, error) {
	if opt.Journal == "" {
		opt.Journal = DefaultJournal
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Board == nil {
		opt.Board = status.NewBoard(opt.Now)
	}
	if opt.GCInterval == 0 {
		opt.GCInterval = defaultInterval
	}
	if opt.Grace == 0 {
		opt.Grace = defaultInterval
	}
	s := &Server{
		opt: opt, alloc: ipam.New(), entries: map[model.PodKey]journal.Entry{},
		removing: map[string]bool{}, failpoint: func(string) error { return nil },
	}
	opt.Pods.Expect(SourceName)
	return s, s.openHost()
}

func (s *Server) openHost() (err error) {
	if h := s.opt.HostNS; h > 0 {
		s.hostNS, err = dupNS(int(h))
	} else {
		s.hostNS, err = netns.Get()
	}
	if err != nil {
		return fmt.Errorf("open the node's network namespace: %w", err)
	}
	if s.host, err = netlink.NewHandleAt(s.hostNS, unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open netlink in the node's network namespace: %w", errors.Join(err, s.hostNS.Close()))
	}
	return nil
}

// Close releases the journal and the sockets. Pods keep what they have.
func (s *Server) Close() error {
	s.host.Close()
	err := s.hostNS.Close()
	if s.journal != nil {
		err = errors.Join(err, s.journal.Close())
	}
	return err
}

// SetPodCIDRs sets where new pods get their addresses from. Pods that have
// other addresses keep them. Until it is called, ADD asks to be tried again.
func (s *Server) SetPodCIDRs(p model.Prefixes) {
	s.mu.Lock()
	old := s.alloc.Prefixes()
	s.alloc.SetPrefixes(p)
	s.mu.Unlock()
	if old != p {
		s.opt.Log.Info("pod CIDRs set", "prefixes", p.All(), "before", old.All())
		for _, gone := range old.All() {
			s.opt.Board.Clear(status.Key{Component: "ipam", Object: gone.String()})
		}
	}
	s.report()
}

var errStarting = errors.New("the agent is starting: pods are not restored yet")

// ready says why an ADD cannot be served now.
func (s *Server) ready() error {
	s.mu.Lock()
	p, restored := s.alloc.Prefixes(), s.restored
	s.mu.Unlock()
	if !restored {
		return errStarting
	}
	if p == (model.Prefixes{}) {
		return ipam.ErrNoPrefix
	}
	if s.opt.Ready != nil {
		return s.opt.Ready()
	}
	return nil
}
