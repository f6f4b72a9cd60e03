package compute

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/sharding"
)

// What a shard's own log remembers of the shard's part of a job, so that the death of its master costs the tasks that were
// under way and no others. It is kept in system records (rows), each of which is made once and never changed:
//
//	job-work/JOB/ROUND/c/CLAIM              a master took the part over: the pin that its tasks read, the slots owned there
//	job-work/JOB/ROUND/t/CLAIM/FROM         a task's result was accepted: what it covers, how it went, its partial
//	job-work/JOB/ROUND/t/CLAIM/FROM/PART    pieces of a partial that is too large for one row; they come before it
//
// Within a claim one master decides, so its rows do not overlap. A master that has lost the lead may still have rows on their way;
// they come after the next claim, and revisions, which rise through a shard's log, tell: a row counts if it is older than the
// claim after its own. So every master to come reads the same rows in the same way.

// Row is a system record of a shard.
type Row struct {
	Name     string
	Value    []byte
	Revision int64 // rises with every change of any record in the shard's log
	// Spare: only the death of a master asks for it, so that it is not written where a disk is nearly full. For Shard.Change.
	Spare bool
}

const (
	// WorkRows is what the names of all rows begin with; the job's key (job.Record.Key) and a slash follow.
	WorkRows = "job-work/"
	// pieceBytes is how much of a partial goes into one row.
	pieceBytes = 128 << 10
	// maxPieces bounds a partial in the ledger.
	maxPieces = 256
)

// Pin names a view that replicas of a shard keep: the state at Index, exactly. The zero Pin is none.
type Pin struct {
	ID    uint64 `json:"id"`
	Index uint64 `json:"index"`
}

// claimRow is the value of a claim. Rows of earlier claims count only if they have the same pin.
type claimRow struct {
	Pin    Pin         `json:"pin"`
	Slots  [][2]uint16 `json:"slots"`
	Master string      `json:"master"`
}

// doneRow heads the value of a task's row.
type doneRow struct {
	To     uint16         `json:"to"`
	Report job.TaskReport `json:"report"`
	Pieces int            `json:"pieces,omitempty"` // rows before this one that hold the partial; else it follows the head
}

func jobPrefix(jobKey string) string { return WorkRows + jobKey + "/" }
func roundPrefix(jobKey string, round int) string {
	return fmt.Sprintf("%s%08x/", jobPrefix(jobKey), round)
}
func claimName(prefix string, claim int) string { return fmt.Sprintf("%sc/%08x", prefix, claim) }
func doneName(prefix string, claim int, from sharding.Slot) string {
	return fmt.Sprintf("%st/%08x/%04x", prefix, claim, from)
}

// JobOfRow is the key of the job that a row is about, "" if it is no such row.
func JobOfRow(name string) string {
	rest, ok := strings.CutPrefix(name, WorkRows)
	if id, _, slash := strings.Cut(rest, "/"); ok && slash {
		return id
	}
	return ""
}

// claimRows are what a master writes when it takes a part over.
func claimRows(prefix string, claim int, c claimRow) ([]Row, error) {
	value, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode claim: %w", err)
	}
	return []Row{{Name: claimName(prefix, claim), Value: value}}, nil
}

// doneRows are what a master writes when it accepts a task's result; the last one makes it accepted.
func doneRows(prefix string, claim int, report job.TaskReport, p *Partial) ([]Row, error) {
	name := doneName(prefix, claim, report.From)
	head := doneRow{To: report.To, Report: report}
	data := p.Encode()
	if len(data) <= pieceBytes {
		value, err := encodeMessage(head, p)
		return []Row{{Name: name, Value: value, Spare: true}}, err
	}
	var rows []Row
	for piece := range slices.Chunk(data, pieceBytes) {
		rows = append(rows, Row{Name: fmt.Sprintf("%s/%04x", name, head.Pieces), Value: piece, Spare: true})
		head.Pieces++
	}
	if head.Pieces > maxPieces {
		return nil, &DecodeError{What: "partial for the ledger", Reason: fmt.Sprintf("%d bytes are too many", len(data))}
	}
	value, err := encodeMessage(head, nil)
	return append(rows, Row{Name: name, Value: value, Spare: true}), err
}

// found is what a shard's log says of the shard's part in one round.
type found struct {
	claims int // the number of the last claim; 0: nobody has begun
	pin    Pin
	slots  []sharding.SlotRange
	done   []accepted // disjoint, in order of their slots
}

// accepted is a task whose result was accepted.
type accepted struct {
	report  job.TaskReport
	partial *Partial
}

// readWork reads the rows of one round. An error means that they were not written by this code: the job fails rather
// than be wrong.
func readWork(prefix string, rows []Row) (f found, err error) {
	byName := make(map[string]Row, len(rows))
	claims := map[int]claimRow{}
	ends := map[int]int64{} // revision of each claim
	for _, row := range rows {
		byName[row.Name] = row
		text, ok := strings.CutPrefix(row.Name, prefix+"c/")
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(text, 16, 32)
		var c claimRow
		if err == nil {
			err = json.Unmarshal(row.Value, &c)
		}
		if err != nil {
			return found{}, fmt.Errorf("row %s: %w", row.Name, err)
		}
		claims[int(n)], ends[int(n)] = c, row.Revision
		f.claims = max(f.claims, int(n))
	}
	if f.claims == 0 {
		return f, nil
	}
	last := claims[f.claims]
	f.pin = last.Pin
	for _, s := range last.Slots {
		f.slots = append(f.slots, sharding.SlotRange{From: s[0], To: s[1]})
	}
	for claim, c := range claims {
		if c.Pin != f.pin {
			continue
		}
		of := fmt.Sprintf("%st/%08x/", prefix, claim)
		for _, row := range rows {
			from, ok := strings.CutPrefix(row.Name, of)
			if !ok || strings.Contains(from, "/") {
				continue
			}
			if next, ok := ends[claim+1]; ok && row.Revision > next {
				continue // of a master that had been replaced
			}
			a, err := readDone(row, byName)
			if err != nil {
				return found{}, fmt.Errorf("row %s: %w", row.Name, err)
			}
			f.done = append(f.done, a)
		}
	}
	slices.SortFunc(f.done, func(a, b accepted) int { return cmp.Compare(a.report.From, b.report.From) })
	for i := range f.done {
		r := f.done[i].report
		last, ok := sharding.RunFrom(f.slots, r.From)
		if !ok || r.To < r.From || last < r.To || i > 0 && f.done[i-1].report.To >= r.From {
			return found{}, fmt.Errorf("accepted task %d-%d does not fit in", r.From, r.To)
		}
	}
	return f, nil
}

func readDone(row Row, byName map[string]Row) (a accepted, err error) {
	var head doneRow
	data, err := decodeMessage(row.Value, &head)
	if err != nil {
		return a, err
	}
	if head.Pieces > maxPieces || head.Pieces > 0 && len(data) > 0 {
		return a, &DecodeError{What: "task row", Reason: "pieces"}
	}
	for i := range head.Pieces {
		data = append(data, byName[fmt.Sprintf("%s/%04x", row.Name, i)].Value...)
	}
	if a.partial, err = DecodePartial(data); err != nil {
		return a, err
	}
	a.report = head.Report
	a.report.To, a.report.Done = head.To, true
	return a, nil
}

// left are the slots that nobody has answered for.
func (f found) left() (left []sharding.SlotRange) {
	for _, r := range f.slots {
		from := int(r.From)
		for _, d := range f.done {
			if d.report.From < r.From || d.report.To > r.To {
				continue
			}
			if int(d.report.From) > from {
				left = append(left, sharding.SlotRange{From: sharding.Slot(from), To: d.report.From - 1})
			}
			from = int(d.report.To) + 1
		}
		if from <= int(r.To) {
			left = append(left, sharding.SlotRange{From: sharding.Slot(from), To: r.To})
		}
	}
	return left
}
