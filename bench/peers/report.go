package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// The page is worked out of the JSON file and of nothing else, so that what is
// published cannot differ from what was measured.

// results are what a JSON file holds.
type results struct {
	machine machine
	records []Record
	failed  []failure
}

func readResults(r io.Reader) (res results, err error) {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for n := 1; sc.Scan(); n++ {
		var kind struct{ Kind, Row string }
		if err := json.Unmarshal(sc.Bytes(), &kind); err != nil {
			return res, fmt.Errorf("line %d: %w", n, err)
		}
		switch kind.Kind {
		case "machine":
			err = json.Unmarshal(sc.Bytes(), &res.machine)
		case "failed":
			var f failure
			err = json.Unmarshal(sc.Bytes(), &f)
			res.failed = append(res.failed, f)
		case "run":
			var x Record
			err = json.Unmarshal(sc.Bytes(), &x)
			// A row that was measured again takes the place of its first session and of its failure.
			res.records = slices.DeleteFunc(res.records, func(o Record) bool { return o.Row != "" && o.Row == x.Row && o.Session != x.Session })
			res.failed = slices.DeleteFunc(res.failed, func(o failure) bool { return o.Row == x.Row })
			res.records = append(res.records, x)
		default:
			err = fmt.Errorf("kind %q", kind.Kind)
		}
		if err != nil {
			return res, fmt.Errorf("line %d: %w", n, err)
		}
	}
	return res, sc.Err()
}

func writeReport(from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	res, err := readResults(f)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	return os.WriteFile(to, []byte(res.markdown()), 0o644)
}

// table is a part of the page: the groups of some operations, a line each.
type table struct {
	title   string
	in      func(*group) bool
	columns []column
}

type column struct {
	head string
	cell func(g *group, gs []*group) string
}

func op(names ...string) func(*group) bool {
	return func(g *group) bool { return slices.Contains(names, g.Op) && g.Rate == 0 }
}

// spread is "median [least..greatest]".
func spread(name, format string) func(*group, []*group) string {
	return func(g *group, _ []*group) string {
		m, lo, hi, n := g.of(name)
		switch n {
		case 0:
			return "–"
		case 1:
			return fmt.Sprintf(format, m)
		}
		return fmt.Sprintf(format+" ["+format+".."+format+"]", m, lo, hi)
	}
}

// ratios are to the first peer of the session and, if that is another, to etcd.
func ratios(g *group, gs []*group) string {
	var out []string
	for _, base := range bases(g, gs) {
		if r := g.ratio(gs, base); base != g.Peer && r > 0 {
			out = append(out, fmt.Sprintf("%.2f × %s", r, base))
		}
	}
	return strings.Join(out, ", ")
}

func bases(g *group, gs []*group) (out []string) {
	for _, o := range gs {
		if o.Session == g.Session && (len(out) == 0 || o.Peer == "etcd") && !slices.Contains(out, o.Peer) {
			out = append(out, o.Peer)
		}
	}
	return out
}

// timesJob is how many times as long as Abacus' own sum, in the same session, a task takes.
func timesJob(g *group, gs []*group) string {
	for _, o := range gs {
		if base := o.median("seconds"); o.Session == g.Session && o.Records == g.Records && o.Task == sumTask && base > 0 {
			return fmt.Sprintf("%.2f", g.median("seconds")/base)
		}
	}
	return "–"
}

func what(g *group, _ []*group) string {
	s := fmt.Sprintf("%s, %d", g.Op, g.C)
	if g.Pipeline > 1 {
		s += fmt.Sprintf(" × pipelines of %d", g.Pipeline)
	}
	if g.Dist == "zipfian" {
		s += ", zipfian"
	}
	return s
}

var (
	peerColumn = column{"peer", func(g *group, _ []*group) string { return "`" + g.Peer + "`" }}
	runsColumn = column{"runs", func(g *group, _ []*group) string { return fmt.Sprint(len(g.runs)) }}
	ratio      = column{"ratio", ratios}
)

// naming are the heads of columns that say what a line is of, also where a peer cannot do it.
var naming = []string{"operation, callers", "peer", "task", "ended by", "keys", "records stored"}

func value(head, format string, f func(*group) []float64) column {
	return column{head, func(g *group, _ []*group) string {
		args := make([]any, 0, 3)
		for _, v := range f(g) {
			args = append(args, v)
		}
		return fmt.Sprintf(format, args...)
	}}
}

var percentiles = value("p50 / p99 / p99.9 ms", "%.2f / %.2f / %.2f", func(g *group) []float64 {
	return []float64{g.median("p50_ms"), g.median("p99_ms"), g.median("p999_ms")}
})

var tables = []table{
	{"Throughput", op("put", "get", "sget", "mixed", "range"), []column{{"operation, callers", what}, peerColumn, runsColumn,
		{"operations/s", spread("rate", "%.0f")}, ratio,
		percentiles,
		value("CPU client / servers", "%.2f / %.2f", func(g *group) []float64 { return []float64{g.median("client_cpu"), g.median("server_cpu")} }),
		value("flushes/op", "%.3f", func(g *group) []float64 { return []float64{g.median("flushes_op")} }),
		value("errors", "%.0f", func(g *group) []float64 { return []float64{g.sum("errors")} }),
	}},
	{"Failover", op("failover"), []column{peerColumn, {"first write, ms", spread("first_ms", "%.0f")}, ratio,
		{"every shard, ms", func(g *group, gs []*group) string {
			if _, _, _, n := g.of("shards"); n == 0 {
				return "–"
			}
			return spread("all_ms", "%.0f")(g, gs)
		}},
		{"trials, first write", func(g *group, _ []*group) string { return g.all("first_ms") }},
		{"trials, every shard", func(g *group, _ []*group) string {
			if _, _, _, n := g.of("shards"); n == 0 {
				return "–"
			}
			return g.all("all_ms")
		}},
	}},
	{"Open loop, with and without a checkpoint", func(g *group) bool { return g.Rate > 0 && g.Op != "jobs" && g.Op != "moves" }, []column{{"operation, callers at the peak", what}, peerColumn, runsColumn,
		{"operations/s", spread("rate", "%.0f")}, percentiles,
		{"p99.9 ms with", spread("with_p999_ms", "%.2f")}, {"p99.9 ms without", spread("without_p999_ms", "%.2f")},
		{"with / without", func(g *group, _ []*group) string {
			if g.Note != "" {
				return g.Note
			}
			return g.with()
		}},
		value("seconds with / without", "%.0f / %.0f", func(g *group) []float64 { return []float64{g.sum("with_s"), g.sum("without_s")} }),
		value("with: keys from", "%.0f", func(g *group) []float64 { return []float64{g.median("big_keys")} }),
		value("largest checkpoint, keys", "%.0f", func(g *group) []float64 { return []float64{g.max("largest_keys")} }),
		value("sent late p99 ms", "%.2f", func(g *group) []float64 { return []float64{g.median("late_p99_ms")} }),
		value("errors / unfinished", "%.0f / %.0f", func(g *group) []float64 { return []float64{g.sum("errors"), g.sum("unfinished")} }),
	}},
	{"Fill", op("fill"), []column{peerColumn, {"operation, callers", what},
		value("distinct keys", "%.0f", func(g *group) []float64 { return []float64{float64(g.Records)} }),
		{"keys/s", spread("rate", "%.0f")},
		{"keys/s of each step", func(g *group, _ []*group) string {
			var b strings.Builder
			for _, v := range g.runs[0].Steps {
				fmt.Fprintf(&b, "%.0f ", v)
			}
			return strings.TrimSpace(b.String())
		}},
		value("step", "%.0f", func(g *group) []float64 { return []float64{g.median("step")} }),
		{"last / first", spread("last_to_first", "%.2f")},
		value("most RssAnon of a server, MiB", "%.0f", func(g *group) []float64 { return []float64{g.max("rss_anon_mib")} }),
		value("repeated", "%.0f", func(g *group) []float64 { return []float64{g.sum("errors")} }),
	}},
	{"Start", op("start"), []column{peerColumn, {"ended by", func(g *group, _ []*group) string { return g.Signal }},
		value("keys", "%.0f", func(g *group) []float64 { return []float64{float64(g.Records)} }),
		{"exec to ready, ms", spread("ready_ms", "%.0f")},
		{"to empty", func(g *group, gs []*group) string {
			for _, o := range gs {
				if o.Session == g.Session && o.Peer == g.Peer && o.Op == "start" && o.Records == 0 && g.Records > 0 && o.median("ready_ms") > 0 {
					return fmt.Sprintf("%.2f", g.median("ready_ms")/o.median("ready_ms"))
				}
			}
			return ""
		}},
		{"trials", func(g *group, _ []*group) string { return g.all("ready_ms") }},
	}},
	{"Idle", op("idle"), []column{peerColumn, runsColumn,
		{"CPU of a server, % of a core", spread("cpu_percent", "%.2f")},
		value("most of any server", "%.2f", func(g *group) []float64 { return []float64{g.max("cpu_most_percent")} }),
		value("RSS / RssAnon, MiB", "%.0f / %.0f", func(g *group) []float64 { return []float64{g.max("rss_mib"), g.max("rss_anon_mib")} }),
	}},
	{"Computing", op("compute"), []column{peerColumn, {"task", func(g *group, _ []*group) string { return g.Task }}, runsColumn,
		value("records/s", "%.0f", func(g *group) []float64 { return []float64{g.perSecond()} }),
		{"seconds", spread("seconds", "%.3f")}, {"times the job's", timesJob}, {"first of two", spread("first_seconds", "%.3f")},
		{"CPU seconds, client", spread("client_cpu_s", "%.2f")}, {"CPU seconds, servers", spread("server_cpu_s", "%.2f")},
	}},
	{"Jobs over no keys", op("nokeys"), []column{peerColumn, value("records stored", "%.0f", func(g *group) []float64 { return []float64{float64(g.Records)} }), runsColumn,
		{"p50 ms", spread("p50_ms", "%.2f")}, {"p99 ms", spread("p99_ms", "%.2f")},
		value("longest ms", "%.1f", func(g *group) []float64 { return []float64{g.max("max_ms")} }),
		value("jobs", "%.0f", func(g *group) []float64 { return []float64{g.sum("jobs")} }),
	}},
	{"Put and get beside jobs, open loop", func(g *group) bool { return g.Op == "jobs" }, []column{peerColumn, runsColumn,
		value("callers at the peak", "%.0f", func(g *group) []float64 { return []float64{float64(g.C)} }),
		value("puts and gets/s", "%.0f", func(g *group) []float64 { return []float64{g.median("busy_put_rate") + g.median("busy_get_rate")} }),
		value("jobs", "%.0f", func(g *group) []float64 { return []float64{g.sum("jobs")} }),
		{"records/s of the jobs", spread("job_records_s", "%.0f")},
		{"put p99 ms without", spread("rest_put_p99_ms", "%.2f")}, {"with", spread("busy_put_p99_ms", "%.2f")}, {"times", spread("put_busy_to_rest", "%.2f")},
		{"get p99 ms without", spread("rest_get_p99_ms", "%.2f")}, {"with", spread("busy_get_p99_ms", "%.2f")}, {"times", spread("get_busy_to_rest", "%.2f")},
		value("errors without / with", "%.0f / %.0f", func(g *group) []float64 {
			return []float64{g.sum("rest_put_errors") + g.sum("rest_get_errors"), g.sum("busy_put_errors") + g.sum("busy_get_errors")}
		}),
	}},
}

// markdown is the whole page.
func (res results) markdown() string {
	var b strings.Builder
	gs := groups(res.records)
	b.WriteString("<!-- Made by `peers report` of the JSON file beside it. Do not edit. -->\n\n")
	if m := res.machine; m.Kind != "" {
		fmt.Fprintf(&b, "**Machine.** %s, %d cores, %s of memory; Linux %s; %s on %s; load program on the same machine, %s; %s.\n", m.CPU, m.Cores, m.Memory, m.Kernel, m.FS, m.Disk, m.Go, m.Time)
		if m.Quick {
			b.WriteString("\n**A quick run: it shows that all works, and is no figure to quote.**\n")
		}
	}
	var versions []string
	for _, g := range gs {
		v := fmt.Sprintf("`%s`: %s", g.Peer, g.Version)
		if g.Flags != "" {
			v += ", flags " + g.Flags
		}
		if g.Env != "" {
			v += ", environment " + g.Env
		}
		if !slices.Contains(versions, v) {
			versions = append(versions, v)
		}
	}
	if len(versions) > 0 {
		fmt.Fprintf(&b, "\n**Versions.** %s.\n", strings.Join(versions, "; "))
	}
	for _, t := range tables {
		var in []*group
		for _, g := range gs {
			if t.in(g) {
				in = append(in, g)
			}
		}
		if len(in) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n\n", t.title)
		if s := settingsOf(in); s != "" {
			fmt.Fprintf(&b, "%s.\n\n", s)
		}
		for _, c := range t.columns {
			fmt.Fprintf(&b, "| %s ", c.head)
		}
		b.WriteString("|\n" + strings.Repeat("|---", len(t.columns)) + "|\n")
		for _, g := range in {
			for _, c := range t.columns {
				cell := "–"
				if !g.unsupported() || slices.Contains(naming, c.head) {
					cell = c.cell(g, gs)
				} else if c.head == runsColumn.head {
					cell = "not possible"
				}
				fmt.Fprintf(&b, "| %s ", strings.ReplaceAll(cell, "|", "\\|"))
			}
			b.WriteString("|\n")
		}
	}
	for _, f := range res.failed {
		fmt.Fprintf(&b, "\n**Not measured:** %s\n", f.Error)
	}
	return b.String()
}

// settingsOf says what the runs of some groups had, each value that there was.
func settingsOf(in []*group) string {
	var out []string
	add := func(format string, f func(*group) any) {
		var vs []string
		for _, g := range in {
			if v := fmt.Sprint(f(g)); v != "0" && !slices.Contains(vs, v) {
				vs = append(vs, v)
			}
		}
		if len(vs) > 0 {
			out = append(out, fmt.Sprintf(format, strings.Join(vs, " or ")))
		}
	}
	add("%s nodes", func(g *group) any { return g.Nodes })
	add("values of %s B", func(g *group) any { return g.VSize })
	add("%s connections", func(g *group) any {
		if g.C == 0 || g.Pipeline > 1 { // failover, start and idle have none or their own, as pipelines do
			return 0
		}
		return g.Conns
	})
	add("%s keys", func(g *group) any { return g.Keys })
	add("%s records", func(g *group) any {
		if g.Op != "compute" && g.Op != "jobs" { // the others say it line by line
			return 0
		}
		return g.Records
	})
	add("runs of %s s", func(g *group) any {
		if g.Op == "fill" { // takes as long as it takes
			return 0
		}
		return fmt.Sprintf("%.0f", g.Seconds)
	})
	return strings.Join(out, ", ")
}
