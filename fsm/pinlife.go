package fsm

import "time"

// How long a pin lives, and what it may cost.

// PinLimits bound the pins of one replica. Zero fields take their default.
type PinLimits struct {
	// Number of pins at once; a further one is refused. Default 8.
	Number int
	// Age that a pin reaches at most, however much it is used. Default 10 min.
	Age time.Duration
	// HeldBytes is how much may be kept for pins, in the state's file and in memory, or half of what is in use of the file if that is more.
	// Above it, the pin that keeps the most is given a copy of the file; above twice as much it ends. Default 256 MiB.
	HeldBytes int64
	// CopyBytes is how many bytes a second such a copy writes at most. Default 64 MiB.
	CopyBytes int64
}

func (l *PinLimits) setDefaults() {
	if l.Number <= 0 {
		l.Number = 8
	}
	if l.Age <= 0 {
		l.Age = 10 * time.Minute
	}
	if l.HeldBytes <= 0 {
		l.HeldBytes = 256 << 20
	}
	if l.CopyBytes <= 0 {
		l.CopyBytes = 64 << 20
	}
}

// pinLook is how often to look at what is kept for live pins.
const pinLook = time.Second

// run ends pins whose time is over or that have too much kept, and closes what they leave. Nothing of it is
// replicated: it and who reads look at a clock, and nothing that is applied looks at them.
func (p *pins) run() {
	for {
		wait, live := p.look(time.Now())
		p.letGo()
		timer := time.NewTimer(wait)
		if !live {
			timer.Stop()
		}
		select {
		case <-p.f.done:
			timer.Stop()
			return
		case <-p.kick:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// look ends what is to end, and says when to look again, if anything lives.
func (p *pins) look(now time.Time) (wait time.Duration, live bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	wait = pinLook
	for _, pn := range p.live {
		why, left := pn.expires(now, p.f.cfg.Pins.Age)
		if left <= 0 {
			p.end(pn, why)
		} else {
			wait = min(wait, left)
		}
	}
	p.lighten()
	return wait, len(p.live) > 0
}

// expires says how long a pin has yet to live, if nobody uses it, and why it ends then.
func (pn *pin) expires(now time.Time, age time.Duration) (PinReason, time.Duration) {
	old := age - now.Sub(pn.made)
	if idle := pn.ttl - now.Sub(pn.used); pn.readers == 0 && idle < old {
		return PinIdle, idle
	}
	return PinAge, old
}

// lighten has less kept, if it is too much. The caller holds mu.
func (p *pins) lighten() {
	w := p.weigh()
	switch w.verdict(max(p.f.cfg.Pins.HeldBytes, p.f.st.Load().file/2)) {
	case pinsEnd:
		for _, pn := range p.blamed(w) {
			p.end(pn, PinBytes)
		}
	case pinsCopy:
		if w.oldest != nil && !w.oldest.copying && len(p.of(w.oldest)) > 0 {
			p.copyOut(w.oldest)
		}
	}
	if p.f.cfg.Room(0) {
		return
	}
	for _, pn := range p.live {
		if pn.src.copy || pn.src.gen.isRetired() { // a file that is there for its sake alone
			p.end(pn, PinDisk)
		}
	}
}

// blamed are the pins to end: whose transaction is the oldest, for to end younger ones frees little. There may be none, if only readers of
// pins that have ended still have it: nothing can be done until they close. If no pages are kept, it is the pin that was there first.
func (p *pins) blamed(w weight) []*pin {
	if w.oldest != nil {
		return p.of(w.oldest)
	}
	var first *pin
	for _, pn := range p.live {
		if first == nil || pn.index < first.index || pn.index == first.index && pn.id < first.id {
			first = pn
		}
	}
	return []*pin{first}
}

// weight is what is kept for pins, in bytes.
type weight struct {
	pages  int64   // of the state's file, for transactions older than its last checkpoint
	memory int64   // in layers
	spare  int64   // how much more the file may grow before a checkpoint would wait for all who read it, for ever
	oldest *source // whose transaction is the oldest of those; nil if no pages are kept
}

// settled is as of when a transaction that kept pages has ended: until the next checkpoint nobody knows how many are kept still.
type settled struct {
	gen uint64
	tx  int
}

// weigh goes by what bbolt says after each checkpoint. The pages that the checkpoint itself has freed are among those that are kept, and are so without any
// pin: as long as there was no checkpoint since a pin, it keeps none. The caller holds mu.
func (p *pins) weigh() (w weight) {
	st := p.f.st.Load()
	shared := map[*source]int64{} // what later pins have in memory, those before them share
	for _, pn := range p.live {
		shared[pn.src] = max(shared[pn.src], pn.memory)
	}
	for src := range p.open {
		w.memory += shared[src]
		tx := src.file.tx.ID()
		if src.copy || tx >= st.fileTx || src.gen.isRetired() || p.settled == (settled{src.gen.n, st.fileTx}) {
			continue
		}
		if w.oldest == nil || tx < w.oldest.file.tx.ID() {
			w.oldest = src
		}
	}
	if w.oldest != nil {
		db := w.oldest.gen.db
		w.pages = int64(db.Stats().PendingPageN) * int64(db.Info().PageSize)
		w.spare = max(0, w.oldest.gen.mapped-st.fileSize)
	}
	return w
}

type pinVerdict int

const (
	pinsFine pinVerdict = iota
	pinsCopy
	pinsEnd
)

// verdict says what is to be done if most is what may be kept.
func (w weight) verdict(most int64) pinVerdict {
	switch kept := w.pages + w.memory; {
	case kept > 2*most || w.pages > w.spare:
		return pinsEnd
	case kept > most || w.pages > w.spare/2:
		return pinsCopy
	}
	return pinsFine
}
