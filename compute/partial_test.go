package compute

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/abacusdb/abacus/compute/job"
)

// However the records are split, in whatever order the parts are computed, sent
// and merged, the bytes are those of one straight loop.
func TestSplitsAndOrdersAgree(t *testing.T) {
	specs := []job.Spec{
		spec("int", "square", "sum"), spec("int", "value", "mean"), spec("int", "value", "min"), spec("int", "square", "max"),
		spec("float", "value", "sum"), spec("float", "square", "mean"), spec("float", "value", "max"),
		spec("json", "json:x", "sum"), spec("json", "json:x", "min"), spec("json", "json:x", "max"),
		spec("string", "value", "min"), spec("string", "key", "max"), spec("string", "len", "sum"), spec("string", "value", "count"),
	}
	for _, s := range specs {
		t.Run(s.As+" "+s.Map+" "+s.Reduce, func(t *testing.T) {
			for seed := range uint64(40) {
				rnd := rand.New(rand.NewPCG(seed, 1))
				values := make([]string, rnd.IntN(200))
				for i := range values {
					values[i] = randomValue(rnd, s.As)
				}
				whole := over(t, s, values...).Encode()
				if got := inParts(t, s, rnd, values).Encode(); !bytes.Equal(got, whole) {
					t.Fatalf("seed %d: in parts %x, whole %x", seed, got, whole)
				}
			}
		})
	}
}

func randomValue(rnd *rand.Rand, as string) string {
	n := func() string {
		switch rnd.IntN(4) {
		case 0:
			return strconv.FormatInt(int64(rnd.Uint64()), 10) // any of 64 bits
		case 1:
			return strconv.FormatUint(rnd.Uint64(), 10) + strconv.FormatUint(rnd.Uint64(), 10)
		}
		return strconv.Itoa(rnd.IntN(100) - 50)
	}
	f := func() string {
		if rnd.IntN(3) == 0 {
			return strconv.FormatFloat(math.Float64frombits(rnd.Uint64()), 'g', -1, 64) // NaN too
		}
		return strconv.FormatFloat(rnd.NormFloat64(), 'g', -1, 64)
	}
	switch as {
	case job.AsInt:
		return n()
	case job.AsFloat:
		return f()
	case job.AsJSON:
		return [...]string{`{"x":` + n() + `}`, `{"x":` + f() + `}`, `{"x":"` + n() + `"}`, `{"y":1}`, `{`}[min(rnd.IntN(12), 4)]
	}
	return strings.Repeat(string(rune('a'+rnd.IntN(26))), rnd.IntN(30))
}

// inParts deals the records out at random, sends each part through the codec
// and merges them as a random tree.
func inParts(t *testing.T, s job.Spec, rnd *rand.Rand, values []string) *Partial {
	parts := make([]*Partial, 1+rnd.IntN(8))
	for i := range parts {
		parts[i] = new(Partial)
	}
	fn, err := compile(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range rnd.Perm(len(values)) {
		fn.step(parts[rnd.IntN(len(parts))], fmt.Appendf(nil, "k%d", i), []byte(values[i]))
	}
	for len(parts) > 1 {
		i := rnd.IntN(len(parts) - 1)
		sent, err := DecodePartial(parts[i+1].Encode())
		if err != nil {
			t.Fatalf("part of %q: %v", values, err)
		}
		parts[i].Merge(sent)
		parts = append(parts[:i+1], parts[i+2:]...)
	}
	return parts[0]
}

// The float sum is the exact sum rounded once; big.Rat is the judge.
func TestFloatSumIsExact(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		var sum floatSum
		want := new(big.Rat)
		for range 100 {
			f := math.Float64frombits(rnd.Uint64())
			if seed%2 == 0 {
				f = rnd.NormFloat64() * 1e10
			}
			if math.IsNaN(f) || math.IsInf(f, 0) {
				continue
			}
			sum.add(f)
			want.Add(want, new(big.Rat).SetFloat64(f))
		}
		if got := ratio(new(big.Int), sum.total(), 1); got.Cmp(want) != 0 {
			t.Fatalf("seed %d: sum %s, want %s", seed, decimal(got), decimal(want))
		}
	}
}

// Sums at the ends of the range: every limb, both signs, the smallest subnormal to the greatest.
func TestFloatSumEdges(t *testing.T) {
	var sum floatSum
	edges := []float64{math.SmallestNonzeroFloat64, math.MaxFloat64, 0x1p-1022, 0x1p-1022 - math.SmallestNonzeroFloat64, 1, 0x1p31, 0x1p32, 0x1p33}
	for _, f := range edges {
		sum.add(f)
		sum.add(f)
		sum.add(-f)
	}
	sum.adds = limbAdds // make the next add fold
	for _, f := range edges {
		sum.add(-f)
	}
	if got := sum.total(); got.Sign() != 0 {
		t.Errorf("what was added and taken away again leaves %s", got)
	}
}

func TestIntSumSpills(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 3))
	var sum intSum
	want := new(big.Int)
	for range 10000 {
		n := int64(rnd.Uint64())
		if rnd.IntN(10) == 0 {
			n = [...]int64{math.MaxInt64, math.MinInt64, 0, 1, -1}[rnd.IntN(5)]
		}
		sum.add(n)
		want.Add(want, big.NewInt(n))
		if sum.total().Cmp(want) != 0 {
			t.Fatalf("sum %s, want %s", sum.total(), want)
		}
	}
}

// goldenPartial has something in every field.
func goldenPartial() *Partial {
	p := &Partial{Records: 7, Bad: 1, badKeys: []string{"bad"}, ints: 2, floats: 1, texts: 2, others: 1, loText: []byte("a"), hiText: []byte("b")}
	p.sum.addBig(new(big.Int).Neg(new(big.Int).Lsh(big.NewInt(1), 80)))
	p.fsum = new(floatSum)
	p.fsum.add(math.SmallestNonzeroFloat64 * 3)
	p.lo.setBig(new(big.Int).Neg(new(big.Int).Lsh(big.NewInt(1), 80)))
	p.hi.setFloat(1.5)
	return p
}

// The bytes of version 1 are fixed: nodes of two releases work on one job.
func TestPartialGolden(t *testing.T) {
	want, err := os.ReadFile("testdata/partial-v1.hex")
	if err != nil {
		t.Fatal(err)
	}
	got := goldenPartial().Encode()
	if hex.EncodeToString(got) != strings.TrimSpace(string(want)) {
		t.Errorf("encoded as %x, want %s", got, want)
	}
	back, err := DecodePartial(got)
	if err != nil || !bytes.Equal(back.Encode(), got) || back.Records != 7 {
		t.Errorf("read back as %+v, %v", back, err)
	}
}

func TestDecodePartialRefuses(t *testing.T) {
	good := goldenPartial().Encode()
	for n := range good {
		if _, err := DecodePartial(good[:n]); err == nil {
			t.Errorf("%d of %d bytes were decoded", n, len(good))
		}
	}
	if _, err := DecodePartial(append(good, 0)); err == nil {
		t.Error("bytes after the end were accepted")
	}
	var version *job.VersionError
	if _, err := DecodePartial([]byte{2}); !errors.As(err, &version) || version.Version != 2 {
		t.Errorf("version 2: %v", err)
	}
	spoil := func(change func(p *Partial)) []byte {
		p := goldenPartial()
		change(p)
		return p.Encode()
	}
	for name, data := range map[string][]byte{
		"bad keys without bad records": spoil(func(p *Partial) { p.Bad = 0 }),
		"bad records without keys":     spoil(func(p *Partial) { p.badKeys = nil }),
		"bad keys out of order":        spoil(func(p *Partial) { p.Bad, p.badKeys = 2, []string{"b", "a"} }),
		"a sum without integers":       spoil(func(p *Partial) { p.ints = 0 }),
		"a sum without floats":         spoil(func(p *Partial) { p.floats = 0 }),
		"extremes without numbers":     spoil(func(p *Partial) { p.ints, p.floats, p.sum, p.fsum = 0, 0, intSum{}, nil }),
		"texts without texts":          spoil(func(p *Partial) { p.texts = 0 }),
		"one extreme":                  spoil(func(p *Partial) { p.lo = item{} }),
		"minimum above maximum":        spoil(func(p *Partial) { p.lo, p.hi = p.hi, p.lo }),
		"an infinite float":            spoil(func(p *Partial) { p.hi.float = math.Inf(1) }),
		"texts out of order":           spoil(func(p *Partial) { p.loText, p.hiText = p.hiText, p.loText }),
		"a huge integer":               spoil(func(p *Partial) { p.sum.addBig(new(big.Int).Lsh(big.NewInt(1), 8*maxBigBytes+8)) }),
		"a huge text":                  spoil(func(p *Partial) { p.hiText = bytes.Repeat([]byte("b"), maxTextBytes+2) }),
		"a length beyond the end":      {partialVersion, 1, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0x0f},
		"a count that wraps":           {partialVersion, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1},
	} {
		var wrong *DecodeError
		if p, err := DecodePartial(data); !errors.As(err, &wrong) {
			t.Errorf("%s: decoded as %+v, %v", name, p, err)
		}
	}
}

// Whatever is decoded is encoded as the same bytes again, and merges without a panic.
func FuzzDecodePartial(f *testing.F) {
	f.Add(goldenPartial().Encode())
	f.Add(new(Partial).Encode())
	f.Add(over(f, spec("string", "value", "min"), "a", "bb").Encode())
	f.Add(over(f, spec("json", "json:x", "max"), `{"x":1.5}`, `{"x":99999999999999999999}`, `{`).Encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := DecodePartial(data)
		if err != nil {
			return
		}
		if again := p.Encode(); !bytes.Equal(again, data) {
			t.Fatalf("%x was encoded as %x", data, again)
		}
		sum := goldenPartial()
		sum.Merge(p)
		for _, reduce := range []string{"sum", "count", "min", "max", "mean"} {
			s := spec("json", "value", reduce)
			s.OnError = job.OnErrorSkip
			_, _, _ = sum.Final(s)
			_, _, _ = p.Final(s)
		}
	})
}

func FuzzDecodeMessage(f *testing.F) {
	good, err := encodeMessage(taskRequest{Spec: spec("int", "value", "sum")}, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{messageVersion, 2, '{', '}'})
	f.Add([]byte{messageVersion, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, data []byte) {
		var req taskRequest
		rest, err := decodeMessage(data, &req)
		if err != nil {
			return
		}
		again, err := encodeMessage(req, nil)
		if err != nil {
			t.Fatal(err)
		}
		var back taskRequest
		if _, err := decodeMessage(again, &back); err != nil || back != req {
			t.Fatalf("%+v was read back as %+v, %v", req, back, err)
		}
		if len(rest) > len(data) {
			t.Fatal("more is left than there was")
		}
	})
}

func TestDecodeMessageRefuses(t *testing.T) {
	for name, data := range map[string]string{
		"nothing":           "",
		"another version":   "\x02\x02{}",
		"truncated":         "\x01\x05{}",
		"no JSON":           "\x01\x02}{",
		"an unknown field":  "\x01\x09{\"new\":1}",
		"two heads":         "\x01\x04{}{}",
		"a wrong type":      "\x01\x0c{\"shard\":-1}",
		"too long a length": "\x01\xff\xff\xff\xff\x0f",
	} {
		if _, err := decodeMessage([]byte(data), new(taskRequest)); err == nil {
			t.Errorf("%s was decoded", name)
		}
	}
}
