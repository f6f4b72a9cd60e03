package fsm

import (
	"fmt"
	"strings"
	"testing"
)

// Scrub reads no more between two pauses than its bound and one row, and all there is.
func TestScrubPieces(t *testing.T) {
	m := newMachine(t, testConfig())
	value := strings.Repeat("v", 4096)
	rows := scrubBytes/len(value) + 200 // fewer than scrubRows
	for i := range rows {
		m.apply(0, set(fmt.Sprint("key", i), value))
	}
	if err := m.f.Flush(); err != nil {
		t.Fatal(err)
	}
	total, pieces := 0, 0
	err := m.f.Scrub(t.Context(), func(bytes int) error {
		if pieces++; bytes > scrubBytes+2*len(value) {
			t.Errorf("%d bytes in one piece", bytes)
		}
		total += bytes
		return nil
	})
	if err != nil || total < rows*len(value) {
		t.Errorf("scrubbed %d bytes in %d pieces of %d rows: %v", total, pieces, rows, err)
	}
}
