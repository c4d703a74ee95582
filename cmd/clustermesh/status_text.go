package main

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/clustermesh/clustermesh/pkg/status"
)

// cell is a piece of a line: a text, and how bad what it says is.
type cell struct {
	text  string
	level status.Level
}

func plain(text string) cell { return cell{text: text} }

func plains(texts ...string) []cell {
	cells := make([]cell, len(texts))
	for i, text := range texts {
		cells[i] = plain(text)
	}
	return cells
}

// text is what a verb prints for people: lines, and tables whose columns are aligned. Colour is put on last, since it
// must not count as width.
type text struct {
	blocks [][][]cell // a block is a table; a line is one with one row
}

func (t *text) line(cells ...cell) {
	t.blocks = append(t.blocks, [][]cell{{{text: join(cells), level: levelOf(cells)}}})
}

func (t *text) table(rows [][]cell) { t.blocks = append(t.blocks, rows) }

// full is a row of a table that runs across all columns.
func full(level status.Level, text string) []cell { return []cell{{text: text, level: level}} }

func join(cells []cell) string {
	var b strings.Builder
	for _, c := range cells {
		b.WriteString(c.text)
	}
	return b.String()
}

func levelOf(cells []cell) status.Level {
	for _, c := range cells {
		if c.level != "" {
			return c.level
		}
	}
	return ""
}

func (t *text) render(colour bool) string {
	var b strings.Builder
	for _, rows := range t.blocks {
		widths := columnWidths(rows)
		for _, row := range rows {
			b.WriteString(strings.TrimRight(renderRow(row, widths, colour), " "))
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// columnWidths leaves out rows of a single cell: they run across.
func columnWidths(rows [][]cell) []int {
	var widths []int
	for _, row := range rows {
		if len(row) == 1 {
			continue
		}
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	return widths
}

func renderRow(row []cell, widths []int, colour bool) string {
	var b strings.Builder
	for i, c := range row {
		b.WriteString(paint(c, colour))
		if i < len(row)-1 {
			b.WriteString(strings.Repeat(" ", max(0, widths[i]-utf8.RuneCountInString(c.text))+2))
		}
	}
	return b.String()
}

func paint(c cell, colour bool) string {
	code := ""
	switch {
	case !colour || c.level == "" || c.text == "":
		return c.text
	case c.level == status.OK:
		code = "32" // green
	case severity(c.level) == 1:
		code = "33" // yellow
	case c.level == status.Down:
		code = "31" // red
	default:
		code = "2" // faint
	}
	return "\x1b[" + code + "m" + c.text + "\x1b[0m"
}

// printable takes control characters out of a text that came from another cluster: it must not steer the terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if !unicode.IsPrint(r) { // controls, and what changes the direction of text
			return -1
		}
		return r
	}, text)
}
