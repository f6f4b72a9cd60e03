//go:build !race

package compute

const slowed = 1
