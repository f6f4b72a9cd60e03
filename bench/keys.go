package bench

import (
	"math"
	"math/rand/v2"
)

// uniform draws every key equally often.
func uniform(n int) func(*rand.Rand) int {
	return func(r *rand.Rand) int { return r.IntN(n) }
}

// zipfTheta is YCSB's constant: of 100,000 keys the busiest takes about 8 % of the load.
const zipfTheta = 0.99

// zipfian draws key ranks by Zipf's law with exponent zipfTheta and spreads
// the ranks over the keys, so that the busy ones are not neighbours. After Gray
// et al., "Quickly Generating Billion-Record Synthetic Databases", as YCSB
// does. (math/rand's Zipf needs an exponent above 1.)
func zipfian(n int) func(*rand.Rand) int {
	zetan := zeta(n)
	alpha := 1 / (1 - zipfTheta)
	eta := (1 - math.Pow(2/float64(n), 1-zipfTheta)) / (1 - zeta(2)/zetan)
	return func(r *rand.Rand) int {
		u := r.Float64()
		uz := u * zetan
		rank := 0
		switch {
		case uz < 1 || n < 2:
		case uz < 1+math.Pow(0.5, zipfTheta) || n == 2:
			rank = 1
		default:
			rank = min(int(float64(n)*math.Pow(eta*u-eta+1, alpha)), n-1)
		}
		return scatter(rank, n)
	}
}

// zeta is the sum of i^-theta for i in 1..n; past ten million by its integral.
func zeta(n int) float64 {
	const exact = 10_000_000
	sum := 0.0
	for i := 1; i <= min(n, exact); i++ {
		sum += math.Pow(float64(i), -zipfTheta)
	}
	if n > exact {
		sum += (math.Pow(float64(n), 1-zipfTheta) - math.Pow(exact, 1-zipfTheta)) / (1 - zipfTheta)
	}
	return sum
}

// scatter maps a rank to a key. Distinct ranks may meet in one key, as in YCSB.
func scatter(rank, n int) int {
	z := uint64(rank) + 0x9e3779b97f4a7c15 // splitmix64
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return int((z ^ z>>31) % uint64(n))
}
