package compute

import (
	"encoding/json"
	"math"
	"math/big"
)

// intSum adds integers exactly. It stays in an int64 while that holds and
// spills into a big.Int when it would wrap.
type intSum struct {
	small int64
	big   *big.Int // nil until the first spill
}

func (s *intSum) add(x int64) {
	sum := s.small + x
	if (sum^s.small)&(sum^x) < 0 { // both operands have the sign that the sum has not: it wrapped
		s.addBig(big.NewInt(s.small))
		sum = x
	}
	s.small = sum
}

func (s *intSum) addBig(x *big.Int) {
	if s.big == nil {
		s.big = new(big.Int)
	}
	s.big.Add(s.big, x)
}

func (s *intSum) total() *big.Int {
	t := big.NewInt(s.small)
	if s.big != nil {
		t.Add(t, s.big)
	}
	return t
}

const (
	// floatUnit is the exponent of the smallest step of a float64: every finite
	// one is a whole number of 2^-1074.
	floatUnit  = 1074
	floatLimbs = 66      // 32 bits each: the highest float64 bit is number 2097
	limbAdds   = 1 << 30 // an add moves a limb by less than 2^32, an int64 holds 2^31 of them
)

// floatSum adds finite float64s exactly, as whole numbers of 2^-1074, so that
// the total does not depend on their order: any split of a job, any
// retry and any order of answers give bit for bit the same result.
type floatSum struct {
	limbs [floatLimbs]int64 // limb i counts 2^(32i); may be negative and overfull
	adds  int               // since the limbs were last folded into base
	base  big.Int
}

func (s *floatSum) add(x float64) {
	if s.adds == limbAdds {
		s.fold()
	}
	s.adds++
	bits := math.Float64bits(x)
	mantissa, shift := bits&(1<<52-1), uint(bits>>52&0x7ff)
	if shift > 0 { // normal: an implied leading one; subnormals have the exponent of shift 1 without it
		mantissa |= 1 << 52
		shift--
	}
	low, high := mantissa<<(shift%32), mantissa>>(64-shift%32)
	limb := s.limbs[shift/32:][:3]
	if bits>>63 == 0 {
		limb[0] += int64(low & math.MaxUint32)
		limb[1] += int64(low >> 32)
		limb[2] += int64(high)
	} else {
		limb[0] -= int64(low & math.MaxUint32)
		limb[1] -= int64(low >> 32)
		limb[2] -= int64(high)
	}
}

// fold moves the limbs into base.
func (s *floatSum) fold() {
	var sum, limb big.Int
	for i := floatLimbs - 1; i >= 0; i-- {
		sum.Lsh(&sum, 32)
		sum.Add(&sum, limb.SetInt64(s.limbs[i]))
	}
	s.base.Add(&s.base, &sum)
	s.limbs, s.adds = [floatLimbs]int64{}, 0
}

// total is the sum in units of 2^-1074. The caller must not change it.
func (s *floatSum) total() *big.Int {
	if s.adds > 0 {
		s.fold()
	}
	return &s.base
}

// ratio is (ints + floats) / count, exactly; floats in units of 2^-1074.
func ratio(ints, floats *big.Int, count int64) *big.Rat {
	numerator := new(big.Int).Lsh(ints, floatUnit)
	numerator.Add(numerator, floats)
	denominator := new(big.Int).Lsh(big.NewInt(count), floatUnit)
	return new(big.Rat).SetFrac(numerator, denominator)
}

// decimal writes r rounded once, to the nearest float64, in the shortest
// digits that mean it. What is too large for one keeps 17 digits instead of becoming infinite.
func decimal(r *big.Rat) string {
	f, _ := r.Float64()
	if math.IsInf(f, 0) {
		return new(big.Float).SetPrec(128).SetRat(r).Text('g', 17)
	}
	return formatFloat(f)
}

func formatFloat(f float64) string {
	digits, err := json.Marshal(f)
	if err != nil { // only for NaN and infinities, which no item ever is
		panic("compute: format " + err.Error())
	}
	return string(digits)
}
