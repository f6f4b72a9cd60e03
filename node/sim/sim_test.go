package sim

import (
	"fmt"
	"os"
	"strconv"
	"testing"
)

func TestSeed(t *testing.T) {
	seed, _ := strconv.ParseUint(os.Getenv("ABACUS_SIM_SEED"), 10, 64)
	n, _ := strconv.Atoi(os.Getenv("N"))
	var sum Report
	for i := range max(n, 1) {
		r, err := Run(t, seed+uint64(i), Options{}, "/dev/shm", "/tmp/w/simtmp/fail")
		fmt.Println(seed+uint64(i), r)
		sum.Add(r)
		if err != nil {
			t.Error(err)
		}
	}
	fmt.Println("sum", sum)
}
