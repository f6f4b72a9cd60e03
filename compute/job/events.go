package job

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Event is something that happened to a job, told for people: nothing is decided by it.
type Event struct {
	// AtMillis is the wall clock of the node that noted it, in milliseconds since 1970.
	AtMillis int64  `json:"at_ms"`
	Text     string `json:"text"`
}

// Bounds of a record's events: with them it stays far below MaxRecordBytes.
const (
	MaxEvents     = 100
	MaxEventBytes = 300
	maxNamed      = 5 // shards or keys that one event names
)

// Log notes what happened. Of more than MaxEvents the oldest are dropped, and counted.
// Records that were copied from r before keep the events that they have.
func (r *Record) Log(now time.Time, text string) {
	text = Cut(text)
	over := max(len(r.Events)-(MaxEvents-1), 0)
	r.EventsOmitted += over
	r.Events = append(slices.Clone(r.Events[over:]), Event{AtMillis: now.UnixMilli(), Text: text})
}

// Cut shortens a text to MaxEventBytes.
func Cut(text string) string {
	if len(text) <= MaxEventBytes {
		return text
	}
	at := MaxEventBytes - len("…")
	for at > 0 && !utf8.RuneStart(text[at]) {
		at--
	}
	return text[:at] + "…"
}

// LogSince gives r, the next version of the record old, the events of old and one for each
// thing that has changed since: rounds, tasks that failed or were slow, masters that were lost, its end.
func (r *Record) LogSince(old Record, now time.Time) {
	r.Events, r.EventsOmitted = old.Events, old.EventsOmitted
	for _, text := range changes(old, *r) {
		r.Log(now, text)
	}
}

func changes(old, r Record) (texts []string) {
	if r.Rounds > max(old.Rounds, 1) {
		texts = append(texts, fmt.Sprintf("slots changed hands while it ran: round %d, all shards are asked again", r.Rounds))
	}
	texts = append(texts, lostMasters(old, r)...)
	texts = append(texts, failures(old, r)...)
	texts = append(texts, backups(old, r)...)
	if r.State == old.State || !r.State.Finished() {
		return texts
	}
	if r.Bad > 0 {
		texts = append(texts, fmt.Sprintf("%d of %d records could not be read as they should, for example %s", r.Bad, r.Records, quotedSome(r.BadKeys)))
	}
	end := fmt.Sprintf("%s: %d records in %d tasks on %d shards", r.State, r.Records, r.Progress.Tasks, r.Progress.Shards)
	if r.Error != "" {
		end = string(r.State) + ": " + r.Error
	}
	return append(texts, end)
}

func lostMasters(old, r Record) (texts []string) {
	attempts := map[uint32]int{}
	for _, s := range old.Shards {
		attempts[s.Shard] = s.Attempts
	}
	var shards []uint32
	for _, s := range r.Shards {
		if s.Attempts > max(attempts[s.Shard], 1) {
			shards = append(shards, s.Shard)
		}
	}
	if len(shards) == 0 {
		return nil
	}
	text := "asked again: " + named("shard", shards)
	for _, s := range r.Shards {
		if s.Trouble != "" && slices.Contains(shards, s.Shard) { // one reason is enough to look at
			text += fmt.Sprintf("; shard %d: %s", s.Shard, s.Trouble)
			break
		}
	}
	return []string{text}
}

// failures tells for each node which shards' tasks it has failed since, in one line.
func failures(old, r Record) (texts []string) {
	if old.TasksOmitted > 0 { // who failed before is not known, and would be told again each time
		return nil
	}
	type taskID struct {
		shard uint32
		id    int
	}
	known := map[taskID][]string{}
	for _, s := range old.Shards {
		for _, k := range s.Tasks {
			known[taskID{s.Shard, k.ID}] = k.FailedOn
		}
	}
	tasks, shards := map[string]int{}, map[string][]uint32{}
	for _, s := range r.Shards {
		for _, k := range s.Tasks {
			for _, node := range k.FailedOn {
				if slices.Contains(known[taskID{s.Shard, k.ID}], node) {
					continue
				}
				if tasks[node]++; !slices.Contains(shards[node], s.Shard) {
					shards[node] = append(shards[node], s.Shard)
				}
			}
		}
	}
	for _, node := range slices.Sorted(maps.Keys(tasks)) {
		texts = append(texts, fmt.Sprintf("node %s failed %s of %s, which other replicas do", node, numbered(tasks[node]), named("shard", shards[node])))
	}
	return texts
}

// backups tells of tasks that were given to a second node since, because the first was slow. A shard of which nothing was known is left out: after
// a takeover all would be told again.
func backups(old, r Record) (texts []string) {
	type place struct{ shard, from uint32 } // a new master numbers anew
	known, of := map[place]int{}, map[uint32]bool{}
	for _, s := range old.Shards {
		for _, k := range s.Tasks {
			known[place{s.Shard, uint32(k.From)}], of[s.Shard] = k.Backups, true
		}
	}
	tasks, shards := 0, []uint32(nil)
	for _, s := range r.Shards {
		for _, k := range s.Tasks {
			if !of[s.Shard] || k.Backups <= known[place{s.Shard, uint32(k.From)}] {
				continue
			}
			if tasks++; !slices.Contains(shards, s.Shard) {
				shards = append(shards, s.Shard)
			}
		}
	}
	if tasks > 0 {
		texts = append(texts, fmt.Sprintf("a second node was given %s of %s, for the first was slow or not heard of", numbered(tasks), named("shard", shards)))
	}
	return texts
}

func numbered(tasks int) string {
	if tasks == 1 {
		return "1 task"
	}
	return fmt.Sprintf("%d tasks", tasks)
}

// named lists a few ids: "shards 1, 2, 3 and 4 more".
func named(what string, ids []uint32) string {
	if len(ids) > 1 {
		what += "s"
	}
	var out []string
	for _, id := range ids[:min(len(ids), maxNamed)] {
		out = append(out, fmt.Sprint(id))
	}
	return what + " " + strings.Join(out, ", ") + more(len(ids))
}

func quotedSome(keys []string) string {
	var out []string
	for _, k := range keys[:min(len(keys), maxNamed)] {
		out = append(out, fmt.Sprintf("%.40q", k))
	}
	return strings.Join(out, ", ") + more(len(keys))
}

func more(n int) string {
	if n <= maxNamed {
		return ""
	}
	return fmt.Sprintf(" and %d more", n-maxNamed)
}
