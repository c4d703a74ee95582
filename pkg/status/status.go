// Package status is the one place where every part says how it is: a board of
// lines, each naming an object, what is the matter and what to do about it.
// The same lines are served as JSON, printed by the CLI and counted in metrics.
package status

import (
	"sort"
	"sync"
	"time"
)

// Level says how bad a line is.
type Level string

// The levels. Info is for facts worth showing that need no action.
const (
	OK       Level = "ok"
	Info     Level = "info"
	Degraded Level = "degraded"
	Down     Level = "down"
)

// Key names a line: the part that speaks and the object it speaks of.
type Key struct {
	Component string `json:"component"`        // routes, nft, mesh, …
	Object    string `json:"object,omitempty"` // a node, a peer, a prefix
}

// Line is one statement.
type Line struct {
	Key
	Level   Level     `json:"level"`
	Message string    `json:"message,omitempty"`
	Remedy  string    `json:"remedy,omitempty"`
	Since   time.Time `json:"since"` // when level or message last changed
}

// Board collects lines. It is safe for concurrent use.
type Board struct {
	now   func() time.Time
	mu    sync.Mutex
	lines map[Key]Line // guarded by mu
}

// NewBoard returns an empty board. now is time.Now outside of tests.
func NewBoard(now func() time.Time) *Board {
	return &Board{now: now, lines: map[Key]Line{}}
}

// Set puts a line, keeping its Since if nothing but the remedy changed. It
// tells whether the level changed, so that callers log one line per transition.
func (b *Board) Set(k Key, level Level, message, remedy string) (changed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old, ok := b.lines[k]
	l := Line{Key: k, Level: level, Message: message, Remedy: remedy, Since: old.Since}
	if !ok || old.Level != level || old.Message != message {
		l.Since = b.now()
	}
	b.lines[k] = l
	return !ok || old.Level != level
}

// Clear removes a line.
func (b *Board) Clear(k Key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.lines, k)
}

// Lines returns all lines, sorted by component and object.
func (b *Board) Lines() []Line {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]Line, 0, len(b.lines))
	for _, l := range b.lines {
		out = append(out, l)
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].Component != out[j].Component {
			return out[i].Component < out[j].Component
		}
		return out[i].Object < out[j].Object
	})
	return out
}

// Worst is the worst level on the board, OK if it is empty.
func (b *Board) Worst() Level {
	worst := OK
	for _, l := range b.Lines() {
		if rank(l.Level) > rank(worst) {
			worst = l.Level
		}
	}
	return worst
}

func rank(l Level) int {
	switch l {
	case Down:
		return 2
	case Degraded:
		return 1
	}
	return 0
}
