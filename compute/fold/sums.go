package fold

import (
	"encoding/json"
	"math"
	"math/big"
	"math/bits"
)

// IntSum adds integers exactly. It stays in an int64 while that holds and
// spills into a big.Int when it would wrap.
type IntSum struct {
	small int64
	big   *big.Int // nil until the first spill
}

// Add adds one.
func (s *IntSum) Add(x int64) {
	sum := s.small + x
	if (sum^s.small)&(sum^x) < 0 { // both operands have the sign that the sum has not: it wrapped
		s.spill(big.NewInt(s.small))
		sum = x
	}
	s.small = sum
}

// AddBig adds one of any size, or the Total of another sum.
func (s *IntSum) AddBig(x *big.Int) {
	if x.IsInt64() && s.big == nil {
		s.Add(x.Int64())
		return
	}
	s.spill(x)
}

func (s *IntSum) spill(x *big.Int) {
	if s.big == nil {
		s.big = new(big.Int)
	}
	s.big.Add(s.big, x)
}

// Total is the sum. The caller owns it.
func (s *IntSum) Total() *big.Int {
	t := big.NewInt(s.small)
	if s.big != nil {
		t.Add(t, s.big)
	}
	return t
}

// size is what the sum takes beyond an int64, in bytes.
func (s *IntSum) size() int {
	if s.big == nil {
		return 0
	}
	return bigSize(s.big)
}

func bigSize(n *big.Int) int { return len(n.Bits()) * 8 }

const (
	// floatUnit is the exponent of the smallest step of a float64: every finite
	// one is a whole number of 2^-1074.
	floatUnit = 1074
	limbAdds  = 1 << 30 // an add moves a limb by less than 2^32, an int64 holds 2^31 of them
)

// FloatSum adds finite float64s exactly, as whole numbers of 2^-1074, so that
// the total does not depend on their order: any split of a job, any
// retry and any order of answers give bit for bit the same result.
type FloatSum struct{ exact accumulator }

// Add adds a finite one.
func (s *FloatSum) Add(x float64) {
	m, shift, negative := parts(x)
	s.exact.add(m, shift, negative)
}

// AddTotal adds what Total of another sum returned.
func (s *FloatSum) AddTotal(t *big.Int) { s.exact.addBig(t, 0) }

// Total is the sum in units of 2^-1074. The caller owns it.
func (s *FloatSum) Total() *big.Int { return s.exact.total() }

// parts takes a finite float apart: its magnitude is mantissa * 2^(shift-1074).
func parts(x float64) (mantissa uint64, shift uint, negative bool) {
	b := math.Float64bits(x)
	mantissa, shift = b&(1<<52-1), uint(b>>52&0x7ff)
	if shift > 0 { // normal: an implied leading one; subnormals have the exponent of shift 1 without it
		mantissa |= 1 << 52
		shift--
	}
	return mantissa, shift, b>>63 == 1
}

// accumulator adds whole numbers exactly, each 64 bits at any height. It has limbs for the heights that it has met and no
// others: one group's sum among many mostly has three.
type accumulator struct {
	limbs []int64 // limb i counts 2^(32(low+i)); may be negative and overfull
	low   int
	adds  int // since the limbs were last brought into their range
}

// add adds or takes away m * 2^shift.
func (a *accumulator) add(m uint64, shift uint, negative bool) {
	if a.adds == limbAdds {
		a.carry()
	}
	a.adds++
	i := int(shift/32) - a.low
	if i < 0 || i+3 > len(a.limbs) {
		i = a.reach(int(shift / 32))
	}
	low, high := m<<(shift%32), m>>(64-shift%32)
	limb := a.limbs[i:][:3]
	if !negative {
		limb[0] += int64(low & math.MaxUint32)
		limb[1] += int64(low >> 32)
		limb[2] += int64(high)
	} else {
		limb[0] -= int64(low & math.MaxUint32)
		limb[1] -= int64(low >> 32)
		limb[2] -= int64(high)
	}
}

// reach makes limbs for an add at limb number at and returns its index.
func (a *accumulator) reach(at int) int {
	if len(a.limbs) == 0 {
		a.limbs, a.low = make([]int64, 3), at
		return 0
	}
	low, end := min(at, a.low), max(at+3, a.low+len(a.limbs))
	limbs := make([]int64, end-low)
	copy(limbs[a.low-low:], a.limbs)
	a.limbs, a.low = limbs, low
	return at - low
}

// carry brings the limbs into the range of a single add.
func (a *accumulator) carry() {
	var over int64
	for i := range a.limbs {
		a.limbs[i] += over
		over = a.limbs[i] >> 32
		if i == len(a.limbs)-1 && (over == 0 || over == -1) {
			break // the highest keeps its sign, or a negative sum would take one more each time
		}
		a.limbs[i] &= math.MaxUint32
		if i == len(a.limbs)-1 {
			a.limbs = append(a.limbs, over)
		}
	}
	a.adds = 1
}

// merge adds another sum.
func (a *accumulator) merge(o *accumulator) {
	for i, limb := range o.limbs {
		if limb != 0 {
			a.add(magnitude(limb), uint(32*(o.low+i)), limb < 0)
		}
	}
}

// addBig adds n * 2^shift.
func (a *accumulator) addBig(n *big.Int, shift uint) {
	for i, word := range n.Bits() {
		if word != 0 {
			a.add(uint64(word), shift+uint(i)*bits.UintSize, n.Sign() < 0)
		}
	}
}

// total is the sum. The caller owns it.
func (a *accumulator) total() *big.Int {
	var sum, limb big.Int
	for i := len(a.limbs) - 1; i >= 0; i-- {
		sum.Lsh(&sum, 32)
		sum.Add(&sum, limb.SetInt64(a.limbs[i]))
	}
	return sum.Lsh(&sum, uint(32*a.low))
}

// size is what the sum takes, in bytes.
func (a *accumulator) size() int { return 8 * len(a.limbs) }

func magnitude(n int64) uint64 {
	if n < 0 {
		return -uint64(n)
	}
	return uint64(n)
}

// Ratio is (ints + floats) / count, exactly; floats in units of 2^-1074.
func Ratio(ints, floats *big.Int, count int64) *big.Rat {
	numerator := new(big.Int).Lsh(ints, floatUnit)
	numerator.Add(numerator, floats)
	denominator := new(big.Int).Lsh(big.NewInt(count), floatUnit)
	return new(big.Rat).SetFrac(numerator, denominator)
}

// Decimal writes r rounded once, to the nearest float64, in the shortest
// digits that mean it. What is too large for one keeps 17 digits instead of becoming infinite.
func Decimal(r *big.Rat) string {
	f, _ := r.Float64()
	if math.IsInf(f, 0) {
		return new(big.Float).SetPrec(128).SetRat(r).Text('g', 17)
	}
	return FormatFloat(f)
}

// FormatFloat writes a finite float in the shortest digits that mean it, as JSON does.
func FormatFloat(f float64) string {
	digits, err := json.Marshal(f)
	if err != nil { // only for NaN and infinities, which no item ever is
		panic("fold: format " + err.Error())
	}
	return string(digits)
}
