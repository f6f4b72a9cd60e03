package fsm

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/abacusdb/abacus/fsm/command"
)

// What numbered commands were answered travels with the slots, so that one which is sent again to the new owner is answered as it was, and
// not carried out twice.

// A part of answers: 1 (version), the floors of what was forgotten (origin (4), id (8), after their number (4)), the ids of all sessions (8, after their
// number (4)), and sessions as sessions.encode writes them, each after its id (8) and length (4). The first two are in the last part only: they
// would bar what comes after them.
const answersVersion = 1

// part is a decoded one.
type answersPart struct {
	gone     []originFloor
	ids      []uint64
	sessions []*session
}

type originFloor struct {
	origin uint32
	id     uint64
}

// SlotAnswers is what numbered commands on the slots were answered and may be again, as parts for OpSlotsAnswers of about
// partBytes; a part has one session at least. With them go the floors of all sessions, and which were forgotten: a number that was answered and given up must
// not look new to the receiver. It takes a lock for as long as it takes to go through the session table.
func (f *FSM) SlotAnswers(slots []command.SlotRange, partBytes int) (parts [][]byte) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	var wanted ownership
	wanted.mark(slots, owned)
	// From the oldest on: the order in which the receiver will forget them.
	for s := f.ap.sess.oldest; s != nil; s = s.newer {
		of := session{id: s.id, floor: s.floor, used: s.used, answers: map[answerKey]command.Result{}}
		for k, r := range s.answers {
			if wanted.of[k.slot] == owned {
				of.answers[k] = r
			}
		}
		if len(of.answers) == 0 && of.floor == 0 {
			continue
		}
		data := of.encode(nil)
		if n := len(parts); n == 0 || len(parts[n-1])+len(data) > partBytes {
			parts = append(parts, []byte{answersVersion, 0, 0, 0, 0, 0, 0, 0, 0})
		}
		last := &parts[len(parts)-1]
		*last = binary.BigEndian.AppendUint64(*last, s.id)
		*last = binary.BigEndian.AppendUint32(*last, uint32(len(data)))
		*last = append(*last, data...)
	}
	return append(parts, f.ap.sess.encodeKnown([]byte{answersVersion}))
}

// encodeKnown appends what the table says of sessions that are not in it.
func (t *sessions) encodeKnown(buf []byte) []byte {
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(t.gone)))
	for _, origin := range slices.Sorted(maps.Keys(t.gone)) {
		buf = binary.BigEndian.AppendUint32(buf, origin)
		buf = binary.BigEndian.AppendUint64(buf, t.gone[origin])
	}
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(t.byID)))
	for _, id := range slices.Sorted(maps.Keys(t.byID)) {
		buf = binary.BigEndian.AppendUint64(buf, id)
	}
	return buf
}

func decodeAnswers(data []byte) (p answersPart, err error) {
	early := fmt.Errorf("answers end early")
	if len(data) == 0 || data[0] != answersVersion {
		return p, fmt.Errorf("answers of an unknown format")
	}
	data = data[1:]
	// count reads a number of elements of some size.
	count := func(size int) int {
		if len(data) < 4 || int(binary.BigEndian.Uint32(data)) > (len(data)-4)/size {
			err = early
			return 0
		}
		n := int(binary.BigEndian.Uint32(data))
		data = data[4:]
		return n
	}
	for range count(12) {
		p.gone = append(p.gone, originFloor{binary.BigEndian.Uint32(data), binary.BigEndian.Uint64(data[4:])})
		data = data[12:]
	}
	if err != nil {
		return p, err
	}
	for range count(8) {
		p.ids, data = append(p.ids, binary.BigEndian.Uint64(data)), data[8:]
	}
	for err == nil && len(data) > 0 {
		if len(data) < 12 {
			return p, early
		}
		id, size := binary.BigEndian.Uint64(data), int(binary.BigEndian.Uint32(data[8:]))
		if data = data[12:]; size > len(data) {
			return p, early
		}
		var s *session
		if s, err = decodeSession(id, data[:size]); err == nil {
			p.sessions, data = append(p.sessions, s), data[size:]
		}
	}
	return p, err
}

// forgetAlso forgets what another shard has forgotten: its sessions' answers for slots that are ours now are lost.
func (t *sessions) forgetAlso(p answersPart) {
	has := make(map[uint64]bool, len(p.ids))
	for _, id := range p.ids {
		has[id] = true
	}
	for _, g := range p.gone {
		for s := t.oldest; s != nil; {
			next := s.newer
			if command.SessionOrigin(s.id) == g.origin && s.id <= g.id && !has[s.id] {
				t.forget(s)
			}
			s = next
		}
		if g.id > t.gone[g.origin] {
			t.hash ^= mix(uint64(g.origin), t.gone[g.origin])
			t.gone[g.origin] = g.id
			t.hash ^= mix(uint64(g.origin), g.id)
			t.goneChanged = true
		}
	}
}

// merge takes in answers of another shard's table. A session that was forgotten here stays forgotten: what is sent again
// in it is refused, as it is for everything else in that session.
func (t *sessions) merge(p answersPart) {
	for _, from := range p.sessions {
		s := t.byID[from.id]
		if s == nil {
			if t.open(from.id); t.byID[from.id] == nil {
				continue
			}
			s = t.byID[from.id]
		}
		t.touch(s)
		t.raise(s, from.floor)
		keys := make([]answerKey, 0, len(from.answers))
		for k := range from.answers {
			if _, there := s.answers[k]; !there && k.seq >= s.floor {
				keys = append(keys, k)
			}
		}
		slices.SortFunc(keys, compareAnswers)
		for _, k := range keys {
			r := from.answers[k]
			s.answers[k] = r
			t.resize(s, answerSize(r))
			t.hash ^= answerHash(s.id, k, r)
		}
		t.shrink()
	}
	t.forgetAlso(p)
}
