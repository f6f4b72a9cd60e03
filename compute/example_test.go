package compute_test

import (
	"bytes"
	"fmt"

	"github.com/abacusdb/abacus/compute"
	"github.com/abacusdb/abacus/compute/fold"
	"github.com/abacusdb/abacus/compute/job"
)

// A program with functions of its own is a main that registers them and then opens a node as abacusd does. Jobs name them with go: before.
func ExampleRegisterMap() {
	compute.RegisterMap("celsius", func(_, value []byte, out *fold.Value) bool {
		var fahrenheit float64
		if _, err := fmt.Sscan(string(value), &fahrenheit); err != nil {
			return false // a bad record
		}
		out.SetFloat((fahrenheit - 32) / 1.8)
		return true
	})
	compute.RegisterFilter("readings", func(key, _ []byte) bool { return bytes.Contains(key, []byte("/reading/")) })

	spec, err := job.ParseSpec([]byte(`{"prefix":"station/","filter":"go:readings and key suffix :00","map":"go:celsius","reduce":"mean"}`))
	fmt.Println(spec.Filter, spec.Map, err)
	// Output: go:readings and key suffix :00 go:celsius <nil>
}
