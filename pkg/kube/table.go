package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/clustermesh/clustermesh/pkg/state"
)

// Source is the name under which the Kubernetes API claims rows.
const Source = "kubernetes"

// lister is what all typed clients can do.
type lister[L runtime.Object] interface {
	List(ctx context.Context, opts metav1.ListOptions) (L, error)
	Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error)
}

// store is what a reflector writes to.
type store[O runtime.Object] interface {
	cache.ReflectorStore
	begin() (name string)
	of(O) // says which objects it takes
}

// follow keeps tables equal to the objects of a client until ctx ends. Objects
// themselves are not kept.
func follow[O runtime.Object, L runtime.Object](ctx context.Context, log *slog.Logger, from lister[L],
	selector metav1.ListOptions, into store[O]) error {
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return from.List(ctx, selected(o, selector))
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return from.Watch(ctx, selected(o, selector))
		},
	}
	name := into.begin()
	l := klog.Logger(logr.FromSlogHandler(log.Handler()))
	var example O
	r := cache.NewReflectorWithOptions(lw, nil, into, cache.ReflectorOptions{
		Logger: &l, Name: name, TypeDescription: fmt.Sprintf("%T", example)})
	r.RunWithContext(ctx)
	return ctx.Err()
}

func selected(o, selector metav1.ListOptions) metav1.ListOptions {
	o.LabelSelector, o.FieldSelector = selector.LabelSelector, selector.FieldSelector
	return o
}

// rowStore is what a reflector writes to: it passes rows on to a table and
// keeps of each object only the keys of its rows.
type rowStore[O runtime.Object, K, V comparable] struct {
	name  string
	table *state.Table[K, V]
	rows  func(O) map[K]V
	held  map[string][]K // object → keys; used by the reflector's goroutine only
}

func (s *rowStore[O, K, V]) begin() string {
	s.held = map[string][]K{}
	s.table.Expect(Source)
	return s.name
}

func (s *rowStore[O, K, V]) of(O) {}

// Add implements cache.ReflectorStore.
func (s *rowStore[O, K, V]) Add(obj any) error { return s.put(obj) }

// Update implements cache.ReflectorStore.
func (s *rowStore[O, K, V]) Update(obj any) error { return s.put(obj) }

// Resync implements cache.ReflectorStore.
func (s *rowStore[O, K, V]) Resync() error { return nil }

func (s *rowStore[O, K, V]) put(obj any) error {
	name, o, err := s.object(obj)
	if err != nil {
		return err
	}
	rows := s.rows(o)
	var gone []K
	for _, k := range s.held[name] {
		if _, still := rows[k]; !still {
			gone = append(gone, k)
		}
	}
	s.hold(name, rows)
	s.table.Update(Source, rows, gone)
	return nil
}

// Delete implements cache.ReflectorStore.
func (s *rowStore[O, K, V]) Delete(obj any) error {
	name, _, err := s.object(obj)
	if err != nil {
		return err
	}
	s.table.Update(Source, nil, s.held[name])
	delete(s.held, name)
	return nil
}

// Replace implements cache.ReflectorStore: the list is authoritative.
func (s *rowStore[O, K, V]) Replace(objs []any, _ string) error {
	all := make(map[K]V, len(objs))
	s.held = make(map[string][]K, len(objs))
	for _, obj := range objs {
		name, o, err := s.object(obj)
		if err != nil {
			return err
		}
		rows := s.rows(o)
		s.hold(name, rows)
		for k, v := range rows {
			all[k] = v
		}
	}
	s.table.Replace(Source, all)
	return nil
}

func (s *rowStore[O, K, V]) hold(name string, rows map[K]V) {
	keys := make([]K, 0, len(rows))
	for k := range rows {
		keys = append(keys, k)
	}
	s.held[name] = keys
}

func (s *rowStore[O, K, V]) object(obj any) (name string, o O, err error) {
	o, ok := obj.(O)
	if !ok {
		return "", o, fmt.Errorf("%s: got %T, want %T", s.name, obj, o)
	}
	name, err = cache.MetaNamespaceKeyFunc(obj)
	return name, o, err
}

// one is the row of an object that stands for exactly one.
func one[K, V comparable](k K, v V) map[K]V { return map[K]V{k: v} }

// both writes the same objects to two stores.
type both[O runtime.Object] struct{ one, two store[O] }

func (b both[O]) begin() string { b.two.begin(); return b.one.begin() }

func (b both[O]) of(O) {}

// Add implements cache.ReflectorStore.
func (b both[O]) Add(obj any) error { return errors.Join(b.one.Add(obj), b.two.Add(obj)) }

// Update implements cache.ReflectorStore.
func (b both[O]) Update(obj any) error { return errors.Join(b.one.Update(obj), b.two.Update(obj)) }

// Delete implements cache.ReflectorStore.
func (b both[O]) Delete(obj any) error { return errors.Join(b.one.Delete(obj), b.two.Delete(obj)) }

// Resync implements cache.ReflectorStore.
func (b both[O]) Resync() error { return nil }

// Replace implements cache.ReflectorStore.
func (b both[O]) Replace(objs []any, version string) error {
	return errors.Join(b.one.Replace(objs, version), b.two.Replace(objs, version))
}
