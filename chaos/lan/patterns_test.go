package lan

import (
	"maps"
	"slices"
	"testing"
)

// TestPatterns shows who sees whom: row by row the hosts that each hears.
func TestPatterns(t *testing.T) {
	order := []int{3, 1, 4, 5, 2}
	for _, c := range []struct {
		name string
		cut  []Link
		want map[int][]int // by host that hears
	}{
		{"none", nil, map[int][]int{1: {2, 3, 4, 5}, 2: {1, 3, 4, 5}, 3: {1, 2, 4, 5}, 4: {1, 2, 3, 5}, 5: {1, 2, 3, 4}}},
		{"split", Split([]int{1, 2}, []int{3, 4, 5}), map[int][]int{1: {2}, 2: {1}, 3: {4, 5}, 4: {3, 5}, 5: {3, 4}}},
		{"deaf", Deaf(2, 5), map[int][]int{1: {2, 3, 4, 5}, 2: nil, 3: {1, 2, 4, 5}, 4: {1, 2, 3, 5}, 5: {1, 2, 3, 4}}},
		{"mute", Mute(2, 5), map[int][]int{1: {3, 4, 5}, 2: {1, 3, 4, 5}, 3: {1, 4, 5}, 4: {1, 3, 5}, 5: {1, 3, 4}}},
		{"alone", Alone(2, 5), map[int][]int{1: {3, 4, 5}, 2: nil, 3: {1, 4, 5}, 4: {1, 3, 5}, 5: {1, 3, 4}}},
		{"ring", Ring(order, 1), map[int][]int{3: {1, 2}, 1: {3, 4}, 4: {1, 5}, 5: {2, 4}, 2: {3, 5}}},
		{"bridge", Bridge(order), map[int][]int{3: {1, 4}, 1: {3, 4}, 4: {1, 2, 3, 5}, 5: {2, 4}, 2: {4, 5}}},
	} {
		hears := map[int][]int{}
		for host := 1; host <= 5; host++ {
			hears[host] = nil
		}
		for _, l := range all(5) {
			if !slices.Contains(c.cut, l) {
				hears[l.To] = append(hears[l.To], l.From)
			}
		}
		if !maps.EqualFunc(hears, c.want, slices.Equal) {
			t.Errorf("%s: hosts hear %v, want %v", c.name, hears, c.want)
		}
	}
}
