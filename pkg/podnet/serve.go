package podnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/clustermesh/clustermesh/pkg/model"
	"github.com/clustermesh/clustermesh/pkg/podnet/api"
)

const (
	maxRequest   = 4 << 20 // a GC lists every attachment of the node
	drainTimeout = 10 * time.Second
)

type connKey struct{}

// Serve serves h until ctx ends, then lets the verbs that are under way finish.
// It must be used in place of http.Serve, which would lose the descriptors that
// the plugin passes.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	err := srv.Shutdown(drain)
	if err != nil {
		err = errors.Join(fmt.Errorf("drain %s: %w", l.Addr(), err), srv.Close())
	}
	if serveErr := <-done; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	return err
}

// Register adds the CNI endpoint to mux.
func (s *Server) Register(mux *http.ServeMux) { mux.HandleFunc("POST "+api.Path, s.serveCNI) }

// Outcome is a verb that has been answered.
type Outcome struct {
	Verb            string
	Key             model.PodKey
	Namespace, Name string
	Took            time.Duration
	Err             error // an *Error, or nil
}

func (s *Server) serveCNI(w http.ResponseWriter, r *http.Request) {
	started := s.opt.Now()
	req, body, err := s.handle(r)
	out := Outcome{
		Verb: req.Command, Key: req.key, Namespace: req.namespace(), Name: req.podName(),
		Took: s.opt.Now().Sub(started),
	}
	code := http.StatusOK
	if err != nil {
		e := asError(err)
		out.Err = e
		code, body = http.StatusInternalServerError, encodeError(req.version, e)
	}
	s.observe(r.Context(), out)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	w.Write(body) //nolint:errcheck // the runtime is gone; it will ask for DEL
}

// handle reads, checks and does what is asked. The request is never nil.
func (s *Server) handle(r *http.Request) (*request, []byte, error) {
	var in api.Request
	passed := passedNS(r.Context())
	if passed != nil {
		defer passed.Close()
	}
	data, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxRequest))
	if err == nil {
		err = json.Unmarshal(data, &in)
	}
	if err != nil {
		return &request{version: api.Newest}, nil, refuse(api.CodeDecode, "plugin and agent should be of one version", "read request: %v", err)
	}
	req, err := parse(in, passed)
	if err != nil {
		return req, nil, err
	}
	body, err := s.dispatch(r.Context(), req)
	return req, body, err
}

func passedNS(ctx context.Context) *os.File {
	if c, ok := ctx.Value(connKey{}).(*conn); ok {
		return c.takePassed()
	}
	return nil
}

func (s *Server) dispatch(ctx context.Context, req *request) ([]byte, error) {
	switch req.Command {
	case "STATUS":
		if err := s.ready(); err != nil {
			return nil, refuse(api.CodeUnavailable, "see clustermesh status", "the agent cannot add pods: %v", err)
		}
		return nil, nil
	case "ADD":
		if err := s.ready(); err != nil {
			return nil, refuse(api.CodeTryAgain, "see clustermesh status", "the agent cannot add pods: %v", err)
		}
		return s.add(ctx, req)
	}
	s.mu.Lock()
	restored := s.restored
	s.mu.Unlock()
	if !restored {
		return nil, &Error{Code: api.CodeTryAgain, Err: errStarting}
	}
	switch req.Command {
	case "DEL":
		return nil, s.del(ctx, req)
	case "CHECK":
		return nil, s.check(ctx, req)
	case "GC":
		return nil, s.gcVerb(ctx, req)
	}
	return nil, refuse(api.CodeEnvironment, "ADD, DEL, CHECK, STATUS, GC or VERSION", "CNI_COMMAND %q is unknown", req.Command)
}

func encodeError(version string, e *Error) []byte {
	data, err := json.Marshal(api.Error{CNIVersion: version, Code: e.Code, Msg: e.Error(), Details: e.Remedy})
	if err != nil {
		return []byte(`{"code":999,"msg":"encode error"}`)
	}
	return append(data, '\n')
}

func (s *Server) observe(ctx context.Context, o Outcome) {
	var code uint
	log := s.opt.Log.With("verb", o.Verb, "container", o.Key.ContainerID, "interface", o.Key.IfName,
		"namespace", o.Namespace, "pod", o.Name, "took", o.Took)
	if o.Err != nil {
		e := asError(o.Err)
		code = e.Code
		level := slog.LevelWarn
		if o.Verb == "STATUS" { // asked every few seconds; the board says why
			level = slog.LevelDebug
		}
		log.Log(ctx, level, "CNI request failed", "code", code, "err", e)
	} else {
		log.Debug("CNI request served")
	}
	s.opt.Metrics.request(o.Verb, code, o.Took)
	if s.opt.Observe != nil {
		s.opt.Observe(o)
	}
}
