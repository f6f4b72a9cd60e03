package backup

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/abacusdb/abacus/sharding"
)

// Manifest says what is in a backup.
type Manifest struct {
	Format    int    `json:"format"`
	ClusterID string `json:"cluster_id"`
	// Version is of the program that has written it, Level the cluster's feature level, Epoch that of its shard map.
	Version string `json:"version"`
	Level   int    `json:"level"`
	Epoch   uint64 `json:"epoch"`
	// Began and Ended are by the clock of the machine that wrote it. What was acknowledged before Began is in the backup.
	Began   time.Time `json:"began"`
	Ended   time.Time `json:"ended"`
	Records int64     `json:"records"`
	Bytes   int64     `json:"bytes"` // of keys and values
	Shards  []Shard   `json:"shards"`
}

// Shard is one shard's part of a backup: its keys as of one log index.
type Shard struct {
	ID    uint32 `json:"id"`
	Slots string `json:"slots"` // "0-2047", several ranges with commas
	Index uint64 `json:"index"`
	Term  uint64 `json:"term"` // of the entry at the index
	// At is when: Record.Left counts from there. Not before the index was taken, and little later.
	At   time.Time `json:"at"`
	Node string    `json:"node"` // whose replica was read
	// Attempt is that of the blocks that count: a replica may have been lost while it was read.
	Attempt uint32 `json:"attempt"`
	Blocks  uint32 `json:"blocks"`
	Records int64  `json:"records"`
	Bytes   int64  `json:"bytes"`
	SHA256  string `json:"sha256"`         // of the bytes of its blocks, one after the other
	File    string `json:"file,omitempty"` // in a directory
}

func (m *Manifest) encode() ([]byte, error) {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the manifest: %w", err)
	}
	return append(b, '\n'), nil
}

// maxManifest bounds a manifest: a thousand shards take some hundred KiB.
const maxManifest = 4 << 20

// parseManifest reads a manifest and checks that it can be one.
func parseManifest(path string, b []byte) (*Manifest, error) {
	bad := func(format string, args ...any) error {
		return &DamageError{path, -1, "the manifest: " + fmt.Sprintf(format, args...)}
	}
	m := &Manifest{}
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(m); err != nil {
		return nil, bad("%v", err)
	}
	if m.Format != Format {
		return nil, &VersionError{path, m.Format, Format}
	}
	if len(m.Shards) == 0 || len(m.Shards) > sharding.MaxShards {
		return nil, bad("%d shards", len(m.Shards))
	}
	var records, size int64
	parts := make([][]sharding.SlotRange, len(m.Shards))
	for i, s := range m.Shards {
		var err error
		if parts[i], err = parseSlots(s.Slots); err != nil {
			return nil, bad("shard %d: %v", s.ID, err)
		}
		if i > 0 && s.ID <= m.Shards[i-1].ID {
			return nil, bad("shard %d behind shard %d", s.ID, m.Shards[i-1].ID)
		}
		if s.Records < 0 || s.Bytes < 0 || strings.ContainsAny(s.File, `/\`) {
			return nil, bad("shard %d: %d records, %d bytes, file %q", s.ID, s.Records, s.Bytes, s.File)
		}
		records += s.Records
		size += s.Bytes
	}
	if records != m.Records || size != m.Bytes {
		return nil, bad("%d records and %d bytes, its shards have %d and %d", m.Records, m.Bytes, records, size)
	}
	if err := partition(parts); err != nil {
		return nil, bad("%v", err)
	}
	return m, nil
}

var errSlots = errors.New("the slots of the shards are not all slots, each once")

// partition says whether each slot is in exactly one of the parts.
func partition(parts [][]sharding.SlotRange) error {
	var all []sharding.SlotRange
	for _, p := range parts {
		all = append(all, p...)
	}
	slices.SortFunc(all, func(a, b sharding.SlotRange) int { return int(a.From) - int(b.From) })
	next := 0
	for _, r := range all {
		switch {
		case int(r.From) < next:
			return fmt.Errorf("%w: slot %d is in two", errSlots, r.From)
		case int(r.From) > next:
			return fmt.Errorf("%w: slot %d is in none", errSlots, next)
		}
		next = int(r.To) + 1
	}
	if next != sharding.Slots {
		return fmt.Errorf("%w: slot %d is in none", errSlots, next)
	}
	return nil
}

// parseSlots reads "0-2047,4096-4099". Empty: no slots.
func parseSlots(text string) (list []sharding.SlotRange, err error) {
	if text == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		from, to, ok := strings.Cut(part, "-")
		if !ok {
			to = from
		}
		a, err1 := strconv.ParseUint(from, 10, 16)
		b, err2 := strconv.ParseUint(to, 10, 16)
		if err1 != nil || err2 != nil || a > b || b >= sharding.Slots {
			return nil, fmt.Errorf("slots %q", text)
		}
		list = append(list, sharding.SlotRange{From: sharding.Slot(a), To: sharding.Slot(b)})
	}
	return list, nil
}

// slotSet is some of the slots.
type slotSet [sharding.Slots]bool

func newSlotSet(ranges []sharding.SlotRange) *slotSet {
	s := &slotSet{}
	for _, r := range ranges {
		for i := int(r.From); i <= int(r.To); i++ {
			s[i] = true
		}
	}
	return s
}
