package peerstatus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/kube"
	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
	"github.com/clustermesh/clustermesh/pkg/mesh"
)

// How often a status is looked at, and how soon a change is written: what says
// whether all is well at once, numbers later, the heartbeat's time alone last.
const (
	lookEvery      = time.Second
	countsEvery    = 10 * time.Second
	heartbeatEvery = time.Minute
	writeTimeout   = 10 * time.Second
)

// Writer keeps the status of all Peer objects. One replica runs it.
type Writer struct {
	client   *kube.Client
	states   func(context.Context) []mesh.State
	recorder kube.Recorder
	log      *slog.Logger
	written  map[string]record // by UID
	failing  bool
}

// record is what was written last, and when.
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
	w.written = map[string]record{} // another leader may have written since
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		w.report(w.pass(ctx))
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

func (w *Writer) pass(ctx context.Context) error {
	var errs []error
	kept := map[string]record{}
	for _, st := range w.states(ctx) {
		uid := st.Object.UID
		last, known := w.written[uid]
		next := Status(st, time.Now(), last.status)
		if known && time.Since(last.at) < due(last.status, next) {
			kept[uid] = last
			continue
		}
		r, err := w.write(ctx, st)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		kept[uid] = r
	}
	w.written = kept
	return errors.Join(errs...)
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
	if reflect.DeepEqual(a, b) {
		return countsEvery
	}
	return 0
}

func withoutMessages(list []metav1.Condition) []metav1.Condition {
	out := make([]metav1.Condition, 0, len(list))
	for _, c := range list {
		c.Message = "" // errors name ports, refusals numbers
		out = append(out, c)
	}
	return out
}

// write brings one object's status up to date, unless it is so already.
func (w *Writer) write(ctx context.Context, st mesh.State) (record, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	live, err := w.client.Peers.Get(ctx, st.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && string(live.UID) != st.Object.UID {
		return record{at: time.Now()}, nil // our table will say so in a moment
	}
	if err != nil {
		return record{}, fmt.Errorf("get Peer %s: %w", st.Name, err)
	}
	before := live.Status
	live.Status = Status(st, time.Now(), before)
	if reflect.DeepEqual(before, live.Status) {
		return record{live.Status, time.Now()}, nil
	}
	if _, err = w.client.Peers.UpdateStatus(ctx, live, metav1.UpdateOptions{}); err != nil {
		return record{}, fmt.Errorf("write status of Peer %s: %w", st.Name, err)
	}
	w.events(st.Object, before.Conditions, live.Status.Conditions)
	return record{live.Status, time.Now()}, nil
}

// events tells of conditions that changed.
func (w *Writer) events(p kube.Peer, before, after []metav1.Condition) {
	for _, c := range after {
		old := meta.FindStatusCondition(before, c.Type)
		if old != nil && old.Status == c.Status {
			continue
		}
		good := c.Status == metav1.ConditionTrue
		if old == nil && (good || c.Type == v1alpha1.ConditionSynced || c.Type == v1alpha1.ConditionConnected) {
			continue // how every link begins
		}
		message := c.Message
		if message == "" {
			message = c.Type + " is " + string(c.Status)
		}
		w.recorder.OnPeer(p, !good, c.Type+"Changed", c.Type+"="+string(c.Status)+": "+message)
	}
}
