package node

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/abacusdb/abacus/compute"
)

// A full queue of jobs is told apart from a cluster that cannot, with the time after which to ask again.
func TestFullQueueOverHTTP(t *testing.T) {
	w := httptest.NewRecorder()
	new(httpServer).fail(w, &compute.QueueFullError{Waiting: 100, RetryAfter: 7 * time.Second})
	if w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "7" {
		t.Errorf("status %d, Retry-After %q", w.Code, w.Header().Get("Retry-After"))
	}
}

// Metrics can be gathered, each series once.
func TestAdmissionMetrics(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(admissionCollector{&Node{admission: compute.NewAdmission(compute.Limits{})}})
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, f := range families {
		got[f.GetName()] = len(f.GetMetric())
	}
	for name, want := range map[string]int{"abacus_job_cpu_share": 1, "abacus_job_wait_seconds_total": 3, "abacus_job_tasks": 6} {
		if got[name] != want {
			t.Errorf("%d series of %s, want %d", got[name], name, want)
		}
	}
}
