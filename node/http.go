package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/abacusdb/abacus/compute"
	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/fsm/command"
	"github.com/abacusdb/abacus/node/front"
	"github.com/abacusdb/abacus/node/page"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport"
	"github.com/abacusdb/abacus/transport/cert"
)

// httpServer serves health, metrics, status, keys and jobs. It answers only to
// Host names of its own, and only to pages from there: otherwise any web page
// that a user of this machine visits could reach the database through the
// user's browser.
type httpServer struct {
	n     *Node
	srv   *http.Server
	hosts []string
	// digesting has a token for each replica that is being read as a whole.
	digesting chan struct{}
	streams   jobStreams

	authFailed, denied atomic.Uint64
}

func newHTTPServer(n *Node) *httpServer {
	h := &httpServer{n: n, hosts: n.cfg.httpHosts(n.addrs), digesting: make(chan struct{}, 1), streams: newJobStreams()}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", h.livez)
	mux.HandleFunc("GET /readyz", h.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(n.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second}))
	mux.HandleFunc("GET /v1/status", h.status)
	mux.HandleFunc("GET /v1/load", h.load)
	mux.HandleFunc("GET /v1/shards/{id}/replica", h.replica)
	mux.HandleFunc("POST /v1/shards/{id}/leader", h.moveLeader)
	mux.HandleFunc("POST /v1/shards/{id}/check", h.check)
	mux.HandleFunc("GET /v1/shards/{id}/check", h.check)
	mux.HandleFunc("POST /v1/admin/{words...}", h.admin)
	mux.HandleFunc("POST /v1/sessions", h.openSession)
	h.handleJobs(mux)
	mux.HandleFunc("GET /{$}", h.index)
	if n.cfg.Pprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	h.srv = &http.Server{
		Handler:           h.guard(h.authorize(strict(h.keys(mux)))),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       time.Minute,
		WriteTimeout:      2 * time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
	}
	h.srv.RegisterOnShutdown(h.streams.stop)
	return h
}

// maxHTTPConns bounds the open HTTP connections, and with them the bodies held (1 MiB
// each). One more waits until another ends, as idle ones do by their time-out.
const maxHTTPConns = 1024

func (h *httpServer) serve(l net.Listener) error {
	l = &limitListener{Listener: l, room: make(chan struct{}, maxHTTPConns), closed: make(chan struct{})}
	if err := h.srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	return nil
}

func (h *httpServer) shutdown(ctx context.Context) error {
	if err := h.srv.Shutdown(ctx); err != nil {
		return h.srv.Close()
	}
	return nil
}

// limitListener accepts as many connections at once as room has places.
type limitListener struct {
	net.Listener
	room   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case l.room <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.room
		return nil, err
	}
	return &limitedConn{Conn: c, leave: sync.OnceFunc(func() { <-l.room })}, nil
}

func (l *limitListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// limitedConn gives its place back when it is closed.
type limitedConn struct {
	net.Conn
	leave func()
	met   bool // the first bytes have come
}

// Read tells a node that was told to join here that this is the wrong port: its
// hello looks like the beginning of a request line, whose end HTTP would await.
func (c *limitedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && !c.met {
		if c.met = true; transport.IsHello(p[:n]) {
			io.WriteString(c.Conn, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nthis is an HTTP port, not a peer port\n")
			return 0, io.EOF
		}
		if cert.IsHello(p[:n]) { // whose end HTTP would await, too
			io.WriteString(c.Conn, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nthis port does not speak TLS\n")
			return 0, io.EOF
		}
	}
	return n, err
}

func (c *limitedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// guard refuses requests that name another host or come from another origin.
func (h *httpServer) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !h.ours(r.Host) {
			httpError(w, http.StatusForbidden, fmt.Errorf("host %q is not this node's: use one of %s", r.Host, strings.Join(h.hosts, ", ")))
			return
		}
		if origin := r.Header.Get("Origin"); origin != "" {
			// The very port: whatever else serves pages on this machine is a stranger.
			// "null" (a sandboxed frame, a file) has no host.
			if u, err := url.Parse(origin); err != nil || u.Host == "" || u.Host != r.Host {
				httpError(w, http.StatusForbidden, fmt.Errorf("requests from pages of %s are refused", origin))
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// endpoints is what GET / answers: what there is, for who comes without the docs.
var endpoints = map[string]string{
	"GET /livez":   "the process runs",
	"GET /readyz":  "this node serves its shards",
	"GET /metrics": "for Prometheus",

	"GET /":                             "for browsers, a page that shows all of this",
	"GET /v1/status":                    "nodes, shards, replicas, problems",
	"GET /v1/load?since=0":              "throughput and latency of the last minutes, from look number since on",
	"POST /v1/admin/{word}/{word}/...":  "what abacus node, shard, rebalance and recover do: node/drain/n3, shard/move/0/n1/n4, rebalance/plan",
	"GET, POST /v1/shards/{id}/check":   "the last comparison of a shard's replicas; POST begins one",
	"GET, PUT, DELETE /v1/kv/{key}":     "a value, raw; PUT ?ttl=10s, If-None-Match: *; GET ?consistency=stale",
	"POST /v1/sessions":                 "a session, to number writes in (Abacus-Session, Abacus-Seq)",
	"GET, POST /v1/jobs":                "all jobs; submit one, or POST ?explain=1: say what it would do",
	"GET, DELETE /v1/jobs/{id}":         "a job's record; cancel it",
	"GET /v1/jobs/{id}/result?wait=10s": "its record when it has ended",
	"GET /v1/jobs/{id}/tasks":           "its shards and tasks alone",
	"GET /v1/jobs/{id}/events":          "its life as it goes on, as server-sent events",
	"POST /v1/jobs/{id}/cancel":         "cancel it",
	"POST /v1/jobs/{id}/retry?id=NEW":   "submit the spec of a job that has ended once more",
	"DELETE /v1/jobs/{id}/record":       "forget a job that has ended",
}

// index is the page for who takes HTML, as browsers do, and a list of what there is for others.
func (h *httpServer) index(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Vary", "Accept")
	if strings.Contains(r.Header.Get("Accept"), "text/html") {
		page.ServeHTTP(w, r)
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"name": "abacus", "version": h.n.cfg.Version, "node": h.n.cfg.ID, "endpoints": endpoints})
}

// conditional are the headers that make a request depend on a state. We know but
// one of them: whoever sends another counts on a check that nobody would make.
var conditional = []string{"If-Match", "If-Modified-Since", "If-Unmodified-Since", "If-Range"}

// strict refuses what a request says and we would pass over: a mistyped ?tll=10s
// must not store a key for ever.
func strict(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := checkExtras(r); err != nil && strings.HasPrefix(r.URL.Path, "/v1/") {
			httpError(w, http.StatusBadRequest, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func checkExtras(r *http.Request) error {
	isKey := strings.HasPrefix(r.URL.EscapedPath(), keyPath)
	var allowed []string // parameters
	switch {
	case isKey && r.Method == http.MethodPut:
		allowed = []string{"ttl"}
	case isKey && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		allowed = []string{"consistency", "max-ms"}
	case r.URL.Path == "/v1/load":
		allowed = []string{"since"}
	case strings.HasPrefix(r.URL.Path, "/v1/jobs"):
		allowed = jobParameters(r)
	case strings.HasPrefix(r.URL.Path, "/v1/shards/") && strings.HasSuffix(r.URL.Path, "/replica"):
		allowed = []string{"from", "to"}
	case strings.HasPrefix(r.URL.Path, "/v1/shards/") && strings.HasSuffix(r.URL.Path, "/leader"):
		allowed = []string{"node"}
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return fmt.Errorf("query: %w", err)
	}
	for name, values := range query {
		switch {
		case len(allowed) == 0:
			return fmt.Errorf("unknown parameter %q: none goes with %s here", name, r.Method)
		case !slices.Contains(allowed, name):
			return fmt.Errorf("unknown parameter %q: here there is %s", name, strings.Join(allowed, ", "))
		case len(values) != 1 || values[0] == "":
			return fmt.Errorf("parameter %q: want one value", name)
		}
	}
	for _, name := range conditional {
		if r.Header.Get(name) != "" {
			return fmt.Errorf("the header %s is not supported: use SET key value IFEQ old on a client port, or If-None-Match: * here", name)
		}
	}
	if s := r.Header.Get("If-None-Match"); s != "" && (s != "*" || !isKey || r.Method != http.MethodPut) {
		return fmt.Errorf("the header If-None-Match: %s is not supported, only If-None-Match: * with PUT of a key", s)
	}
	return nil
}

const keyPath = "/v1/kv/"

// keys serves the paths of keys before the mux sees them: it would clean a//b to
// a/b, which is another key.
func (h *httpServer) keys(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.EscapedPath(), keyPath) {
			next.ServeHTTP(w, r)
			return
		}
		h.n.loads.http.Add(1)
		switch {
		case r.Method == http.MethodGet || r.Method == http.MethodHead:
			h.get(w, r)
		case r.Method == http.MethodPut:
			h.put(w, r)
		case r.Method == http.MethodDelete:
			h.delete(w, r)
		default:
			w.Header().Set("Allow", "GET, HEAD, PUT, DELETE")
			httpError(w, http.StatusMethodNotAllowed, fmt.Errorf("%s a key: want GET, PUT or DELETE", r.Method))
		}
	})
}

func (h *httpServer) ours(hostport string) bool {
	host := hostport
	if hn, _, err := net.SplitHostPort(hostport); err == nil {
		host = hn
	}
	return slices.Contains(h.hosts, strings.Trim(host, "[]"))
}

func (h *httpServer) livez(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") }

func (h *httpServer) openSession(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), h.n.cfg.CommandTimeout)
	defer cancel()
	id, err := h.n.OpenSession(ctx, nil)
	if err != nil {
		h.fail(w, err)
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"session": strconv.FormatUint(id, 10)})
}

func (h *httpServer) readyz(w http.ResponseWriter, r *http.Request) {
	if err := h.n.Ready(r.Context()); err != nil {
		httpError(w, http.StatusServiceUnavailable, err)
		return
	}
	if h.n.Users().IsLocked() {
		httpError(w, http.StatusServiceUnavailable, errLocked)
		return
	}
	io.WriteString(w, "ok\n")
	// Said, and ready all the same: reads and deletes are served, and a balancer that
	// took the node out would take those, too.
	if p := h.n.space.now.Load().problem(); p != "" {
		io.WriteString(w, p+"\n")
	}
	for _, p := range h.n.differsHere() {
		io.WriteString(w, p+"\n")
	}
}

func (h *httpServer) status(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, h.n.clusterStatus())
}

// load is the cluster's of the last minutes; ?since=N leaves out what the asker has.
func (h *httpServer) load(w http.ResponseWriter, r *http.Request) {
	since := 0
	if s := r.URL.Query().Get("since"); s != "" {
		var err error
		if since, err = strconv.Atoi(s); err != nil || since < 0 {
			httpError(w, http.StatusBadRequest, fmt.Errorf("since %q: want the number of a look, at least 0", s))
			return
		}
	}
	writeJSON(w, http.StatusOK, h.n.loads.history(since))
}

// key is the slot, shard and name in the path; the name is percent-encoded, so
// that it may hold any byte.
func (h *httpServer) key(r *http.Request) (key []byte, slot sharding.Slot, shard sharding.ShardID, err error) {
	escaped := strings.TrimPrefix(r.URL.EscapedPath(), keyPath)
	name, err := url.PathUnescape(escaped)
	if err != nil {
		return nil, 0, 0, fmt.Errorf("key: %w", err)
	}
	slot, shard = h.n.Router().Locate([]byte(name))
	return []byte(name), slot, shard, nil
}

// do runs commands on one key and writes the headers that every answer has.
func (h *httpServer) do(w http.ResponseWriter, r *http.Request, cmds ...command.Command) ([]command.Result, bool) {
	key, slot, shard, err := h.key(r)
	if err != nil {
		httpError(w, http.StatusBadRequest, err)
		return nil, false
	}
	for i := range cmds {
		cmds[i].Keys, cmds[i].Slot = [][]byte{key}, slot
		if !cmds[i].Op.IsRead() {
			t, err := front.ParseTag(r.Header.Get("Abacus-Session"), r.Header.Get("Abacus-Seq"), r.Header.Get("Abacus-Floor"))
			if err != nil {
				httpError(w, http.StatusBadRequest, errors.New(strings.TrimPrefix(err.Error(), "ERR ")))
				return nil, false
			}
			cmds[i].Session, cmds[i].Seq, cmds[i].Floor = t.Session, t.Seq, t.Floor
		}
		if err := cmds[i].Validate(command.DefaultLimits()); err != nil {
			var limit *command.LimitError
			if errors.As(err, &limit) && limit.Size > limit.Max {
				httpError(w, http.StatusRequestEntityTooLarge, err)
			} else {
				httpError(w, http.StatusBadRequest, err)
			}
			return nil, false
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), h.n.cfg.CommandTimeout)
	defer cancel()
	var results []command.Result
	var index uint64
	if onlyReads(cmds) {
		how, badHow := readingOf(r.URL.Query())
		if badHow != nil {
			httpError(w, http.StatusBadRequest, badHow)
			return nil, false
		}
		results, index, err = h.n.read(ctx, shard, cmds, how)
	} else {
		results, index, err = h.n.exec(ctx, shard, cmds)
	}
	if err != nil {
		h.fail(w, err)
		return nil, false
	}
	for _, res := range results {
		if res.Kind != command.KindError {
			continue
		}
		switch res.Code {
		case command.CodeWrongShard, command.CodeSlotsMoving, command.CodeUninitialized: // nothing was done, and may be later
			h.fail(w, transport.Errorf(transport.CodeUnavailable, "%v", res.Code))
		case command.CodeSessionFull:
			h.fail(w, transport.Errorf(transport.CodeBusy, "%v", res.Code))
		case command.CodeSessionUnknown, command.CodeSessionExpired:
			httpError(w, http.StatusGone, errors.New("session expired: not carried out now; whether an earlier attempt was carried out is not known"))
		case command.CodeDiskFull:
			httpError(w, http.StatusInsufficientStorage, errors.New("nothing was done: "+res.Code.String()))
		case command.CodeTooLarge: // by the shard's own limits
			httpError(w, http.StatusRequestEntityTooLarge, fmt.Errorf("over the limit of %d bytes", res.Int))
		default:
			httpError(w, http.StatusConflict, errors.New(res.Code.String()))
		}
		return nil, false
	}
	w.Header().Set("Abacus-Shard", strconv.FormatUint(uint64(shard), 10))
	w.Header().Set("Abacus-Index", strconv.FormatUint(index, 10))
	return results, true
}

// readingOf is ?consistency=linearizable|stale&max-ms=N.
func readingOf(q url.Values) (how front.Reading, err error) {
	switch mode := q.Get("consistency"); mode {
	case "", "linearizable":
	case "stale":
		how.Stale = true
	default:
		return how, fmt.Errorf("consistency %q: want linearizable or stale", mode)
	}
	if s := q.Get("max-ms"); s != "" {
		ms, err := strconv.ParseInt(s, 10, 64)
		if err != nil || ms < 1 || ms > front.MaxStale.Milliseconds() || !how.Stale {
			return how, fmt.Errorf("max-ms %q: want 1 to %d, with consistency=stale", s, front.MaxStale.Milliseconds())
		}
		how.MaxAge = time.Duration(ms) * time.Millisecond
	}
	return how, nil
}

func (h *httpServer) get(w http.ResponseWriter, r *http.Request) {
	results, ok := h.do(w, r, command.Command{Op: command.OpGet}, command.Command{Op: command.OpTTL})
	if !ok {
		return
	}
	if results[0].Kind == command.KindNil {
		httpError(w, http.StatusNotFound, errors.New("no such key"))
		return
	}
	if ttl := results[1].Int; ttl >= 0 {
		w.Header().Set("Abacus-TTL-Ms", strconv.FormatInt(ttl, 10))
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Write(results[0].Bytes)
}

// put stores the body. ?ttl=10s or the header Abacus-TTL-Ms, as get writes it, let
// the key end; If-None-Match: * stores only where there is no key.
func (h *httpServer) put(w http.ResponseWriter, r *http.Request) {
	limit := int64(command.DefaultLimits().MaxValue)
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			httpError(w, http.StatusRequestEntityTooLarge, fmt.Errorf("value over the limit of %d bytes", limit))
		} else {
			httpError(w, http.StatusBadRequest, fmt.Errorf("read body: %w", err))
		}
		return
	}
	cmd := command.Command{Op: command.OpSet, Values: [][]byte{body}}
	if s := r.URL.Query().Get("ttl"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil || d < time.Millisecond {
			httpError(w, http.StatusBadRequest, fmt.Errorf("ttl %q: want a duration of at least 1ms, such as 10s", s))
			return
		}
		cmd.TTL = d.Milliseconds()
	} else if s := r.Header.Get("Abacus-TTL-Ms"); s != "" {
		ms, err := strconv.ParseInt(s, 10, 64)
		if err != nil || ms < 1 {
			httpError(w, http.StatusBadRequest, fmt.Errorf("Abacus-TTL-Ms %q: want milliseconds, at least 1", s))
			return
		}
		cmd.TTL = ms
	}
	if r.Header.Get("If-None-Match") == "*" {
		cmd.Flags |= command.FlagIfAbsent
	}
	results, ok := h.do(w, r, cmd)
	if !ok {
		return
	}
	if results[0].Kind == command.KindNil {
		httpError(w, http.StatusPreconditionFailed, errors.New("the key exists"))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (h *httpServer) delete(w http.ResponseWriter, r *http.Request) {
	results, ok := h.do(w, r, command.Command{Op: command.OpDel})
	if !ok {
		return
	}
	if results[0].Int == 0 {
		httpError(w, http.StatusNotFound, errors.New("no such key"))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// admin is POST /v1/admin/node/drain/n3: what an administrator says, a word to a segment.
func (h *httpServer) admin(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), announceTimeout)
	defer cancel()
	words, err := pathWords(r)
	if err != nil {
		httpError(w, http.StatusBadRequest, err)
		return
	}
	answer, err := h.n.Admin(ctx, words)
	h.audit(r, "admin", words, err)
	h.raw(w)(answer, err)
}

// raw writes JSON that is made already.
func (h *httpServer) raw(w http.ResponseWriter) func([]byte, error) {
	return func(doc []byte, err error) {
		if err != nil {
			h.fail(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(doc)
	}
}

// fail turns an error of the cluster into a status that says whether trying again is safe.
func (h *httpServer) fail(w http.ResponseWriter, err error) {
	var spec *job.SpecError
	if errors.As(err, &spec) {
		httpError(w, http.StatusBadRequest, err)
		return
	}
	if full := (*compute.QueueFullError)(nil); errors.As(err, &full) {
		w.Header().Set("Retry-After", strconv.Itoa(int(full.RetryAfter.Seconds())))
		httpError(w, http.StatusTooManyRequests, err)
		return
	}
	switch transport.CodeOf(err) {
	case transport.CodeBadRequest:
		httpError(w, http.StatusBadRequest, err)
	case transport.CodeNotFound:
		httpError(w, http.StatusNotFound, err)
	case transport.CodeConflict, transport.CodeRefused:
		httpError(w, http.StatusConflict, err)
	case transport.CodeTooLarge:
		httpError(w, http.StatusRequestEntityTooLarge, err)
	default:
		if transport.Certain(err) {
			w.Header().Set("Retry-After", "1")
			httpError(w, http.StatusServiceUnavailable, err)
			return
		}
		httpError(w, http.StatusGatewayTimeout, fmt.Errorf("uncertain, it may or may not have been done: %w", err))
	}
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	w.Write(append(raw, '\n'))
}

func httpError(w http.ResponseWriter, code int, err error) {
	writeJSON(w, code, map[string]string{"error": err.Error()})
}
