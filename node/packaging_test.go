package node

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// Every metric that the dashboard asks for is one that a node serves, and is asked for with labels that it has.
func TestDashboard(t *testing.T) {
	t.Parallel()
	n := open(t, func() Config { cfg := testConfig(t, "n1"); cfg.Bootstrap = true; return cfg }())
	untilHealthy(t, n)
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	r.Host = "localhost"
	n.http.srv.Handler.ServeHTTP(w, r)
	served := map[string]bool{}
	labels := map[string]bool{"le": true, "instance": true}
	for line := range strings.Lines(w.Body.String()) {
		if f := strings.Fields(line); strings.HasPrefix(line, "# TYPE ") {
			served[f[2]] = true
			if f[3] == "histogram" {
				served[f[2]+"_bucket"], served[f[2]+"_count"], served[f[2]+"_sum"] = true, true, true
			}
		}
		for _, l := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(line, -1) {
			labels[l[1]] = true
		}
	}
	// Those that an idle node alone has none of: of peers, and of errors.
	descs := make(chan *prometheus.Desc, 1000)
	stateCollector{n}.Describe(descs)
	close(descs)
	for d := range descs {
		text := regexp.MustCompile(`fqName: "(\w+)".*variableLabels: \{([\w,]*)\}`).FindStringSubmatch(d.String())
		if text == nil {
			t.Fatalf("a metric describes itself as %s", d)
		}
		served[text[1]] = true
		for _, l := range strings.Split(text[2], ",") {
			labels[l] = true
		}
	}

	raw, err := os.ReadFile("../docs/packaging/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Templating struct {
			List []struct{ Definition string }
		}
		Panels []struct {
			Title   string
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	names, asked := regexp.MustCompile(`\b(abacus|process|go)_\w+`), 0
	check := func(where, expr string) {
		for _, name := range names.FindAllString(expr, -1) {
			if asked++; !served[name] {
				t.Errorf("%s asks for %s, which no node serves", where, name)
			}
		}
		for _, by := range regexp.MustCompile(`(?:by|on|group_left) ?\(([\w, ]*)\)`).FindAllStringSubmatch(expr, -1) {
			for _, l := range strings.Split(by[1], ", ") {
				if l != "" && !labels[l] {
					t.Errorf("%s: no metric has the label %q", where, l)
				}
			}
		}
		if strings.Count(expr, "(") != strings.Count(expr, ")") || strings.Count(expr, "{") != strings.Count(expr, "}") {
			t.Errorf("%s: brackets in %s", where, expr)
		}
	}
	for _, v := range d.Templating.List {
		check("a variable", v.Definition)
	}
	for _, p := range d.Panels {
		if len(p.Targets) == 0 {
			t.Errorf("the panel %s asks nothing", p.Title)
		}
		for _, target := range p.Targets {
			check("the panel "+p.Title, target.Expr)
		}
	}
	if asked < 30 {
		t.Errorf("only %d metrics are asked for", asked)
	}
}

// The unit's exit codes are abacusd's: it is not started again after it was removed from its cluster, or with wrong flags, and is after a
// disk that failed; and a stop gets the time that a graceful one takes.
func TestServiceUnit(t *testing.T) {
	raw, err := os.ReadFile("../docs/packaging/abacusd.service")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(raw), "\n")
	for _, want := range []string{"Restart=on-failure", "RestartPreventExitStatus=2", "KillSignal=SIGTERM", "TimeoutStopSec=30", "StateDirectory=abacus", "ProtectSystem=strict", "NoNewPrivileges=yes", "LimitNOFILE=65536"} {
		if !slices.Contains(lines, want) {
			t.Errorf("the unit lacks %s", want)
		}
	}
	if stop := DefaultConfig().StopTimeout.Seconds(); stop > 20 {
		t.Errorf("a graceful stop may take %v s, and the unit kills after 30", stop)
	}
}
