package compute

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/abacusdb/abacus/compute/fold"
	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
)

// While nodes of v0.4 may be about, only what they know is let in; each newer thing alone is refused.
func TestLevelOfJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 2)
		c.listen()
		c.leadJobs("n1")
		c.fill("num/", 10)
		c.level = sharding.LevelFirst
		for _, s := range []job.Spec{
			{Filter: "key prefix a"}, {FlatMap: "words"}, {GroupBy: "key"}, {As: "raw"}, {Map: "lower"}, {Map: "v"}, {Reduce: "distinct"},
			{OnError: "count", MaxErrors: 1}, {Priority: "low"}, {Cache: "off"},
		} {
			_, err := c.node("n2").jobs.Submit(t.Context(), s)
			if want := (&sharding.LevelError{Has: 0, Needs: 1}).Error(); transport.CodeOf(err) != transport.CodeRefused || !errorHas(err, want) {
				t.Errorf("%+v: %v, want %q", s, err, want)
			}
		}
		wantResult(t, c.result("n1", c.submit("n2", job.Spec{Prefix: "num/", As: "int", Map: "square", Reduce: "sum", Priority: "normal", Cache: "on"})), 285)
		c.mu.Lock()
		c.level = sharding.LevelJobs
		c.mu.Unlock()
		rec := c.result("n1", c.submit("n2", job.Spec{Prefix: "num/", As: "int", Filter: "value range 5..", GroupBy: "key-part:/:1", Reduce: "sum"}))
		wantResult(t, rec, `[{"group":"num","value":35}]`)
		if rec.Records != 10 || rec.Filtered != 5 {
			t.Errorf("record %+v", rec)
		}
	})
}

// A bad expression is refused when it is submitted, with its place.
func TestSubmitCompiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, 1)
		_, err := c.node("n1").jobs.Submit(t.Context(), job.Spec{As: "json", Map: "v.price * * 2", Reduce: "sum"})
		var wrong *job.SpecError
		if !errors.As(err, &wrong) || wrong.Field != "map" || wrong.Where != "v.price * * 2\n          ^" {
			t.Errorf("error %v", err)
		}
	})
}

// One group too many ends the job, in one task or only in all of them together.
func TestTooManyGroups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, 4)
		for i := range 100 {
			c.put(fmt.Sprintf("a/%d", i), fmt.Sprint(i))
		}
		s := job.Spec{Prefix: "a/", As: "int", GroupBy: "value", Reduce: "count", MaxGroups: 100}
		rec := c.run(t.Context(), "n1", s)
		if rec.State != job.Succeeded {
			t.Fatalf("as many groups as may be: %+v", rec)
		}
		for _, most := range []int{1, 99} {
			s.MaxGroups = most
			rec := c.run(t.Context(), "n1", s)
			if want := (&fold.TooManyGroupsError{Max: most}).Error(); rec.State != job.Failed || rec.Error != want || rec.Result != nil {
				t.Errorf("at most %d groups: %s %q, want %q", most, rec.State, rec.Error, want)
			}
		}
	})
}

func errorHas(err error, text string) bool {
	var numbered *transport.Error
	return errors.As(err, &numbered) && numbered.Detail == text
}
