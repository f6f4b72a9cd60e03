package lan

import "slices"

// What follows are the links to cut for the shapes of broken networks that bugs were found with; see Jepsen's nemeses.

// Split are the links between hosts of different groups. A host in no group keeps all its links.
func Split(groups ...[]int) (links []Link) {
	for i, a := range groups {
		for j, b := range groups {
			if i == j {
				continue
			}
			for _, from := range a {
				for _, to := range b {
					links = append(links, Link{from, to})
				}
			}
		}
	}
	return links
}

// Deaf are the links to a host, which then hears nobody and is heard; Mute, those from it.
func Deaf(host, hosts int) []Link {
	return slices.DeleteFunc(all(hosts), func(l Link) bool { return l.To != host })
}

// Mute: see Deaf.
func Mute(host, hosts int) []Link {
	return slices.DeleteFunc(all(hosts), func(l Link) bool { return l.From != host })
}

// Alone are the links of a host, in both directions.
func Alone(host, hosts int) []Link { return append(Deaf(host, hosts), Mute(host, hosts)...) }

// Ring leaves each host so many neighbours on each side, in the order given: of five with one, each sees a majority, itself
// among it, and no two see the same one.
func Ring(order []int, neighbours int) (links []Link) {
	n := len(order)
	for i, from := range order {
		for j, to := range order {
			if d := (j - i + n) % n; min(d, n-d) > neighbours {
				links = append(links, Link{from, to})
			}
		}
	}
	return links
}

// Bridge leaves one host that sees two groups, which do not see each other.
func Bridge(order []int) []Link {
	half := len(order) / 2
	return Split(order[:half], order[half+1:])
}

func all(hosts int) (links []Link) {
	for from := 1; from <= hosts; from++ {
		for to := 1; to <= hosts; to++ {
			if from != to {
				links = append(links, Link{from, to})
			}
		}
	}
	return links
}
