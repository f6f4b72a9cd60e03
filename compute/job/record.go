package job

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// State is where a job stands.
type State string

const (
	Queued    State = "queued"
	Running   State = "running"
	Succeeded State = "succeeded"
	Failed    State = "failed"
	Cancelled State = "cancelled"
)

// Finished says whether the job has come to its end.
func (s State) Finished() bool { return s == Succeeded || s == Failed || s == Cancelled }

// Code tells programs why a job failed; the words are in Record.Error.
type Code string

const (
	CodeNone       Code = ""
	CodeFailed     Code = "failed"
	CodeNoRecords  Code = "no_records"
	CodeBadRecords Code = "bad_records"
	CodeTimeout    Code = "timeout"
	CodeCancelled  Code = "cancelled"
)

var (
	// ErrNoRecords: min, max or mean over nothing has no answer.
	ErrNoRecords = errors.New("no records")
	// ErrCancelled: somebody cancelled the job.
	ErrCancelled = errors.New("job cancelled")
	// ErrTimeout: the job did not finish within its time-out.
	ErrTimeout = errors.New("job timed out")
	// ErrUnfinished: the job has no result yet.
	ErrUnfinished = errors.New("job has not finished")
)

// FailedError is a job's failure.
type FailedError struct {
	ID     string
	Code   Code
	Reason string
}

func (e *FailedError) Error() string { return "job " + e.ID + " failed: " + e.Reason }

// Unwrap makes errors.Is find ErrNoRecords and ErrTimeout.
func (e *FailedError) Unwrap() error {
	switch e.Code {
	case CodeNoRecords:
		return ErrNoRecords
	case CodeTimeout:
		return ErrTimeout
	}
	return nil
}

// Record is a job's row in the ledger, and what a client gets to see of it.
// Times are wall clock and for people only; nothing is decided by them.
type Record struct {
	ID string `json:"id"`
	// Instance tells this job from others that had its id before, and were deleted or forgotten.
	Instance string `json:"instance,omitempty"`
	Spec     Spec   `json:"spec"`
	State    State  `json:"state"`
	// Epoch counts the coordinators that have run the job. Only the one of the
	// present epoch may change the record, so a superseded one cannot finish it.
	Epoch           uint64 `json:"epoch"`
	Coordinator     string `json:"coordinator,omitempty"`
	SubmittedMillis int64  `json:"submitted_ms"`
	StartedMillis   int64  `json:"started_ms,omitempty"`
	FinishedMillis  int64  `json:"finished_ms,omitempty"`
	// RanMillis is how long it has run, under all its coordinators, as of the last time that one noted it: what its time-out bounds.
	RanMillis int64 `json:"ran_ms,omitempty"`

	// Result is set if and only if the job succeeded: it covers every shard.
	Result *Value `json:"result,omitempty"`
	// Note says what a person should know about the result ("no keys matched").
	Note  string `json:"note,omitempty"`
	Error string `json:"error,omitempty"`
	Code  Code   `json:"code,omitempty"`

	Progress Progress `json:"progress"`
	// Records is how many keys matched, those included that the filter dropped, and bad ones.
	Records int64 `json:"records"`
	// Filtered is how many of them the filter dropped.
	Filtered int64 `json:"filtered,omitempty"`
	// Bytes is how much was read for it, keys and values, by the tasks that counted; of a cached answer nothing.
	Bytes int64 `json:"bytes,omitempty"`
	// Bad is how many of them did not parse; BadKeys is a sample, the smallest keys.
	Bad     int64    `json:"bad"`
	BadKeys []string `json:"bad_keys,omitempty"`

	// Rounds is how often this run has asked all shards, if more than once: slots changed hands while they
	// answered, so that some were counted twice or not at all, and the answers were thrown away.
	Rounds int `json:"rounds,omitempty"`

	// Cached: no shard had to read anything; see ShardReport.
	Cached bool `json:"cached,omitempty"`

	Shards []ShardReport `json:"shards,omitempty"`
	// TasksOmitted counts task reports left out because the record would have grown too large.
	TasksOmitted int `json:"tasks_omitted,omitempty"`

	// Events are what happened to the job, oldest first; EventsOmitted counts those before them that were dropped.
	Events        []Event `json:"events,omitempty"`
	EventsOmitted int     `json:"events_omitted,omitempty"`
}

// Progress is how far a job has come.
type Progress struct {
	Shards     int `json:"shards"`
	ShardsDone int `json:"shards_done"`
	Tasks      int `json:"tasks"`
	TasksDone  int `json:"tasks_done"`
	// Records and Bytes are what was read, by tasks that still run, too; Share is about how much of the job that is, 0 to 1.
	Records int64   `json:"records"`
	Bytes   int64   `json:"bytes,omitempty"`
	Share   float64 `json:"share,omitempty"`
}

// Sum makes r.Progress what the shards' reports say. All shards count as equal shares of the job, and in each its slots: tasks are cut in two while they run.
func (r *Record) Sum() {
	p := Progress{Shards: len(r.Shards)}
	shares := 0.0
	for _, s := range r.Shards {
		read, slots := 0.0, 0.0
		p.Tasks += len(s.Tasks)
		for _, t := range s.Tasks {
			if p.Records, p.Bytes = p.Records+t.Records, p.Bytes+t.Bytes; t.Done {
				p.TasksDone++
				t.Share = 1
			}
			n := float64(int(t.To)-int(t.From)) + 1
			read, slots = read+t.Share*n, slots+n
		}
		switch {
		case s.Done:
			p.ShardsDone++
			shares++
		case slots > 0:
			shares += read / slots
		}
	}
	if p.Shards > 0 {
		p.Share = shares / float64(p.Shards)
	}
	r.Progress = p
}

// DropRunning is for a job that ends: tasks whose results were not taken have no node any more, and what they had read does not count.
func (r *Record) DropRunning() {
	r.Shards = slices.Clone(r.Shards)
	for i := range r.Shards {
		r.Shards[i].DropRunning()
	}
	if r.TasksOmitted == 0 { // else they are not known here, and the last sum stands
		r.Sum()
	}
}

// ShardReport is one shard's part of a job.
type ShardReport struct {
	Shard  uint32 `json:"shard"`
	Master string `json:"master,omitempty"` // the node that led the shard and handed out its tasks
	// Index is an index of the shard's log after the submit. If Exact, every task read the state at exactly that; else that or a later one.
	Index uint64 `json:"index,omitempty"`
	Exact bool   `json:"exact,omitempty"`
	// Cached: no task ran, for the answer to the same question was known, and nothing has changed in the shard since.
	Cached   bool         `json:"cached,omitempty"`
	Done     bool         `json:"done"`
	Attempts int          `json:"attempts,omitempty"` // how often a master was asked
	Trouble  string       `json:"trouble,omitempty"`  // why the last of them that did not end it has not; empty once one has
	Tasks    []TaskReport `json:"tasks,omitempty"`
}

// DropRunning is for a shard whose tasks nobody answers for any more.
func (s *ShardReport) DropRunning() {
	s.Tasks = slices.Clone(s.Tasks)
	for i := range s.Tasks {
		if t := &s.Tasks[i]; !t.Done {
			t.Node, t.Role, t.Records, t.Bytes, t.Millis, t.Share = "", "", 0, 0, 0, 0
		}
	}
}

// Roles of the node that ran a task.
const (
	RoleLeader   = "leader"
	RoleFollower = "follower"
)

// TaskReport is one task: a run of slots read by one replica. Node and what
// follows are those of the attempt whose result was taken; while none was, of the one that has come
// furthest, if there is any. A job that has ended has nothing of the latter.
type TaskReport struct {
	ID       int      `json:"id"`
	From     uint16   `json:"from"`
	To       uint16   `json:"to"`
	Done     bool     `json:"done"`
	Node     string   `json:"node,omitempty"`
	Role     string   `json:"role,omitempty"`
	Index    uint64   `json:"index,omitempty"`
	Attempts int      `json:"attempts"`
	FailedOn []string `json:"failed_on,omitempty"`
	Backups  int      `json:"backups,omitempty"` // attempts that were begun while another was slow
	Records  int64    `json:"records"`
	Bytes    int64    `json:"bytes,omitempty"`
	Bad      int64    `json:"bad,omitempty"`
	Millis   int64    `json:"ms"`
	// Share is how much of its slots an attempt has read that has not ended, 0 to 1.
	Share float64 `json:"share,omitempty"`
}

// Err is nil for a job that succeeded, else ErrUnfinished, ErrCancelled or a *FailedError.
func (r *Record) Err() error {
	switch r.State {
	case Succeeded:
		return nil
	case Failed:
		return &FailedError{ID: r.ID, Code: r.Code, Reason: r.Error}
	case Cancelled:
		return ErrCancelled
	}
	return ErrUnfinished
}

// Key names the job for good: no other has, had or will have it.
func (r *Record) Key() string {
	if r.Instance == "" { // submitted by v0.4
		return r.ID
	}
	return r.ID + "~" + r.Instance // "~" is in no id
}

// SummaryResult is how many bytes a result may have in a list; one that has more is left out.
const SummaryResult = 4 << 10

// Summary is the record without its shards, events and a large result, for lists.
func (r Record) Summary() Record {
	r.Shards, r.BadKeys, r.Events = nil, nil, nil
	if r.Result != nil && len(r.Result.String()) > SummaryResult {
		r.Result = nil
	}
	return r
}

// recordVersion is the first byte of a stored record; the rest is JSON.
const recordVersion = 1

// MaxRecordBytes bounds a stored record; it must fit a command's value.
const MaxRecordBytes = 512 << 10

// VersionError refuses a stored format that this program does not know.
type VersionError struct {
	What    string
	Version byte
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("%s has format version %d, which this program does not know", e.What, e.Version)
}

// Encode writes the record as the ledger stores it. Task reports are left out,
// and counted, if it would exceed MaxRecordBytes.
func (r Record) Encode() ([]byte, error) {
	data, err := r.encode()
	if err == nil && len(data) > MaxRecordBytes {
		shards := make([]ShardReport, len(r.Shards))
		for i, s := range r.Shards {
			r.TasksOmitted += len(s.Tasks)
			s.Tasks = nil
			shards[i] = s
		}
		r.Shards = shards
		data, err = r.encode()
	}
	if err == nil && len(data) > MaxRecordBytes {
		err = fmt.Errorf("encode job %s: %d bytes, at most %d fit", r.ID, len(data), MaxRecordBytes)
	}
	return data, err
}

func (r Record) encode() ([]byte, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode job %s: %w", r.ID, err)
	}
	return append([]byte{recordVersion}, data...), nil
}

// DecodeRecord reads what Encode wrote.
func DecodeRecord(data []byte) (Record, error) {
	if len(data) == 0 {
		return Record{}, errors.New("decode job record: empty")
	}
	if data[0] != recordVersion {
		return Record{}, &VersionError{What: "job record", Version: data[0]}
	}
	var r Record
	if err := json.Unmarshal(data[1:], &r); err != nil {
		return Record{}, fmt.Errorf("decode job record: %w", err)
	}
	return r, nil
}
