package peerstatus

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/mesh"
)

// How often a status is looked at, and how soon a change is written: what says
// whether all is well at once, numbers and what is about to change again later,
// the heartbeat's time alone last. Each write costs the Kubernetes API server
// several milliseconds, which hundreds of peers that connect at once must not
// add up.
const (
	lookEvery      = time.Second
	countsEvery    = 10 * time.Second
	heartbeatEvery = time.Minute
	writesPerLook  = 25
	writeTimeout   = 10 * time.Second
)

// Writer keeps the status of all Peer objects. One replica runs it.
type Writer struct {
	client   *kube.Client
	states   func(context.Context) []mesh.State
	recorder kube.Recorder
	log      *slog.Logger
	written  map[string]record // by UID; owned by Run
	failing  bool
}

// record is what an object says, and since when we know that.
type record struct {
	status v1alpha1.PeerStatus
	at     time.Time
}

// NewWriter returns a writer of what states reports.
func NewWriter(client *kube.Client, states func(context.Context) []mesh.State, recorder kube.Recorder, log *slog.Logger) *Writer {
	return &Writer{client: client, states: states, recorder: recorder, log: log}
}

// Run writes until ctx ends.
func (w *Writer) Run(ctx context.Context) error {
	w.written = nil // another leader may have written since
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		w.report(w.look(ctx))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (w *Writer) report(err error) {
	if failing := err != nil && !errors.Is(err, context.Canceled); failing != w.failing {
		w.failing = failing
		w.log.Info("status of peers", "written", !failing, "error", err)
	}
}

// look writes what is due, the most urgent and the oldest first.
func (w *Writer) look(ctx context.Context) error {
	if err := w.read(ctx); err != nil {
		return err
	}
	now := time.Now()
	known := make(map[string]record, len(w.written))
	var list []change
	for _, st := range w.states(ctx) {
		last, ok := w.written[st.Object.UID]
		if !ok {
			last.at = now
		}
		known[st.Object.UID] = last
		c := change{state: st, next: Status(st, now, last.status)}
		if c.due = due(last.status, c.next); c.due <= now.Sub(last.at) {
			list = append(list, c)
		}
	}
	w.written = known
	slices.SortStableFunc(list, func(a, b change) int {
		return cmp.Or(cmp.Compare(a.due, b.due), known[a.state.Object.UID].at.Compare(known[b.state.Object.UID].at))
	})
	for _, c := range list[:min(len(list), writesPerLook)] {
		if err := w.write(ctx, c.state, c.next); err != nil {
			return err
		}
	}
	return nil
}

// change is a status that has to be written.
type change struct {
	state mesh.State
	next  v1alpha1.PeerStatus
	due   time.Duration
}

// read learns once, in one go, what the objects say.
func (w *Writer) read(ctx context.Context) error {
	if w.written != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	list, err := w.client.Peers.List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list Peers: %w", err)
	}
	w.written = make(map[string]record, len(list.Items))
	for _, p := range list.Items {
		w.written[string(p.UID)] = record{p.Status, time.Now()}
	}
	return nil
}

// due is the time after a write from which a change is worth another one.
func due(old, next v1alpha1.PeerStatus) time.Duration {
	a, b := old, next
	a.LastHeartbeat, b.LastHeartbeat = nil, nil
	if reflect.DeepEqual(a, b) {
		if old.LastHeartbeat.Equal(next.LastHeartbeat) {
			return 1<<63 - 1
		}
		return heartbeatEvery
	}
	a.Rows, b.Rows, a.Nodes, b.Nodes, a.Refused, b.Refused = nil, nil, 0, 0, nil, nil
	a.Conditions, b.Conditions = withoutMessages(a.Conditions), withoutMessages(b.Conditions)
	if reflect.DeepEqual(a, b) || passing(b.Conditions) {
		return countsEvery
	}
	return 0
}

// passing tells whether a link is just being made: it will soon be something else.
func passing(list []metav1.Condition) bool {
	c := meta.FindStatusCondition(list, v1alpha1.ConditionConnected)
	return c != nil && (c.Reason == reasonConnecting || c.Reason == reasonListing)
}

func withoutMessages(list []metav1.Condition) []metav1.Condition {
	out := make([]metav1.Condition, 0, len(list))
	for _, c := range list {
		c.Message = "" // errors name ports, refusals numbers
		out = append(out, c)
	}
	return out
}

// write replaces the status of one object, if that is still the one we mean.
func (w *Writer) write(ctx context.Context, st mesh.State, next v1alpha1.PeerStatus) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	uid := st.Object.UID
	patch, err := json.Marshal([]map[string]any{
		{"op": "test", "path": "/metadata/uid", "value": uid},
		{"op": "add", "path": "/status", "value": next}, // replaces one that is there (RFC 6902)
	})
	if err != nil {
		return fmt.Errorf("marshal status: %w", err)
	}
	_, err = w.client.Peers.Patch(ctx, st.Name, types.JSONPatchType, patch, metav1.PatchOptions{}, "status")
	gone := apierrors.IsNotFound(err) || apierrors.IsInvalid(err) && w.replaced(ctx, st)
	if err != nil && !gone {
		return fmt.Errorf("write status of Peer %s: %w", st.Name, err)
	}
	before := w.written[uid].status
	w.written[uid] = record{next, time.Now()}
	if !gone { // else our table will say so
		w.events(st.Object, before.Conditions, next.Conditions)
	}
	return nil
}

// replaced tells whether the object is another one of the same name by now. The
// API server gives the same answer to that as to a status its schema forbids.
func (w *Writer) replaced(ctx context.Context, st mesh.State) bool {
	live, err := w.client.Peers.Get(ctx, st.Name, metav1.GetOptions{})
	return apierrors.IsNotFound(err) || err == nil && string(live.UID) != st.Object.UID
}

// events tells of conditions that changed, as far as somebody may want to act
// on it: not of how every link begins, nor of what follows from another one.
func (w *Writer) events(p kube.Peer, before, after []metav1.Condition) {
	for _, c := range after {
		old := meta.FindStatusCondition(before, c.Type)
		good := c.Status == metav1.ConditionTrue
		switch {
		case c.Type == v1alpha1.ConditionSynced, old != nil && old.Status == c.Status:
			continue
		case c.Type == v1alpha1.ConditionConnected && (passing(before) || passing(after)):
			continue
		case old == nil && good:
			continue
		}
		message := c.Message
		if message == "" {
			message = c.Type + " is " + string(c.Status)
		}
		w.recorder.OnPeer(p, !good, c.Type+"Changed", c.Type+"="+string(c.Status)+": "+message)
	}
}
