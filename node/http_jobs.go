package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/node/front"
	"github.com/abacusdb/abacus/sharding/access"
	"github.com/abacusdb/abacus/transport"
)

// Jobs over HTTP. DELETE of a job cancels it, as it always did, and its record stays; DELETE of its record forgets it.

func (h *httpServer) handleJobs(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/jobs", h.listJobs)
	mux.HandleFunc("POST /v1/jobs", h.submitJob)
	mux.HandleFunc("GET /v1/jobs/{id}", h.jobStatus)
	mux.HandleFunc("GET /v1/jobs/{id}/result", h.jobResult)
	mux.HandleFunc("GET /v1/jobs/{id}/tasks", h.jobTasks)
	mux.HandleFunc("GET /v1/jobs/{id}/events", h.jobEvents)
	mux.HandleFunc("POST /v1/jobs/{id}/retry", h.retryJob)
	mux.HandleFunc("POST /v1/jobs/{id}/cancel", h.cancelJob)
	mux.HandleFunc("DELETE /v1/jobs/{id}", h.cancelJob)
	mux.HandleFunc("DELETE /v1/jobs/{id}/record", h.deleteJob)
}

// jobParameters are those that a request about jobs may have.
func jobParameters(r *http.Request) []string {
	switch {
	case r.URL.Path == "/v1/jobs" && r.Method == http.MethodPost:
		return []string{"explain"}
	case strings.HasSuffix(r.URL.Path, "/result"):
		return []string{"wait"}
	case strings.HasSuffix(r.URL.Path, "/retry"):
		return []string{"id"}
	}
	return nil
}

// jobTimeout bounds the calls about jobs, which do not wait for one to end.
func (h *httpServer) jobTimeout(r *http.Request) (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.Context(), h.n.cfg.CommandTimeout)
}

func (h *httpServer) submitJob(w http.ResponseWriter, r *http.Request) {
	spec, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
	if err != nil {
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			httpError(w, http.StatusRequestEntityTooLarge, errors.New("job spec over 64 KiB"))
		} else {
			httpError(w, http.StatusBadRequest, fmt.Errorf("read body: %w", err))
		}
		return
	}
	explain, err := strconv.ParseBool(cmp.Or(r.URL.Query().Get("explain"), "false"))
	if err != nil {
		httpError(w, http.StatusBadRequest, fmt.Errorf("explain %q: want 1 or 0", r.URL.Query().Get("explain")))
		return
	}
	ctx, cancel := h.jobTimeout(r)
	defer cancel()
	b := backend{h.n}
	if !mayJobSpec(r, spec) {
		h.deny(w, r)
		return
	}
	if explain {
		h.raw(w)(b.ExplainJob(ctx, spec))
		return
	}
	id, err := b.SubmitJob(ctx, spec)
	h.submitted(w, id, err)
}

func (h *httpServer) submitted(w http.ResponseWriter, id string, err error) {
	if err != nil {
		h.fail(w, err)
		return
	}
	w.Header().Set("Location", "/v1/jobs/"+id)
	writeJSON(w, http.StatusAccepted, map[string]string{"id": id})
}

// retryJob is POST /v1/jobs/{id}/retry?id=NEW. With an id it may be repeated when the answer is lost.
func (h *httpServer) retryJob(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := h.jobTimeout(r)
	defer cancel()
	if !h.mayTouch(ctx, w, r) {
		return
	}
	id, err := backend{h.n}.RetryJob(ctx, r.PathValue("id"), r.URL.Query().Get("id"))
	h.submitted(w, id, err)
}

func (h *httpServer) jobStatus(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := h.jobTimeout(r)
	defer cancel()
	doc, err := backend{h.n}.JobStatus(ctx, r.PathValue("id"))
	h.jobRecord(w, r, doc, err)
}

// jobResult waits for the job's end, at most ?wait= (default 30s, at most 1m).
func (h *httpServer) jobResult(w http.ResponseWriter, r *http.Request) {
	wait := 30 * time.Second
	if s := r.URL.Query().Get("wait"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil || d < 0 {
			httpError(w, http.StatusBadRequest, fmt.Errorf("wait %q: want a duration such as 10s", s))
			return
		}
		wait = min(d, time.Minute)
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait+h.n.cfg.CommandTimeout)
	defer cancel()
	doc, err := backend{h.n}.JobResult(ctx, r.PathValue("id"), wait)
	h.jobRecord(w, r, doc, err)
}

func (h *httpServer) cancelJob(w http.ResponseWriter, r *http.Request) {
	h.touchJob(w, r, "job cancel", backend{h.n}.CancelJob)
}

func (h *httpServer) deleteJob(w http.ResponseWriter, r *http.Request) {
	h.touchJob(w, r, "job delete", backend{h.n}.DeleteJob)
}

// touchJob does to a job what its user may do; that is audited.
func (h *httpServer) touchJob(w http.ResponseWriter, r *http.Request, verb string, touch func(context.Context, string) error) {
	ctx, cancel := h.jobTimeout(r)
	defer cancel()
	if !h.mayTouch(ctx, w, r) {
		return
	}
	id := r.PathValue("id")
	err := touch(ctx, id)
	h.audit(r, verb, []string{id}, err)
	if err != nil {
		h.fail(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// mayTouch says whether the user may do something to the job of the path, or answers why not.
func (h *httpServer) mayTouch(ctx context.Context, w http.ResponseWriter, r *http.Request) bool {
	if grantOf(r) == access.Everyone { // a record need not be fetched for that
		return true
	}
	doc, err := backend{h.n}.JobStatus(ctx, r.PathValue("id"))
	switch {
	case err != nil:
		h.fail(w, err)
		return false
	case !front.MayJob(grantOf(r), doc):
		h.deny(w, r)
		return false
	}
	return true
}

// jobTasks is what of a job's record tells where its tasks run.
func (h *httpServer) jobTasks(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := h.jobTimeout(r)
	defer cancel()
	rec, ok := h.jobSeen(ctx, w, r)
	if !ok {
		return
	}
	if rec.Shards == nil {
		rec.Shards = []job.ShardReport{}
	}
	writeJSON(w, http.StatusOK, jobTasks{rec.ID, rec.State, rec.Progress, rec.Shards, rec.TasksOmitted})
}

type jobTasks struct {
	ID           string            `json:"id"`
	State        job.State         `json:"state"`
	Progress     job.Progress      `json:"progress"`
	Shards       []job.ShardReport `json:"shards"`
	TasksOmitted int               `json:"tasks_omitted,omitempty"`
}

// jobEvents is the job's life as server-sent events.
func (h *httpServer) jobEvents(w http.ResponseWriter, r *http.Request) {
	select {
	case h.streams.room <- struct{}{}:
		defer func() { <-h.streams.room }()
	default:
		w.Header().Set("Retry-After", "5")
		httpError(w, http.StatusServiceUnavailable, errStreamsFull)
		return
	}
	ctx, cancel := h.jobTimeout(r)
	rec, ok := h.jobSeen(ctx, w, r)
	cancel()
	if !ok {
		return
	}
	h.streams.serve(w, r, rec, func(ctx context.Context) (job.Record, error) {
		ctx, cancel := context.WithTimeout(ctx, h.n.cfg.CommandTimeout)
		defer cancel()
		doc, err := backend{h.n}.JobStatus(ctx, rec.ID)
		if transport.CodeOf(err) == transport.CodeNotFound || err == nil && !h.maySee(r, doc) {
			return job.Record{}, errStreamDenied
		}
		var now job.Record
		if err == nil {
			err = json.Unmarshal(doc, &now)
		}
		return now, err
	})
}

// jobSeen is the record of the job of the path, or answers why not.
func (h *httpServer) jobSeen(ctx context.Context, w http.ResponseWriter, r *http.Request) (rec job.Record, ok bool) {
	doc, err := backend{h.n}.JobStatus(ctx, r.PathValue("id"))
	if err == nil && !h.maySee(r, doc) {
		h.deny(w, r)
		return rec, false
	}
	if err == nil {
		err = json.Unmarshal(doc, &rec)
	}
	if err != nil {
		h.fail(w, err)
		return rec, false
	}
	return rec, true
}

func (h *httpServer) listJobs(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := h.jobTimeout(r)
	defer cancel()
	list, err := backend{h.n}.ListJobs(ctx)
	if err == nil {
		list, err = front.VisibleJobs(grantOf(r), list)
	}
	h.raw(w)(list, err)
}
