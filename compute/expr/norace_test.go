//go:build !race

package expr

const slowed = 1
