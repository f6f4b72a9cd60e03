package node

import (
	"strings"
	"testing"
	"time"
)

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "anything", true},
		{"a", "a", true}, {"a", "ab", false}, {"a*", "ab", true}, {"*b", "aab", true}, {"*b", "aba", false},
		{"a?c", "abc", true}, {"a?c", "ac", false}, {"h[ae]llo", "hello", true}, {"h[ae]llo", "hillo", false},
		{"h[^e]llo", "hallo", true}, {"h[^e]llo", "hello", false}, {"h[a-c]llo", "hbllo", true}, {"h[c-a]llo", "hbllo", true},
		{`a\*`, "a*", true}, {`a\*`, "ab", false}, {`[\]]`, "]", true}, {"[a", "a", true}, {"[a-]", "-", true},
		{"a*b*c", "axxbyyc", true}, {"a*b*c", "axxbyy", false}, {"**", "x", true}, {`\`, `\`, true},
		{"user:*:name", "user:17:name", true}, {"user:*:name", "user:17:nam", false},
	} {
		if got := globMatch(c.pattern, c.s); got != c.want {
			t.Errorf("globMatch(%q, %q) = %v, want %v", c.pattern, c.s, got, c.want)
		}
	}
	if p := globPrefix("user:*"); p != "user:" {
		t.Errorf("prefix %q", p)
	}
}

// A pattern from a client must not cost exponential time.
func TestGlobIsNotExponential(t *testing.T) {
	start := time.Now()
	if globMatch(strings.Repeat("a*", 60)+"b", strings.Repeat("a", 1000)) {
		t.Fatal("must not match")
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Fatalf("took %v", d)
	}
}
