//go:build !planted

package planted

// Enabled says whether this build can have planted bugs.
const Enabled = false

// Is says whether the bug is planted.
func Is(Bug) bool { return false }
