package sim

import "strconv"

// atoi reads a counter; no value is 0.
func atoi(b []byte) (int64, bool) {
	if len(b) == 0 {
		return 0, true
	}
	n, err := strconv.ParseInt(string(b), 10, 64)
	return n, err == nil
}
