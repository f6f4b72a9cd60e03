package fsm

import (
	"maps"
	"slices"
	"sync"
	"time"
)

// A pin is a view at exactly the index of the entry that asked for it (command.OpPin), on every replica that applies the entry. So the parts
// of a job can be read on any of them, again and again, and are parts of one state.
//
// Pins are no replicated state. Time, and what is held for them, is this replica's own; whether there is a pin changes nothing that is applied or
// answered in the log. A replica that gets its state past the entry from another never has the pin, one that applies the entry again after a start has it anew.
//
// Who reads gets a View of its own (Pinned). All of a pin's views share its layers, which nobody writes to any more, and its transaction, of which
// bbolt's reading side keeps nothing (fileLayer); it ends when the last of them and the pin have let go.

// pins are those of one replica.
type pins struct {
	f    *FSM
	kick chan struct{} // has a token when there is something for run

	mu    sync.Mutex // taken after FSM.mu, and held for moments: the FSM goroutine takes it
	live  map[pinKey]*pin
	ended []PinGoneError // the last of them, the newest at the end
	open  map[*source]struct{}
	drop  []*source // that pins have let go of, and run is to
	// reasons counts the pins that ended or were refused; copied, those that read a file of their own now.
	reasons map[PinReason]uint64
	copied  uint64
	settled settled
}

type pinKey struct{ id, index uint64 }

// pin is one of them. Behind pins.mu, but for what is never changed.
type pin struct {
	pinKey
	made   time.Time // monotonic, as are all times here
	ttl    time.Duration
	view   View  // of which the readers' are copies, but for the file
	memory int64 // of its layers, in bytes

	src     *source
	readers int
	used    time.Time // when it was made, or a reader came or went
}

// source is a file as of one transaction, which pins between two checkpoints share.
type source struct {
	gen  *generation
	file *fileLayer
	copy bool // not the state's file, but a copy for these pins

	// Behind pins.mu:
	users   int // pins, readers, and who copies it
	copying bool
}

// pinCommand is what an entry says about pins.
type pinCommand struct {
	id  uint64
	ttl time.Duration
	end bool
}

// keepEnded is of how many pins it is known why they ended.
const keepEnded = 64

func newPins(f *FSM) *pins {
	f.cfg.Pins.setDefaults()
	if f.cfg.Room == nil {
		f.cfg.Room = func(int64) bool { return true }
	}
	if f.cfg.PinTurn == nil {
		f.cfg.PinTurn = NewTurn()
	}
	return &pins{f: f, kick: make(chan struct{}, 1), live: map[pinKey]*pin{}, open: map[*source]struct{}{}, reasons: map[PinReason]uint64{}}
}

// applied takes and ends the pins of an entry that is applied as a whole, on the FSM goroutine. The caller holds FSM.mu. It closes nothing: to close
// a file may take long, and writes would wait for it.
func (p *pins) applied(gen *generation, a *applier) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range a.pins {
		if c.end {
			for k, pn := range p.live {
				if k.id == c.id {
					p.end(pn, PinUnpinned)
				}
			}
			continue
		}
		k := pinKey{c.id, a.index}
		switch {
		case p.live[k] != nil: // asked for twice in one entry
		case len(p.live) >= p.f.cfg.Pins.Number:
			p.note(k, PinNumber)
		default:
			p.take(k, c.ttl, gen, a)
		}
	}
	p.wake()
}

// take makes a pin of the state as it is.
func (p *pins) take(k pinKey, ttl time.Duration, gen *generation, a *applier) {
	src, err := p.present(gen, a.layers.file.tx.ID())
	if err != nil {
		p.f.log.Error("pin the state", "pin", k.id, "index", k.index, "err", err)
		p.note(k, PinFault)
		return
	}
	src.users++
	now := time.Now()
	pn := &pin{pinKey: k, made: now, used: now, ttl: ttl, view: *a.view(gen, src.file), src: src}
	pn.memory = pn.view.layers.active.bytes + pn.view.layers.frozenBytes()
	p.live[k] = pn
}

// present is the state's file as it is now: that of a pin since the last checkpoint, which wrote tx, or a new one.
func (p *pins) present(gen *generation, tx int) (*source, error) {
	for src := range p.open {
		if src.gen == gen && src.file.tx.ID() == tx {
			return src, nil
		}
	}
	if !gen.acquire() { // the FSM's own use of it ends with FSM.closed only
		panic("fsm: pin a state that is closed")
	}
	file, err := openFileLayer(gen)
	if err != nil {
		gen.release() // not the last
		return nil, err
	}
	src := &source{gen: gen, file: file}
	p.open[src] = struct{}{}
	return src, nil
}

// Pinned is a view of a pin, for one goroutine, which closes it; others may have theirs at the same time. To open it and to close it counts as a use of the
// pin. index is that of the pin's entry, and is applied: see WaitApplied. Errors: ErrNoPin, *PinGoneError, ErrClosed.
func (f *FSM) Pinned(id, index uint64) (*View, error) {
	select {
	case <-f.done:
		return nil, ErrClosed
	default:
	}
	p, k := f.pins, pinKey{id, index}
	p.mu.Lock()
	defer p.mu.Unlock()
	pn := p.live[k]
	if pn == nil {
		for _, e := range slices.Backward(p.ended) {
			if e.Pin == id && e.Index == index {
				return nil, &e
			}
		}
		return nil, ErrNoPin
	}
	pn.readers++
	pn.used = time.Now()
	pn.src.users++
	v := pn.view
	v.gen, v.layers.file, v.pin, v.src = pn.src.gen, pn.src.file, pn, pn.src
	return &v, nil
}

// RenewPin has a pin live as if it were used now: somebody waits for his turn to read it. It makes no difference where there is none.
func (f *FSM) RenewPin(id, index uint64) {
	p := f.pins
	p.mu.Lock()
	defer p.mu.Unlock()
	if pn := p.live[pinKey{id, index}]; pn != nil {
		pn.used = time.Now()
	}
}

// leave is a reader's Close.
func (p *pins) leave(pn *pin, src *source) {
	p.mu.Lock()
	pn.readers--
	pn.used = time.Now()
	p.mu.Unlock()
	p.release(src)
}

// release lets go of a source. The last one closes it.
func (p *pins) release(src *source) {
	p.mu.Lock()
	src.users--
	last := src.users == 0
	if last {
		delete(p.open, src)
		if !src.copy {
			p.settled = settled{src.gen.n, p.f.st.Load().fileTx}
		}
	}
	p.mu.Unlock()
	if last {
		src.file.close()
		src.gen.release()
	}
}

// end ends a pin for those who come; who reads it, reads on. The caller holds mu and has run woken.
func (p *pins) end(pn *pin, why PinReason) {
	delete(p.live, pn.pinKey)
	p.drop = append(p.drop, pn.src)
	p.note(pn.pinKey, why)
}

// note remembers why there is no such pin. The caller holds mu.
func (p *pins) note(k pinKey, why PinReason) {
	p.reasons[why]++
	if len(p.ended) == keepEnded {
		p.ended = slices.Delete(p.ended, 0, 1)
	}
	p.ended = append(p.ended, PinGoneError{Pin: k.id, Index: k.index, Reason: why})
}

func (p *pins) wake() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// close ends all pins. The state machine is closed, and run has returned. Readers close their files themselves.
func (p *pins) close() {
	p.mu.Lock()
	for _, pn := range p.live {
		p.drop = append(p.drop, pn.src)
	}
	clear(p.live)
	p.mu.Unlock()
	p.letGo()
}

// of are the live pins that read a source. The caller holds mu.
func (p *pins) of(src *source) (list []*pin) {
	for _, pn := range p.live {
		if pn.src == src {
			list = append(list, pn)
		}
	}
	return list
}

// letGo releases what pins have let go of.
func (p *pins) letGo() {
	p.mu.Lock()
	drop := p.drop
	p.drop = nil
	p.mu.Unlock()
	for _, src := range drop {
		p.release(src)
	}
}

// PinStats is what pins cost this replica.
type PinStats struct {
	Live   int
	Oldest time.Duration // age of the oldest
	// HeldBytes are kept for them: pages of the state's file that cannot be used again, as far as pins are the reason, and memory.
	HeldBytes int64
	// Copied is how many read a file of their own now, since Open.
	Copied uint64
	// Ended counts since Open the pins that ended, or were refused (PinNumber, PinFault), by reason.
	Ended map[PinReason]uint64
}

// Pins are the pins of this replica.
func (f *FSM) Pins() PinStats {
	p := f.pins
	p.mu.Lock()
	defer p.mu.Unlock()
	s := PinStats{Live: len(p.live), Copied: p.copied, Ended: maps.Clone(p.reasons)}
	for _, pn := range p.live {
		s.Oldest = max(s.Oldest, time.Since(pn.made))
	}
	w := p.weigh()
	s.HeldBytes = w.pages + w.memory
	return s
}
