package status

import "log/slog"

// Shown are the lines that one who decides has put on a board. The zero value is
// none. It is not safe for concurrent use.
type Shown struct{ keys map[Key]bool }

// Show puts the newest lines there instead, and logs those that are new.
func (s *Shown) Show(board *Board, log *slog.Logger, lines []Line) {
	old := s.keys
	s.keys = make(map[Key]bool, len(lines))
	for _, l := range lines {
		if board.Set(l.Key, l.Level, l.Message, l.Remedy) {
			say := log.Warn
			if l.Level == OK || l.Level == Info {
				say = log.Info
			}
			say("plan", "component", l.Component, "object", l.Object, "message", l.Message)
		}
		s.keys[l.Key] = true
		delete(old, l.Key)
	}
	for k := range old {
		board.Clear(k)
	}
}
