//go:build race

package compute

// slowed is how much longer all takes under the race detector.
const slowed = 10
