package fsm

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/fsm/planted"
)

// Bounds on sessions. They are part of the replicated behaviour: all replicas
// must forget the same sessions at the same entry.
const (
	// maxSessions is how many a shard remembers.
	maxSessions = 16384
	// maxSessionsBytes bounds what it remembers of all of them.
	maxSessionsBytes = 16 << 20
	// maxAnswers is how many answers one session may have that it did not give up.
	maxAnswers = 1024
	// maxAnswersBytes bounds them. One answer may be as large as a value.
	maxAnswersBytes = 4 << 20

	sessionCost = 192 // what one costs in memory, and
	answerCost  = 160 // each of its answers, without the answer's bytes
)

// session remembers what a client's numbered commands were answered (Raft
// thesis, 6.3): a set above a floor, for many may be under way at once and a shard sees
// only some of a client's numbers.
type session struct {
	id    uint64
	floor uint64 // Invariant: answers holds no number below it
	// used is when the session was used last, counted in uses of any session: the
	// order in which they are forgotten, the same on all replicas.
	used    uint64
	answers map[answerKey]command.Result
	bytes   int
	changed bool // since the last checkpoint

	older, newer *session // in the order of used
}

// answerKey names one part of a request. Its parts go to different slots, and slots
// may come to different shards, so the slot tells them apart for ever.
type answerKey struct {
	seq  uint64
	slot uint16
}

func compareAnswers(a, b answerKey) int {
	return cmp.Or(cmp.Compare(a.seq, b.seq), cmp.Compare(a.slot, b.slot))
}

// sessions is a shard's session table. It is replicated state: it is changed by
// entries only, in the order of the log.
type sessions struct {
	shard  uint32
	opened uint64 // how many this shard made; the lower 48 bits of the newest id
	used   uint64 // uses of all
	byID   map[uint64]*session
	bytes  int
	// gone is for each origin the highest id that was forgotten here. A session at or
	// below it is never taken in again: what it did is not known any more.
	gone map[uint32]uint64
	// hash sums up the table, whatever the order in which it came about.
	hash uint64

	oldest, newest *session
	// forgotten are the sessions dropped since the last checkpoint.
	forgotten   map[uint64]bool
	goneChanged bool
}

func newSessions(shard uint32) *sessions {
	return &sessions{shard: shard, byID: map[uint64]*session{}, gone: map[uint32]uint64{}, forgotten: map[uint64]bool{}}
}

// originBits is how many bits of an id are the shard's own count.
const originBits = 48

// open makes a new session, or takes in another shard's.
func (t *sessions) open(id uint64) command.Result {
	if id == 0 {
		t.opened++
		id = uint64(t.shard)<<originBits | t.opened
	} else if s := t.byID[id]; s != nil {
		t.touch(s)
		return command.Int(int64(id))
	} else if r := t.unknown(id); r.Code == command.CodeSessionExpired || command.SessionOrigin(id) == t.shard {
		return r
	}
	s := &session{id: id, answers: map[answerKey]command.Result{}, bytes: sessionCost}
	t.byID[id] = s
	t.bytes += s.bytes
	t.append(s)
	t.hash ^= s.hash()
	t.touch(s)
	return command.Int(int64(id))
}

// skip has the next session made have a higher count than n. It goes into the header with the next checkpoint, as the count does.
func (t *sessions) skip(n uint64) command.Result {
	t.opened = max(t.opened, min(n, 1<<originBits-1))
	return command.Int(int64(t.opened))
}

// unknown says why an id is not in the table.
func (t *sessions) unknown(id uint64) command.Result {
	if id <= t.gone[command.SessionOrigin(id)] {
		return command.Err(command.CodeSessionExpired)
	}
	return command.Err(command.CodeSessionUnknown)
}

func (t *sessions) check(id uint64) command.Result {
	if t.byID[id] == nil {
		return t.unknown(id)
	}
	return command.Int(1)
}

// find says what to do with a numbered command: carry it out in the session, or
// answer as was answered before, or refuse.
func (t *sessions) find(c *command.Command) (s *session, answer command.Result, known bool) {
	s = t.byID[c.Session]
	if s == nil {
		return nil, t.unknown(c.Session), true
	}
	if r, ok := s.answers[answerKey{c.Seq, c.Slot}]; ok && !planted.Is(planted.SkipSessionCheck) {
		t.touch(s)
		t.raise(s, c.Floor)
		return s, r, true
	}
	if c.Seq < s.floor && !planted.Is(planted.SkipSessionCheck) {
		return s, command.Err(command.CodeSessionExpired), true
	}
	t.touch(s)
	t.raise(s, c.Floor)
	if len(s.answers) >= maxAnswers || s.bytes >= maxAnswersBytes {
		return s, command.Err(command.CodeSessionFull), true
	}
	return s, command.Result{}, false
}

// record remembers an answer, and forgets the sessions that there is no room for.
func (t *sessions) record(s *session, c *command.Command, r command.Result) {
	k := answerKey{c.Seq, c.Slot}
	s.answers[k] = r
	t.resize(s, answerSize(r))
	t.hash ^= answerHash(s.id, k, r)
	t.shrink()
}

// shrink keeps the table in its bounds. The newest session stays: its own
// bounds are below the table's.
func (t *sessions) shrink() {
	for len(t.byID) > maxSessions || t.bytes > maxSessionsBytes {
		if t.oldest == t.newest {
			return
		}
		t.forget(t.oldest)
	}
}

func (t *sessions) forget(s *session) {
	t.hash ^= s.hash()
	for k, r := range s.answers {
		t.hash ^= answerHash(s.id, k, r)
	}
	t.bytes -= s.bytes
	t.unlink(s)
	delete(t.byID, s.id)
	t.forgotten[s.id] = true
	origin := command.SessionOrigin(s.id)
	t.hash ^= mix(uint64(origin), t.gone[origin])
	t.gone[origin] = max(t.gone[origin], s.id)
	t.hash ^= mix(uint64(origin), t.gone[origin])
	t.goneChanged = true
}

// touch makes a session the newest.
func (t *sessions) touch(s *session) {
	t.hash ^= s.hash()
	t.used++
	s.used, s.changed = t.used, true
	t.hash ^= s.hash()
	if t.newest != s {
		t.unlink(s)
		t.append(s)
	}
	t.shrink()
}

// raise drops the answers that the client does not want any more.
func (t *sessions) raise(s *session, floor uint64) {
	if floor <= s.floor {
		return
	}
	t.hash ^= s.hash()
	s.floor = floor
	t.hash ^= s.hash()
	for k, r := range s.answers {
		if k.seq < floor {
			delete(s.answers, k)
			t.resize(s, -answerSize(r))
			t.hash ^= answerHash(s.id, k, r)
		}
	}
}

func (t *sessions) resize(s *session, by int) {
	s.bytes += by
	t.bytes += by
}

func (t *sessions) append(s *session) {
	s.older, s.newer = t.newest, nil
	if t.newest != nil {
		t.newest.newer = s
	} else {
		t.oldest = s
	}
	t.newest = s
}

func (t *sessions) unlink(s *session) {
	if s.older != nil {
		s.older.newer = s.newer
	} else if t.oldest == s {
		t.oldest = s.newer
	}
	if s.newer != nil {
		s.newer.older = s.older
	} else if t.newest == s {
		t.newest = s.older
	}
	s.older, s.newer = nil, nil
}

func answerSize(r command.Result) int {
	n := answerCost + len(r.Bytes)
	for i := range r.Array {
		n += answerSize(r.Array[i])
	}
	return n
}

// mix is the finalizer of SplitMix64 over two numbers.
func mix(a, b uint64) uint64 {
	x := a*0x9e3779b97f4a7c15 + b
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func (s *session) hash() uint64 { return mix(mix(s.id, s.floor), s.used) }

func answerHash(id uint64, k answerKey, r command.Result) uint64 {
	return mix(mix(mix(id, k.seq), uint64(k.slot)), resultHash(r))
}

func resultHash(r command.Result) uint64 {
	h := mix(uint64(r.Kind)<<8|uint64(r.Code), uint64(r.Int))
	for _, b := range r.Bytes {
		h = (h ^ uint64(b)) * 1099511628211
	}
	for i := range r.Array {
		h = mix(h, resultHash(r.Array[i]))
	}
	return h
}

// encode appends a session as it is stored after its checksum:
//
//	1 (version), floor (8), used (8), number of answers (4), then for each,
//	in order of number and slot: seq (8), slot (2), length (4), command.AppendResults
const sessionVersion = 1

func (s *session) encode(buf []byte) []byte {
	buf = append(buf, sessionVersion)
	buf = binary.BigEndian.AppendUint64(buf, s.floor)
	buf = binary.BigEndian.AppendUint64(buf, s.used)
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(s.answers)))
	keys := make([]answerKey, 0, len(s.answers))
	for k := range s.answers {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compareAnswers)
	for _, k := range keys {
		buf = binary.BigEndian.AppendUint64(buf, k.seq)
		buf = binary.BigEndian.AppendUint16(buf, k.slot)
		at := len(buf)
		buf = command.AppendResults(append(buf, 0, 0, 0, 0), []command.Result{s.answers[k]})
		binary.BigEndian.PutUint32(buf[at:], uint32(len(buf)-at-4))
	}
	return buf
}

func decodeSession(id uint64, data []byte) (*session, error) {
	bad := func(what string) (*session, error) { return nil, fmt.Errorf("session %d: %s", id, what) }
	const head = 1 + 8 + 8 + 4
	if len(data) < head || data[0] != sessionVersion {
		return bad("unknown format")
	}
	s := &session{id: id, floor: binary.BigEndian.Uint64(data[1:]), used: binary.BigEndian.Uint64(data[9:]), bytes: sessionCost}
	n := int(binary.BigEndian.Uint32(data[17:]))
	data = data[head:]
	if n > len(data)/14 {
		return bad("too many answers")
	}
	s.answers = make(map[answerKey]command.Result, n)
	for range n {
		if len(data) < 14 {
			return bad("it ends early")
		}
		k := answerKey{binary.BigEndian.Uint64(data), binary.BigEndian.Uint16(data[8:])}
		size := int(binary.BigEndian.Uint32(data[10:]))
		data = data[14:]
		if size > len(data) {
			return bad("it ends early")
		}
		// A copy: results alias what they were decoded from, which lies in the file.
		rs, err := command.DecodeResults(clone(data[:size]))
		if err != nil || len(rs) != 1 || k.seq < s.floor {
			return bad("a malformed answer")
		}
		data = data[size:]
		s.answers[k] = rs[0]
		s.bytes += answerSize(rs[0])
	}
	if len(data) > 0 {
		return bad("bytes behind its end")
	}
	return s, nil
}

// encodeGone writes the floors: 1 (version), then origin (4) and id (8) for each.
func (t *sessions) encodeGone() []byte {
	origins := make([]uint32, 0, len(t.gone))
	for o := range t.gone {
		origins = append(origins, o)
	}
	slices.Sort(origins)
	buf := []byte{sessionVersion}
	for _, o := range origins {
		buf = binary.BigEndian.AppendUint32(buf, o)
		buf = binary.BigEndian.AppendUint64(buf, t.gone[o])
	}
	return buf
}

func (t *sessions) decodeGone(data []byte) error {
	if len(data) == 0 || data[0] != sessionVersion || len(data[1:])%12 != 0 {
		return fmt.Errorf("%d bytes are no floors of sessions", len(data))
	}
	for data = data[1:]; len(data) > 0; data = data[12:] {
		origin := binary.BigEndian.Uint32(data)
		t.gone[origin] = binary.BigEndian.Uint64(data[4:])
		t.hash ^= mix(uint64(origin), 0) ^ mix(uint64(origin), t.gone[origin])
	}
	return nil
}

// take puts decoded sessions into an empty table, in the order in which they were used.
func (t *sessions) take(list []*session) {
	slices.SortFunc(list, func(a, b *session) int {
		if a.used < b.used {
			return -1
		}
		return 1
	})
	for _, s := range list {
		t.byID[s.id] = s
		t.bytes += s.bytes
		t.append(s)
		t.hash ^= s.hash()
		for k, r := range s.answers {
			t.hash ^= answerHash(s.id, k, r)
		}
	}
}
