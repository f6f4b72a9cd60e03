package dataset

import (
	"fmt"
	"testing"
)

func TestKey(t *testing.T) {
	for _, i := range []int{0, 7, 10, 19_999, 123_456_789, 999_999_999} {
		if got, want := Key(i), fmt.Sprintf("k%09d", i); got != want {
			t.Errorf("Key(%d) = %q, want %q", i, got, want)
		}
	}
}

func TestRecord(t *testing.T) {
	sum := int64(0)
	for i := range 1234 {
		r := Record(i)
		if len(r) != 256 || ScanN(r) != DecodeN(r) {
			t.Fatalf("record %d: %d bytes, n %d or %d: %s", i, len(r), ScanN(r), DecodeN(r), r)
		}
		sum += ScanN(r)
	}
	if sum != Sum(1234) {
		t.Errorf("sum %d, want %d", sum, Sum(1234))
	}
}
