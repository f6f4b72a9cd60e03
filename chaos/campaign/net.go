//go:build linux

package campaign

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/abacusdb/abacus/chaos/lan"
)

// network is what the kinds of faults that cut links work on: a lan.LAN, or dialers for who is not root.
type network interface {
	Cut(links ...lan.Link) error
	Heal(links ...lan.Link) error
	Lose(percent int, links ...lan.Link) error
	Dropped() (map[lan.Link]uint64, error)
	Close() error
}

var _ network = (*lan.LAN)(nil)

// dialers cuts links inside the nodes: what one writes to a peer, on a connection that it has made, waits. It takes no privilege, and is
// less than a network that is cut: answers on a connection that the other has made still come. So only both directions together
// are worth the name.
type dialers struct {
	b *bed

	mu  sync.Mutex
	cut map[lan.Link]uint64 // how often so far; in it while it is cut
	all map[lan.Link]uint64
}

func (d *dialers) Cut(links ...lan.Link) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range links {
		d.all[l]++
		d.cut[l] = d.all[l]
	}
	return d.tell()
}

func (d *dialers) Heal(links ...lan.Link) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(links) == 0 {
		links = slices.Collect(maps.Keys(d.cut))
	}
	for _, l := range links {
		delete(d.cut, l)
	}
	return d.tell()
}

// tell writes every node's file. The caller holds mu.
func (d *dialers) tell() error {
	var errs []error
	for n := 1; n <= d.b.nodes(); n++ {
		var f faults
		for l := range d.cut {
			if l.From == n {
				f.Cut = append(f.Cut, d.b.node(l.To).Addrs().Peer)
			}
		}
		errs = append(errs, writeFaults(d.b.faultFile(n), f))
	}
	return errors.Join(errs...)
}

func (d *dialers) Lose(percent int, _ ...lan.Link) error {
	return fmt.Errorf("a loss of %d %%: %w", percent, errors.ErrUnsupported)
}

// Dropped counts cuts: what waited in them, nobody knows.
func (d *dialers) Dropped() (map[lan.Link]uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.all), nil
}

func (d *dialers) Close() error { return nil }
