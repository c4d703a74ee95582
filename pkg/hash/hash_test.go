package hash

import "testing"

// TestSum: other versions of a node have to get the same numbers.
func TestSum(t *testing.T) {
	for name, c := range map[string]struct {
		parts []string
		want  uint64
	}{
		"a node and an address": {[]string{"n1", "\xc0\x00\x02\x01"}, 0x18deeac38e96501b},
		"parts are joined":      {[]string{"n1\xc0\x00", "\x02\x01"}, 0x18deeac38e96501b},
		"the next address":      {[]string{"n1", "\xc0\x00\x02\x02"}, 0x489b81291edadea9},
	} {
		t.Run(name, func(t *testing.T) {
			var parts [][]byte
			for _, p := range c.parts {
				parts = append(parts, []byte(p))
			}
			if got := Sum(parts...); got != c.want {
				t.Errorf("got %#x, want %#x", got, c.want)
			}
		})
	}
}
