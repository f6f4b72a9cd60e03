package compute

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/abacusdb/abacus/compute/job"
)

// The examples of docs/jobs.md come to what it says they come to.
func TestExamplesOfTheDocs(t *testing.T) {
	page, err := os.ReadFile("../docs/jobs.md")
	if err != nil {
		t.Fatal(err)
	}
	_, examples, _ := strings.Cut(string(page), "## Worked examples")
	blocks := strings.Split(examples, "```")
	if len(blocks) < 5 {
		t.Fatalf("%d blocks", len(blocks))
	}
	var rows []string
	for line := range strings.Lines(blocks[1]) {
		if strings.HasPrefix(line, "town/") {
			rows = append(rows, strings.Replace(strings.TrimSpace(line), " ", "=", 1))
		}
	}
	if len(rows) != 6 {
		t.Fatalf("%d towns", len(rows))
	}
	lines := strings.Split(strings.TrimSpace(strings.TrimPrefix(blocks[3], "text\n")), "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		p, s := overRows(t, specOfFlags(t, lines[i]), rows...)
		got, note, err := p.Final(s)
		if err != nil {
			got = job.Text(err.Error())
		}
		if got.String() != lines[i+1] || note != "" {
			t.Errorf("%s: %s %s, the page says %s", lines[i], got, note, lines[i+1])
		}
	}
	if len(lines) < 20 {
		t.Errorf("%d lines of examples", len(lines))
	}
}

// specOfFlags reads flags as a shell does, as far as the examples need it.
func specOfFlags(t *testing.T, line string) string {
	fields := map[string]any{"prefix": "town/"}
	for rest := line; rest != ""; {
		var name, value string
		name, rest, _ = strings.Cut(rest, " ")
		if quoted, ok := strings.CutPrefix(rest, "'"); ok {
			value, rest, _ = strings.Cut(quoted, "'")
		} else if i := strings.Index(rest, " --"); i >= 0 {
			value, rest = rest[:i], rest[i:]
		} else {
			value, rest = rest, ""
		}
		rest = strings.TrimPrefix(rest, " ")
		field := strings.ReplaceAll(strings.TrimPrefix(name, "--"), "-", "_")
		fields[field] = value
		if strings.HasPrefix(field, "max_") {
			fields[field] = json.Number(value)
		}
	}
	data, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
