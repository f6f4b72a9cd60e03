package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/abacusdb/abacus/compute/job"
	"github.com/abacusdb/abacus/node/front"
	"github.com/abacusdb/abacus/sharding/access"
)

// Who may do what over HTTP: the same users and rights as on the RESP ports. authorize is asked before every request, and before its
// body is read. What it does not know needs an administrator.

var errLocked = errors.New("this node has not heard who the users of the cluster are yet")

type grantKey struct{}

// grantOf is who asks; authorize has put it there.
func grantOf(r *http.Request) *access.Grant { return r.Context().Value(grantKey{}).(*access.Grant) }

// authorize lets a request through, with its user's grant, or answers 401 or 403.
func (h *httpServer) authorize(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		users := h.n.Users()
		login, given := loginOf(r)
		g := users.Resolve(login)
		switch {
		case g == nil && h.isOpen(r):
			next.ServeHTTP(w, r)
		case g == nil && users.IsLocked():
			w.Header().Set("Retry-After", "1")
			httpError(w, http.StatusServiceUnavailable, errLocked)
		case g == nil:
			// One attempt to a connection: each makes a line in a log.
			w.Header().Set("Connection", "close")
			w.Header().Set("WWW-Authenticate", `Basic realm="abacus", charset="UTF-8"`)
			if given {
				h.authFailed.Add(1)
				h.n.audit.record(access.Event{User: login.Name, Remote: r.RemoteAddr, Via: "http", Verb: access.VerbAuth, Err: errors.New("no such user and token, or the user is disabled")})
			}
			httpError(w, http.StatusUnauthorized, errors.New("give a user and its token: as Basic authorization, or Authorization: Bearer TOKEN"))
		default:
			r = r.WithContext(context.WithValue(r.Context(), grantKey{}, g))
			if !h.isOpen(r) && !allowed(g, r) {
				h.deny(w, r)
				return
			}
			next.ServeHTTP(w, r)
		}
	})
}

// isOpen says whether a request needs no user: health, for balancers.
func (h *httpServer) isOpen(r *http.Request) bool {
	switch r.URL.Path {
	case "/livez", "/readyz":
		return true
	case "/metrics":
		return h.n.cfg.OpenMetrics
	}
	return false
}

// allowed is the decision of authorize about a user. Over which keys a job computes is checked where that is known.
func allowed(g *access.Grant, r *http.Request) bool {
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch path := r.URL.Path; {
	case g.Admin():
		return true
	case strings.HasPrefix(r.URL.EscapedPath(), keyPath):
		key, err := url.PathUnescape(strings.TrimPrefix(r.URL.EscapedPath(), keyPath))
		if reads {
			return err == nil && g.MayRead([]byte(key))
		}
		return err == nil && g.MayWrite([]byte(key))
	case path == "/" || path == "/metrics" || path == "/v1/status":
		return reads
	case path == "/v1/sessions":
		return g.MayWriteSome()
	case path == "/v1/jobs" || strings.HasPrefix(path, "/v1/jobs/"):
		return g.Jobs()
	}
	return false
}

// loginOf reads Authorization: Basic, or Bearer with a token or user:token.
func loginOf(r *http.Request) (login access.Login, given bool) {
	if user, token, ok := r.BasicAuth(); ok {
		return access.NewLogin(user, token), true
	}
	scheme, rest, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return access.Login{}, scheme != ""
	}
	user, token, named := strings.Cut(strings.TrimSpace(rest), ":")
	if !named {
		user, token = "", user
	}
	return access.NewLogin(user, token), true
}

// deny answers who has no right to what he asks for.
func (h *httpServer) deny(w http.ResponseWriter, r *http.Request) {
	h.denied.Add(1)
	err := fmt.Errorf("user %s has no right to that: see abacus user grant", grantOf(r).Name())
	h.audit(r, access.VerbDenied, []string{r.Method, r.URL.Path}, err)
	httpError(w, http.StatusForbidden, err)
}

func (h *httpServer) audit(r *http.Request, verb string, args []string, err error) {
	h.n.audit.record(access.Event{User: grantOf(r).Name(), Remote: r.RemoteAddr, Via: "http", Verb: verb, Args: args, Err: err})
}

// mayJobSpec says whether the user may run a job. One that cannot be understood is refused for that.
func mayJobSpec(r *http.Request, spec []byte) bool {
	parsed, err := job.ParseSpec(spec)
	return err != nil || grantOf(r).MayReadPrefix(parsed.Prefix)
}

// jobRecord answers with the record of a job that the user may see, now: he may have waited for it.
func (h *httpServer) jobRecord(w http.ResponseWriter, r *http.Request, doc []byte, err error) {
	if err == nil && !h.maySee(r, doc) {
		h.deny(w, r)
		return
	}
	h.raw(w)(doc, err)
}

// maySee says whether who asks may see the job of a record, by what he may now.
func (h *httpServer) maySee(r *http.Request, doc []byte) bool {
	login, _ := loginOf(r)
	g := h.n.Users().Resolve(login)
	return g != nil && front.MayJob(g, doc)
}

// pathWords are the segments behind /v1/admin/, each unescaped by itself: a prefix of keys may have slashes.
func pathWords(r *http.Request) ([]string, error) {
	words := strings.Split(strings.TrimPrefix(r.URL.EscapedPath(), "/v1/admin/"), "/")
	for i, w := range words {
		word, err := url.PathUnescape(w)
		if err != nil {
			return nil, fmt.Errorf("path: %w", err)
		}
		words[i] = word
	}
	return words, nil
}
