package job

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// More ways to combine the mapped records; sum, count, min, max and mean are in spec.go. Those that end in a colon are
// followed by an argument.
const (
	ReduceVariance  = "variance"   // of the whole population: divided by n, not n-1
	ReduceStddev    = "stddev"     // the root of that
	ReduceHistogram = "histogram:" // "log2", or the bounds between the buckets: 0,10,100
	ReduceTop       = "top:"       // how many of the largest values
	ReduceDistinct  = "distinct"   // how many different values
	ReduceQuantile  = "quantile:"  // one or more of 0 to 1: 0.5,0.99
	ReduceFirst     = "first"      // the value of the smallest key
	ReduceLast      = "last"       // the value of the largest key
	ReduceCollect   = "collect:"   // the different values themselves, if there are at most so many
)

// Bounds of a reduce's argument.
const (
	MaxTop             = 1000
	MaxCollect         = 10_000
	MaxHistogramBounds = 256
	MaxQuantiles       = 32
)

// Reduce is the parsed form of a spec's reduce.
type Reduce struct {
	// Name is one of the Reduce constants, without what follows the colon.
	Name string
	// Limit is how many values top and collect keep at most: 1 to MaxTop or MaxCollect.
	Limit int
	// Bounds separates the buckets of a histogram: finite, rising, at most MaxHistogramBounds. None means log2.
	Bounds []float64
	// Quantiles holds 1 to MaxQuantiles different numbers from 0 to 1, in the order they were asked for.
	Quantiles []float64
}

// reduces lists every reduce with an example of its argument, for hints.
var reduces = []struct {
	name, example string
	numbersOnly   bool
}{
	{ReduceSum, "", true}, {ReduceCount, "", false}, {ReduceMin, "", false}, {ReduceMax, "", false}, {ReduceMean, "", true},
	{ReduceVariance, "", true}, {ReduceStddev, "", true}, {ReduceHistogram, "log2", true}, {ReduceTop, "10", false}, {ReduceDistinct, "", false},
	{ReduceQuantile, "0.5,0.99", true}, {ReduceFirst, "", false}, {ReduceLast, "", false}, {ReduceCollect, "100", false},
}

// ParseReduce reads a spec's reduce: a word such as "sum", or a word with its argument such as "top:10",
// "histogram:0,10,100", "histogram:log2" or "quantile:0.5,0.99". The error names the field "reduce".
func ParseReduce(s string) (Reduce, *SpecError) {
	for _, known := range reduces {
		argument, found := strings.CutPrefix(s, known.name)
		switch {
		case known.example == "" && s == known.name:
			return Reduce{Name: known.name}, nil
		case known.example == "" && found && strings.HasPrefix(argument, ":"):
			return Reduce{}, &SpecError{Field: "reduce", Reason: known.name + " takes no argument", Hint: "write " + known.name}
		case known.example == "":
		case found && argument != "":
			return parseArgument(known.name, argument)
		case found || s == strings.TrimSuffix(known.name, ":"):
			return Reduce{}, &SpecError{Field: "reduce", Reason: known.name + " needs an argument", Hint: "for example " + known.name + known.example}
		}
	}
	words := make([]string, len(reduces))
	for i, known := range reduces {
		words[i] = known.name + known.example
	}
	return Reduce{}, &SpecError{Field: "reduce", Reason: fmt.Sprintf("unknown %q", s), Hint: "one of " + strings.Join(words, " ")}
}

// NumbersOnly says whether the reduce can take nothing but numbers.
func (r Reduce) NumbersOnly() bool {
	for _, known := range reduces {
		if known.name == r.Name {
			return known.numbersOnly
		}
	}
	return false
}

func parseArgument(name, argument string) (r Reduce, err *SpecError) {
	r.Name = name
	switch name {
	case ReduceTop:
		r.Limit, err = parseLimit(name, argument, MaxTop)
	case ReduceCollect:
		r.Limit, err = parseLimit(name, argument, MaxCollect)
	case ReduceHistogram:
		if argument == "log2" {
			return r, nil
		}
		r.Bounds, err = parseNumbers(name, argument, MaxHistogramBounds)
		if err == nil && !rising(r.Bounds) {
			err = &SpecError{Field: "reduce", Reason: "the bounds of a histogram must rise", Hint: "for example histogram:0,10,100"}
		}
	case ReduceQuantile:
		r.Quantiles, err = parseNumbers(name, argument, MaxQuantiles)
		if err == nil {
			err = checkQuantiles(r.Quantiles)
		}
	}
	if err != nil {
		return Reduce{}, err
	}
	return r, nil
}

func rising(numbers []float64) bool {
	for i := 1; i < len(numbers); i++ {
		if numbers[i-1] >= numbers[i] {
			return false
		}
	}
	return true
}

func checkQuantiles(quantiles []float64) *SpecError {
	for i, q := range quantiles {
		if q < 0 || q > 1 {
			return &SpecError{Field: "reduce", Reason: fmt.Sprintf("%v is not a quantile: they go from 0 to 1", q), Hint: "the median is quantile:0.5"}
		}
		if slices.Contains(quantiles[:i], q) {
			return &SpecError{Field: "reduce", Reason: fmt.Sprintf("the quantile %v is asked for twice", q)}
		}
	}
	return nil
}

func parseLimit(name, argument string, most int) (int, *SpecError) {
	n, err := strconv.Atoi(argument)
	if err != nil || n < 1 || n > most || argument[0] == '+' {
		return 0, &SpecError{Field: "reduce", Reason: fmt.Sprintf("%q after %s is not a number from 1 to %d", argument, name, most), Hint: "for example " + name + "10"}
	}
	return n, nil
}

// parseNumbers reads decimal numbers with commas between them.
func parseNumbers(name, argument string, most int) ([]float64, *SpecError) {
	words := strings.Split(argument, ",")
	if len(words) > most {
		return nil, &SpecError{Field: "reduce", Reason: fmt.Sprintf("%d numbers after %s, at most %d are allowed", len(words), name, most)}
	}
	numbers := make([]float64, len(words))
	for i, word := range words {
		f, err := strconv.ParseFloat(word, 64)
		notDecimal := func(r rune) bool { return !strings.ContainsRune("0123456789+-.eE", r) }
		if err != nil || math.IsInf(f, 0) || strings.ContainsFunc(word, notDecimal) { // no NaN, no hexadecimal
			return nil, &SpecError{Field: "reduce", Reason: fmt.Sprintf("%q after %s is not a decimal number", word, name), Hint: "put commas and no blanks between numbers"}
		}
		if f == 0 {
			f = 0 // -0 and 0 are one bound
		}
		numbers[i] = f
	}
	return numbers, nil
}
