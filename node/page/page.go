// Package page is the web page that a node shows of its cluster: nodes, shards, moves, jobs, throughput and latency.
//
// It is one document that needs nothing else. Its script asks the node that served it (GET /v1/status, /v1/load, /v1/jobs) every
// two seconds, while somebody looks, and for the tasks of one job (GET /v1/jobs/ID/tasks) twice a second while that runs, and draws what it is told; it can change nothing. Names in what it is told are written by others:
// they reach the document as text only, and the policy in its header lets no script run but the one that is here.
package page

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

var (
	//go:embed page.html
	html string
	//go:embed page.css
	css string
	//go:embed page.js
	js string
)

var document = strings.NewReplacer("/*page.css*/", css, "/*page.js*/", js).Replace(html)

var zipped = func() []byte {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err == nil {
		w.Write([]byte(document)) // into memory, which does not fail
		err = w.Close()
	}
	if err != nil {
		panic(err)
	}
	return b.Bytes()
}()

// policy names the one style sheet and the one script by their hashes: whatever else got into the document would not run.
var policy = fmt.Sprintf("default-src 'none'; style-src %s; script-src %s; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'", hashOf(css), hashOf(js))

func hashOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// ServeHTTP answers with the page.
func ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-cache") // the next version's node speaks to the next version's page
	h.Add("Vary", "Accept-Encoding")
	body := []byte(document)
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		body = zipped
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.Write(body)
}
