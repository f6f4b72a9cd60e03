package sharding

import (
	"fmt"
	"strings"
	"testing"
)

// The slots of Redis Cluster's own documentation and of its test-suite's keys:
// a client that computes another one would be sent round in circles.
func TestSlotOf(t *testing.T) {
	for _, tc := range []struct {
		key  string
		want Slot
	}{
		{"", 0},
		{"123456789", 0x31C3},
		{"foo", 12182},
		{"bar", 5061},
		{"hello", 866},
		{"{foo}", 12182},
		{"a{foo}b", 12182},
		{"{foo}{bar}", 12182},
		{"{user1000}.following", SlotOf([]byte("user1000"))},
		{"{user1000}.followers", SlotOf([]byte("user1000"))},
		// An empty tag is no tag: the whole key counts.
		{"foo{}{bar}", crc16([]byte("foo{}{bar}")) % Slots},
		{"{}foo", crc16([]byte("{}foo")) % Slots},
		// The tag begins at the first brace, nested ones belong to it.
		{"foo{{bar}}zap", SlotOf([]byte("{bar"))},
		{"foo{bar", crc16([]byte("foo{bar")) % Slots},
		{"foo}bar{", crc16([]byte("foo}bar{")) % Slots},
		{"}{foo}", 12182},
	} {
		if got := SlotOf([]byte(tc.key)); got != tc.want {
			t.Errorf("SlotOf(%q) = %d, want %d", tc.key, got, tc.want)
		}
	}
}

// The table against the definition of the checksum, bit by bit.
func TestCRC16MatchesDefinition(t *testing.T) {
	bitwise := func(data string) uint16 {
		crc := 0
		for _, b := range []byte(data) {
			for bit := 7; bit >= 0; bit-- {
				top := crc >> 15 & 1
				crc = crc << 1 & 0xffff
				if top != int(b)>>bit&1 {
					crc ^= 0x1021
				}
			}
		}
		return uint16(crc)
	}
	for i := range 1000 {
		key := strings.Repeat(fmt.Sprint(i*7919), i%5) + string(rune(i))
		if got, want := crc16([]byte(key)), bitwise(key); got != want {
			t.Fatalf("crc16(%q) = %#x, want %#x", key, got, want)
		}
	}
}

func BenchmarkLocate(b *testing.B) {
	m, err := NewMap("c", Node{ID: "n1"}, 8, 3)
	if err != nil {
		b.Fatal(err)
	}
	r := NewRouter(m)
	key := []byte("user:0000012345")
	b.ReportAllocs()
	for b.Loop() {
		r.Locate(key)
	}
}
