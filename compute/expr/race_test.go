//go:build race

package expr

// slowed is how much longer all takes under the race detector.
const slowed = 10
