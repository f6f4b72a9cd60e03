package fsm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"testing"
)

// A copy is taken if it is whole, of this cluster and shard, and far enough; it is then
// the same state. What its sender did not notice is noticed here, by reading all of it.
func TestRepairReceive(t *testing.T) {
	m := newMachine(t, testConfig())
	for i := range 200 {
		m.apply(1, set(fmt.Sprintf("key%d", i), "some value"))
	}
	data, index := readStream(t, m.f)
	resum := func(b []byte) []byte {
		binary.BigEndian.PutUint32(b[len(b)-streamTail:], crc32.Checksum(b[streamHead:len(b)-streamTail], castagnoli))
		return b
	}
	good := Seed{ClusterID: testInit().ClusterID, Shard: testInit().Shard, MinIndex: index, InitialMmapSize: 1 << 20}
	edit := func(change func(*Seed)) Seed { s := good; change(&s); return s }
	var corrupt *CorruptError
	for _, tc := range []struct {
		name   string
		data   []byte
		want   Seed
		is     error
		damage bool
	}{
		{"good", data, good, nil, false},
		{"another cluster", data, edit(func(s *Seed) { s.ClusterID = "other" }), ErrForeignSnapshot, false},
		{"another shard", data, edit(func(s *Seed) { s.Shard++ }), ErrForeignSnapshot, false},
		{"not far enough", data, edit(func(s *Seed) { s.MinIndex++ }), ErrSeedBehind, false},
		{"cut short", data[:len(data)-5], good, nil, true},
		{"a flipped bit", func() []byte { b := bytes.Clone(data); b[len(b)/2] ^= 1; return b }(), good, nil, true},
		{"a row that is not what was written", resum(bytes.ReplaceAll(data, []byte("some value"), []byte("same value"))), good, nil, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			got, err := Receive(t.Context(), dir, bytes.NewReader(tc.data), tc.want)
			switch {
			case tc.damage:
				if !errors.As(err, &corrupt) {
					t.Fatalf("%v", err)
				}
				return
			case tc.is != nil:
				if !errors.Is(err, tc.is) {
					t.Fatalf("%v", err)
				}
				return
			case err != nil || got != index:
				t.Fatalf("index %d, want %d: %v", got, index, err)
			}
			f, err := Open(dir, testConfig())
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			v, err := f.View()
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			if v.Hash() != m.hash() || f.DurableIndex() != index {
				t.Errorf("another state, durable to %d", f.DurableIndex())
			}
		})
	}
}
