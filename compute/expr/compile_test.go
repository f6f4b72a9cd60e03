package expr

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// What a user is told who wrote a wrong expression: word for word, with the caret. -rewrite writes the answers anew.
func TestCompileErrors(t *testing.T) {
	roles := map[string]Role{"filter": Filter, "map": Map, "group_by": Key, "flat_map": FlatMap}
	datadriven.RunTest(t, "testdata/errors.txt", func(t *testing.T, d *datadriven.TestData) string {
		role, ok := roles[d.Cmd]
		if !ok {
			d.Fatalf(t, "no role %s", d.Cmd)
		}
		_, err := Compile(d.Input, role, d.CmdArgs[0].Key)
		var typed *Error
		switch {
		case err == nil:
			return "compiled\n"
		case !errors.As(err, &typed):
			d.Fatalf(t, "not an *Error: %v", err)
		case typed.Source != d.Input:
			d.Fatalf(t, "the error is of another expression: %q", typed.Source)
		}
		lines := strings.Split(err.Error(), "\n") // datadriven's answers end at an empty line
		for i, line := range lines {
			lines[i] = strings.TrimRight(line, " ")
			if lines[i] == "" {
				lines[i] = "·"
			}
		}
		return strings.Join(lines, "\n") + "\n"
	})
}

// What has no caret: the text itself cannot be shown or has no place.
func TestCompileRefuses(t *testing.T) {
	for name, c := range map[string]struct{ src, as, want string }{
		"not UTF-8": {"v == '\xff'", "string", "the expression is not UTF-8"},
		"too long":  {"v" + strings.Repeat(" ", MaxSourceBytes), "string", "the expression has 4097 bytes, at most 4096 are allowed"},
		"blank":     {" \n\t", "string", "the expression is empty (v is the value as it is)"},
		"kind":      {"v", "protobuf", `values cannot be read as "protobuf" (known are raw, string, int, float, json)`},
	} {
		if _, err := Compile(c.src, Map, c.as); err == nil || err.Error() != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What docs/jobs.md says one can write, one can.
func TestDocumentedExpressions(t *testing.T) {
	page, err := os.ReadFile("../../docs/jobs.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(page), "\n### Expressions\n")
	section, _, _ = strings.Cut(section, "\n### ")
	var tried int
	for _, row := range regexp.MustCompile(`(?m)^\| [^|]* \| (.*) \|$`).FindAllStringSubmatch(strings.ReplaceAll(section, "||", "or"), -1) {
		for _, code := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			tried++
			var fault error
			for _, role := range []Role{Filter, Map, FlatMap} {
				if _, fault = Compile(code[1], role, "json"); fault == nil {
					break
				}
			}
			if fault != nil {
				t.Errorf("%v", fault)
			}
		}
	}
	if !found || tried < 25 {
		t.Errorf("only %d expressions were found", tried)
	}
}
