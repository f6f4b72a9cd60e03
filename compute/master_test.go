package compute

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"

	"github.com/abacusdb/abacus/transport/transporttest"
)

// Who takes the place of a run that waits for another waits for that one, too: it may be about to write.
func TestNewestRunWaitsForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := transporttest.NewNetwork().Join("n1")
		defer tr.Close()
		m := NewMaster(nil, tr, testAdmission(1), slog.New(slog.DiscardHandler))
		begin := func(try int) *shardRun {
			t.Helper()
			r, err := m.begin(context.Background(), shardRequest{runKey: runKey{Job: "j", Try: try}})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		first, second, third := begin(1), begin(2), begin(3)
		go func() {
			if _, _, err := second.run(); err == nil {
				t.Error("a run that was replaced has answered")
			}
			m.end(second)
		}()
		synctest.Wait()
		select {
		case <-third.after:
			t.Error("the third does not wait for the first")
		default:
		}
		m.end(first)
		synctest.Wait()
		select {
		case <-third.after:
		default:
			t.Error("the third waits for nobody")
		}
		m.end(third)
		m.Close()
	})
}
