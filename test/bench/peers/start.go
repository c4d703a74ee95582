package peers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/clustermesh/clustermesh/pkg/kube/v1alpha1"
)

// Source is the process that plays the peers, seen from the one that started it.
type Source struct {
	Peers []Peer

	cmd *exec.Cmd
	in  io.WriteCloser
	enc *json.Encoder
	dec *json.Decoder
}

// Start starts command, whose process calls Serve, and waits until its peers
// serve. They end with Close, or with our process.
func Start(ctx context.Context, cmd *exec.Cmd, spec Spec) (*Source, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start source: %w", err)
	}
	s := &Source{cmd: cmd, in: in, enc: json.NewEncoder(in), dec: json.NewDecoder(out)}
	if err := s.enc.Encode(spec); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.dec.Decode(&s.Peers); err != nil {
		return nil, errors.Join(fmt.Errorf("wait for the peers of the source: %w", err), s.Close())
	}
	return s, nil
}

// Do has an order carried out.
func (s *Source) Do(o Order) (Answer, error) {
	var a Answer
	if err := s.enc.Encode(o); err != nil {
		return a, err
	}
	if err := s.dec.Decode(&a); err != nil {
		return a, fmt.Errorf("order %s: %w", o.Do, err)
	}
	if a.Error != "" {
		return a, fmt.Errorf("order %s: %s", o.Do, a.Error)
	}
	return a, nil
}

// Close ends the process.
func (s *Source) Close() error {
	_ = s.in.Close()
	t := time.AfterFunc(10*time.Second, func() { _ = s.cmd.Process.Kill() })
	defer t.Stop()
	return s.cmd.Wait()
}

// Object is the Peer object that lets a cluster read p, the peer with that number.
func (p Peer) Object(number int) *v1alpha1.Peer {
	o := &v1alpha1.Peer{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Peer"},
		ObjectMeta: metav1.ObjectMeta{Name: p.Name},
		Spec:       v1alpha1.PeerSpec{Endpoints: []string{p.Endpoint}, Trust: v1alpha1.PeerTrust{CABundle: p.CA}},
	}
	for _, c := range PodCIDRs(number) {
		o.Spec.Import.PodCIDRs = append(o.Spec.Import.PodCIDRs, c.String())
	}
	return o
}
