package fsm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/abacusdb/abacus/fsm/planted"
	"github.com/hashicorp/raft"
	bolt "go.etcd.io/bbolt"
)

// StreamForm is how a stream carries a state file; it begins with this byte.
type StreamForm byte

const (
	// StreamWhole is all of it: 1, size of the file (8), the file, CRC-32C of that (4). v0.4 knows no other.
	StreamWhole StreamForm = 1
	// StreamSparse leaves out the pages that nobody uses: 2, size of the file (8), runs, an end, CRC-32C of runs and end (4). A
	// run is offset (8), length (8) and so many bytes, the end a run of no bytes. After deletions a file is far larger than what is in it.
	StreamSparse StreamForm = 2
)

const (
	streamHead = 1 + 8
	streamTail = 4
	runHead    = 8 + 8
)

// Snapshot notes where the state machine stands. A snapshot in raft's sense is
// metadata: the state is in its file already, and OpenStream sends that.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) {
	return &snapshot{f: f, index: f.Applied()}, nil
}

type snapshot struct {
	f     *FSM
	index uint64
}

// Persist returns nil once the state is durable up to the snapshot's index, and
// only then may raft forget the log below it. It writes nothing to the sink and
// leaves closing it to raft.
func (s *snapshot) Persist(raft.SnapshotSink) error {
	if planted.Is(planted.EarlyCompaction) {
		return nil
	}
	if err := s.f.flush(); err != nil {
		return fmt.Errorf("persist snapshot: %w", err)
	}
	if got := s.f.DurableIndex(); got < s.index {
		return fmt.Errorf("persist snapshot: state is durable up to index %d, not %d", got, s.index)
	}
	return nil
}

// Release has nothing to let go of.
func (s *snapshot) Release() {}

// OpenStream opens the state file as a stream for another replica's Restore, in a form that this knows.
// size is exact. index is what the file was applied up to: at or above the durable
// index before the call. The caller closes r, however far it read.
func (f *FSM) OpenStream(form StreamForm) (size int64, index uint64, r io.ReadCloser, err error) {
	file, release, err := f.fileNow()
	if err != nil {
		return 0, 0, nil, fmt.Errorf("open state stream: %w", err)
	}
	h, err := readHeader(file.tx, file.path)
	if err != nil {
		release()
		return 0, 0, nil, fmt.Errorf("open state stream: %w", err)
	}
	pr, pw := io.Pipe()
	s := &stream{PipeReader: pr, form: form, tx: file.tx, release: release, ended: make(chan struct{})}
	size = file.tx.Size()
	if form == StreamSparse {
		s.runs = usedRuns(file)
		size = runHead
		for _, r := range s.runs {
			size += runHead + r.to - r.from
		}
	}
	go s.run(pw)
	return streamHead + size + streamTail, h.applied, s, nil
}

// stream is the reading end; run, in its own goroutine, is the writing one.
type stream struct {
	*io.PipeReader
	form    StreamForm
	runs    []run // StreamSparse: what is sent
	tx      *bolt.Tx
	release func() // ends tx
	ended   chan struct{}
	once    sync.Once
}

func (s *stream) run(w *io.PipeWriter) {
	defer close(s.ended)
	head := [streamHead]byte{byte(s.form)}
	binary.BigEndian.PutUint64(head[1:], uint64(s.tx.Size()))
	_, err := w.Write(head[:])
	if err == nil {
		sum := crc32.New(castagnoli)
		body := io.MultiWriter(w, sum)
		if s.form == StreamSparse {
			_, err = s.tx.WriteTo(&runWriter{w: body, runs: s.runs})
			if err == nil {
				_, err = body.Write(make([]byte, runHead))
			}
		} else {
			_, err = s.tx.WriteTo(body)
		}
		if err == nil {
			_, err = w.Write(binary.BigEndian.AppendUint32(nil, sum.Sum32()))
		}
	}
	if err != nil && !errors.Is(err, io.ErrClosedPipe) {
		err = fmt.Errorf("stream state: %w", err)
	}
	_ = w.CloseWithError(err) // documented never to fail
}

// Close ends the stream and waits for its goroutine.
func (s *stream) Close() error {
	s.once.Do(func() {
		_ = s.PipeReader.Close() // documented never to fail; it ends run's next write
		<-s.ended
		s.release()
	})
	return nil
}
