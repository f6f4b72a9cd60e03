package store

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

var testHeader = raft.RPCHeader{ProtocolVersion: 3, ID: []byte("n1.1"), Addr: []byte("n1.1\x00n1")}

var testTo = address{shard: 9, replica: "n2.4"}

func testConfiguration() []byte {
	return raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "n1.1", Address: "n1"}, {ID: "n2.4", Address: "n2", Suffrage: raft.Nonvoter}}})
}

func testAppend() *raft.AppendEntriesRequest {
	return &raft.AppendEntriesRequest{
		RPCHeader: testHeader, Term: 4, PrevLogEntry: 6, PrevLogTerm: 3, LeaderCommitIndex: 5,
		Entries: []*raft.Log{
			{Index: 7, Term: 4, Type: raft.LogCommand, Data: []byte("seven"), AppendedAt: time.Unix(0, 1234)},
			{Index: 8, Term: 4, Type: raft.LogNoop},
			{Index: 9, Term: 4, Type: raft.LogConfiguration, Data: testConfiguration(), Extensions: []byte("x")},
		},
	}
}

// A request decodes to what was encoded, and to the replica it is for.
func TestCodecRoundTrip(t *testing.T) {
	same := func(what string, got, want any, err error) {
		t.Helper()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v, want %+v", what, got, err, want)
		}
	}
	in := func(frame []byte) (*decoder, raft.RPCHeader) {
		t.Helper()
		d, to, h := open(frame)
		if to != testTo {
			t.Errorf("frame is for %+v", to)
		}
		return d, h
	}
	ar := testAppend()
	d, h := in(encodeAppend(testTo, ar))
	ga, err := decodeAppend(d, h)
	same("append", ga, ar, err)
	hb := &raft.AppendEntriesRequest{RPCHeader: testHeader, Term: 4}
	d, h = in(encodeAppend(testTo, hb))
	ga, err = decodeAppend(d, h)
	same("heartbeat", ga, hb, err)
	if !isHeartbeat(ga) || isHeartbeat(ar) {
		t.Error("what is a heartbeat?")
	}
	v := &raft.RequestVoteRequest{RPCHeader: testHeader, Term: 4, LastLogIndex: 5, LastLogTerm: 3, LeadershipTransfer: true}
	d, h = in(encodeVote(testTo, v))
	gv, err := decodeVote(d, h)
	same("vote", gv, v, err)
	pv := &raft.RequestPreVoteRequest{RPCHeader: testHeader, Term: 4, LastLogIndex: 5, LastLogTerm: 3}
	d, h = in(encodePreVote(testTo, pv))
	gp, err := decodePreVote(d, h)
	same("pre-vote", gp, pv, err)
	is := &raft.InstallSnapshotRequest{
		RPCHeader: testHeader, Leader: testHeader.Addr, SnapshotVersion: 1, Term: 4, LastLogIndex: 5, LastLogTerm: 3,
		Configuration: testConfiguration(), ConfigurationIndex: 2, Size: 77,
	}
	d, h = in(encodeInstall(testTo, is))
	gi, err := decodeInstall(d, h)
	same("install", gi, is, err)
	d, h = in(encodeTimeoutNow(testTo, &raft.TimeoutNowRequest{RPCHeader: testHeader}))
	same("timeout now", h, testHeader, d.end())

	resp := &raft.AppendEntriesResponse{RPCHeader: raft.RPCHeader{ProtocolVersion: 3}, Term: 4, LastLog: 8, NoRetryBackoff: true}
	got := &raft.AppendEntriesResponse{Success: true} // of the answer before
	for _, want := range []report{{}, {overlay: 77 << 20}, {overlay: 1, full: true, commit: 9}} {
		rep, err := decodeAppendResponse(encodeAppendResponse(resp, want), got)
		same("append response", got, resp, err)
		same("report", rep, want, nil)
	}
	term, granted, err := decodeGrant(encodeGrant(6, true))
	same("grant", []any{term, granted}, []any{uint64(6), true}, err)
}

// The bytes of version 1, for ever.
func TestCodecGolden(t *testing.T) {
	got := encodeAppend(address{shard: 1, replica: "b"}, &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte("a"), Addr: []byte("A")}, Term: 2, PrevLogEntry: 3, PrevLogTerm: 1, LeaderCommitIndex: 3,
		Entries: []*raft.Log{{Index: 4, Term: 2, Data: []byte("hi")}},
	})
	want := []byte("\x02\x00\x00\x00\x01\x00\x00\x00\x01b\x03\x00\x00\x00\x01a\x00\x00\x00\x01A" +
		"\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x01" +
		"\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02hi\x00\x00\x00\x00")
	resp := encodeAppendResponse(&raft.AppendEntriesResponse{Term: 2, LastLog: 4, Success: true}, report{overlay: 258, full: true, commit: 5})
	if wantResp := []byte("\x02\x05\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x00\x00\x00\x05"); !bytes.Equal(resp, wantResp) {
		t.Errorf("append response is\n%q, want\n%q", resp, wantResp)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("append is\n%q, want\n%q", got, want)
	}
}

// Each truncation and each wrong version is refused, and so are entries that
// would make raft panic.
func TestCodecMalformed(t *testing.T) {
	frame := encodeAppend(testTo, testAppend())
	for n := range frame {
		d, _, h := open(frame[:n])
		if _, err := decodeAppend(d, h); err == nil {
			t.Fatalf("%d of %d bytes decode", n, len(frame))
		}
	}
	d, _, h := open(append(bytes.Clone(frame), 0))
	if _, err := decodeAppend(d, h); err == nil {
		t.Error("a byte too many decodes")
	}
	frame[0] = wireVersion + 1
	d, _, h = open(frame)
	if _, err := decodeAppend(d, h); err == nil {
		t.Error("a later version decodes")
	}
	for name, spoil := range map[string]func(*raft.AppendEntriesRequest){
		"gap":           func(r *raft.AppendEntriesRequest) { r.Entries[1].Index = 99 },
		"type":          func(r *raft.AppendEntriesRequest) { r.Entries[1].Type = 77 },
		"old type":      func(r *raft.AppendEntriesRequest) { r.Entries[1].Type = raft.LogAddPeerDeprecated },
		"configuration": func(r *raft.AppendEntriesRequest) { r.Entries[2].Data = []byte("\xc1") },
	} {
		r := testAppend()
		spoil(r)
		d, _, h := open(encodeAppend(testTo, r))
		if _, err := decodeAppend(d, h); err == nil {
			t.Errorf("wrong %s decodes", name)
		}
	}
	// A count that promises 4 G entries.
	r := testAppend()
	r.Entries = nil
	lie := encodeAppend(testTo, r)
	copy(lie[len(lie)-4:], "\xff\xff\xff\xff")
	d, _, h = open(lie)
	if _, err := decodeAppend(d, h); err == nil {
		t.Error("4 G entries decode")
	}
}

func FuzzCodec(f *testing.F) {
	f.Add(encodeAppend(testTo, testAppend()))
	f.Add(encodeVote(testTo, &raft.RequestVoteRequest{RPCHeader: testHeader, Term: 1}))
	f.Add(encodePreVote(testTo, &raft.RequestPreVoteRequest{RPCHeader: testHeader, Term: 1}))
	f.Add(encodeInstall(testTo, &raft.InstallSnapshotRequest{RPCHeader: testHeader, Term: 1, LastLogIndex: 2, Configuration: testConfiguration()}))
	f.Add(encodeGrant(3, true))
	f.Add(encodeAppendResponse(&raft.AppendEntriesResponse{Term: 3, Success: true}, report{overlay: 5, full: true, commit: 6}))
	f.Fuzz(func(t *testing.T, frame []byte) {
		// None may panic, and what decodes must encode to the same bytes.
		d, to, h := open(frame)
		if r, err := decodeAppend(d, h); err == nil {
			again := encodeAppend(to, r)
			d, to2, h := open(again)
			r2, err := decodeAppend(d, h)
			if err != nil || to2 != to || !reflect.DeepEqual(r2, r) {
				t.Errorf("append does not round-trip: %v", err)
			}
		}
		d, to, h = open(frame)
		if r, err := decodeVote(d, h); err == nil && !bytes.Equal(encodeVote(to, r), frame) {
			t.Error("vote does not round-trip")
		}
		d, to, h = open(frame)
		if r, err := decodePreVote(d, h); err == nil && !bytes.Equal(encodePreVote(to, r), frame) {
			t.Error("pre-vote does not round-trip")
		}
		d, to, h = open(frame)
		if r, err := decodeInstall(d, h); err == nil && !bytes.Equal(encodeInstall(to, r), frame) {
			t.Error("install does not round-trip")
		}
		if term, granted, err := decodeGrant(frame); err == nil && !bytes.Equal(encodeGrant(term, granted), frame) {
			t.Error("grant does not round-trip")
		}
		var a raft.AppendEntriesResponse
		if rep, err := decodeAppendResponse(frame, &a); err == nil && !bytes.Equal(encodeAppendResponse(&a, rep), frame) {
			t.Error("append response does not round-trip")
		}
		_, _ = decodeMeta(frame)
	})
}

// The questions and answers of reads, and their bytes for ever.
func TestConfirmCodec(t *testing.T) {
	to := []address{testTo, {shard: 1, replica: "b"}}
	frame := encodeConfirm(7, to)
	id, got, err := decodeConfirm(frame)
	if err != nil || id != 7 || !reflect.DeepEqual(got, to) {
		t.Errorf("question: %d, %v, %v", id, got, err)
	}
	if want := []byte("\x02\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x02\x00\x00\x00\x09\x00\x00\x00\x04n2.4\x00\x00\x00\x01\x00\x00\x00\x01b"); !bytes.Equal(frame, want) {
		t.Errorf("question is\n%q, want\n%q", frame, want)
	}
	answer := encodeTerms(7, []uint64{3, 0})
	id, terms, err := decodeTerms(answer)
	if err != nil || id != 7 || !reflect.DeepEqual(terms, []uint64{3, 0}) {
		t.Errorf("answer: %d, %v, %v", id, terms, err)
	}
	if want := []byte("\x02\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x00"); !bytes.Equal(answer, want) {
		t.Errorf("answer is\n%q, want\n%q", answer, want)
	}
	for n := range frame {
		if _, _, err := decodeConfirm(frame[:n]); err == nil {
			t.Errorf("%d of %d bytes of a question decode", n, len(frame))
		}
	}
	for n := range answer {
		if _, _, err := decodeTerms(answer[:n]); err == nil {
			t.Errorf("%d of %d bytes of an answer decode", n, len(answer))
		}
	}
	if _, _, err := decodeConfirm(encodeConfirm(1, make([]address, maxConfirms+1))); err == nil {
		t.Error("a question to too many decodes")
	}
	if _, _, err := decodeConfirm(encodeConfirm(1, []address{{replica: raft.ServerID(make([]byte, maxReplicaID+1))}})); err == nil {
		t.Error("an id that is too long decodes")
	}
}

func FuzzConfirm(f *testing.F) {
	f.Add(encodeConfirm(7, []address{testTo, {shard: 1, replica: "b"}}))
	f.Add(encodeConfirm(0, nil))
	f.Add(encodeTerms(7, []uint64{3, 0}))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if id, to, err := decodeConfirm(frame); err == nil && !bytes.Equal(encodeConfirm(id, to), frame) {
			t.Error("question does not round-trip")
		}
		if id, terms, err := decodeTerms(frame); err == nil && !bytes.Equal(encodeTerms(id, terms), frame) {
			t.Error("answer does not round-trip")
		}
	})
}

func FuzzFrames(f *testing.F) {
	f.Add(encodeFrames([][]byte{encodeAppend(testTo, testAppend()), nil, {1}}))
	f.Add(encodeFrames(nil))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if frames, err := decodeFrames(frame); err == nil && !bytes.Equal(encodeFrames(frames), frame) {
			t.Error("frames do not round-trip")
		}
	})
}

// One request carries no more than maxAppendBytes, but always an entry.
func TestTrim(t *testing.T) {
	data := make([]byte, maxAppendBytes/4)
	r := &raft.AppendEntriesRequest{}
	for range 10 {
		r.Entries = append(r.Entries, &raft.Log{Data: data})
	}
	trim(r)
	if len(r.Entries) != 3 {
		t.Errorf("%d entries of a quarter are sent", len(r.Entries))
	}
	r.Entries = []*raft.Log{{Data: make([]byte, 2*maxAppendBytes)}, {}}
	trim(r)
	if len(r.Entries) != 1 {
		t.Errorf("%d entries after a large one", len(r.Entries))
	}
}
