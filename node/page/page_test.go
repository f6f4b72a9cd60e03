package page

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

// The page is one small document that needs nothing from elsewhere, and its policy lets run what is in it and nothing else.
func TestPage(t *testing.T) {
	get := func(encoding string) (*http.Response, string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Accept-Encoding", encoding)
		w := httptest.NewRecorder()
		ServeHTTP(w, r)
		res := w.Result()
		body := io.Reader(res.Body)
		if res.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(body)
			if err != nil {
				t.Fatal(err)
			}
			body = z
		}
		text, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		return res, string(text)
	}
	plain, text := get("")
	packed, same := get("gzip, br")
	if text != same || plain.Header.Get("Content-Encoding") != "" || packed.Header.Get("Content-Encoding") != "gzip" {
		t.Error("the page differs by how it is packed")
	}
	if len(text) > 60<<10 || len(zipped) > 20<<10 {
		t.Errorf("the page has %d bytes, %d packed", len(text), len(zipped))
	}
	if strings.Contains(text, "/*page.") {
		t.Error("a part of the page is missing")
	}
	policy := plain.Header.Get("Content-Security-Policy")
	for tag, directive := range map[string]string{"style": "style-src", "script": "script-src"} {
		parts := regexp.MustCompile(`(?s)<`+tag+`[^>]*>(.*?)</`+tag+`>`).FindAllStringSubmatch(text, -1)
		if len(parts) != 1 || !strings.Contains(policy, directive+" "+hashOf(parts[0][1])+";") {
			t.Errorf("%d parts %s, and the policy is %s", len(parts), tag, policy)
		}
	}
	if !strings.HasPrefix(policy, "default-src 'none';") || strings.Contains(policy, "unsafe") {
		t.Errorf("policy %s", policy)
	}
	// What would load or run something, or write markup made of names.
	for _, bad := range []string{`src=["']?http`, `<link[^>]+href="http`, `@import`, `\son\w+=`, `style="`, `innerHTML`, `outerHTML`, `insertAdjacent`, `createContextualFragment`, `DOMParser`, `document\.write`, `\beval\b`, `https?://[^w']`} {
		if found := regexp.MustCompile(bad).FindString(text); found != "" {
			t.Errorf("the page has %q", found)
		}
	}
}
