package node

import "strings"

// globPrefix is the literal beginning of a pattern, where a scan can start.
func globPrefix(pattern string) string {
	if i := strings.IndexAny(pattern, `*?[\`); i >= 0 {
		return pattern[:i]
	}
	return pattern
}

// globMatch matches as Redis' SCAN MATCH does: * any run, ? one byte, [a-z] and
// [^a-z] one byte of a set, \x the byte x. It goes back only to the last star,
// so that no pattern takes more than len(pattern)*len(s) steps.
func globMatch(pattern, s string) bool {
	p, i := 0, 0
	star, mark := -1, 0
	for i < len(s) {
		if p < len(pattern) && pattern[p] == '*' {
			star, mark = p, i
			p++
			continue
		}
		if width, ok := globOne(pattern[p:], s[i]); ok {
			p, i = p+width, i+1
			continue
		}
		if star < 0 {
			return false
		}
		mark++
		p, i = star+1, mark
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// globOne matches one byte with the element that pattern begins with, and says
// how long that element is.
func globOne(pattern string, c byte) (width int, ok bool) {
	if pattern == "" {
		return 0, false
	}
	switch pattern[0] {
	case '?':
		return 1, true
	case '\\':
		if len(pattern) > 1 {
			return 2, pattern[1] == c
		}
		return 1, c == '\\'
	case '[':
		return globSet(pattern, c)
	}
	return 1, pattern[0] == c
}

// globSet matches a byte with [...]. A set without its end runs to the end of the pattern, as in Redis.
func globSet(pattern string, c byte) (width int, ok bool) {
	p := 1
	not := p < len(pattern) && pattern[p] == '^'
	if not {
		p++
	}
	found := false
	for p < len(pattern) && pattern[p] != ']' {
		lo := pattern[p]
		if lo == '\\' && p+1 < len(pattern) {
			p++
			lo = pattern[p]
		}
		hi := lo
		if p+2 < len(pattern) && pattern[p+1] == '-' && pattern[p+2] != ']' {
			hi = pattern[p+2]
			p += 2
		}
		if lo > hi {
			lo, hi = hi, lo
		}
		found = found || lo <= c && c <= hi
		p++
	}
	return min(p+1, len(pattern)), found != not
}
