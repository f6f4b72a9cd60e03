package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// What docs/packaging says to abacusd is understood and can be meant so: each node of the compose file, and the file beside the unit.
func TestPackaging(t *testing.T) {
	read := func(name string) string {
		raw, err := os.ReadFile("../../docs/packaging/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	cfg, err := parse(t, read("abacusd.yaml"))
	if err == nil {
		err = cfg.Validate()
	}
	if err != nil || cfg.ID != "n1" || cfg.DataDir != "/var/lib/abacus" || !cfg.Bootstrap {
		t.Errorf("abacusd.yaml: %v, %+v", err, cfg)
	}
	var compose struct {
		Services map[string]struct{ Command []string }
	}
	if err := yaml.Unmarshal([]byte(read("compose.yaml")), &compose); err != nil {
		t.Fatal(err)
	}
	first := 0
	for name, s := range compose.Services {
		cfg, err := parse(t, "", s.Command...)
		if err == nil {
			err = cfg.Validate()
		}
		if err != nil || cfg.ID != name || cfg.Advertise.Peer != name+":7501" {
			t.Errorf("%s of compose.yaml: %v, %+v", name, err, cfg)
		}
		if cfg.Bootstrap {
			first++
		}
	}
	if len(compose.Services) != 3 || first != 1 {
		t.Errorf("compose.yaml has %d nodes, of which %d bootstrap", len(compose.Services), first)
	}
}

// The documentation calls abacusd with flags that it has.
func TestDocumentedFlags(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	flags := newCommand(io.Discard).Flags()
	called, flag := regexp.MustCompile("(?m)^(?:bin/)?abacusd .*"), regexp.MustCompile(`(?:^| )--([a-z-]+)`)
	found := 0
	for _, page := range append(pages, "../../README.md") {
		raw, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range called.FindAllString(strings.ReplaceAll(string(raw), "\\\n", " "), -1) {
			for _, m := range flag.FindAllStringSubmatch(line, -1) {
				if found++; flags.Lookup(m[1]) == nil {
					t.Errorf("%s: %s: there is no --%s", page, line, m[1])
				}
			}
		}
	}
	if found < 20 {
		t.Errorf("%d flags: they are not found any more", found)
	}
}
