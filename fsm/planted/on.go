//go:build planted

package planted

import (
	"os"
	"slices"
	"sync/atomic"
)

// Enabled says whether this build can have planted bugs.
const Enabled = true

var active atomic.Value // Bug

func init() {
	b := Bug(os.Getenv("ABACUS_PLANTED"))
	if b != "" && !slices.Contains(All, b) {
		panic("planted: ABACUS_PLANTED names no bug: " + string(b))
	}
	active.Store(b)
}

// Is says whether the bug is planted.
func Is(b Bug) bool { return active.Load() == b }

// Plant puts a bug in, in the place of the one before; "" takes it out.
func Plant(b Bug) { active.Store(b) }
