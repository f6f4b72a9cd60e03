package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/abacusdb/abacus/bench/peers/internal/measure"
)

// Record is one run, as -json keeps it. All that is printed or published is
// worked out from records.
type Record struct {
	Kind    string `json:"kind"` // "run"
	Session string `json:"session"`
	Row     string `json:"row,omitempty"`
	Time    string `json:"time"`
	Peer    string `json:"peer"`
	Op      string `json:"op"`
	Task    string `json:"task,omitempty"`
	Run     int    `json:"run"`

	C        int     `json:"c,omitempty"`
	Pipeline int     `json:"pipeline,omitempty"`
	Dist     string  `json:"dist,omitempty"`
	Keys     int     `json:"keys,omitempty"`
	VSize    int     `json:"vsize"`
	Conns    int     `json:"conns"`
	Nodes    int     `json:"nodes"`
	Records  int     `json:"records,omitempty"`
	Rate     float64 `json:"rate_wanted,omitempty"`
	Seconds  float64 `json:"seconds,omitempty"`
	Version  string  `json:"version,omitempty"`
	Flags    string  `json:"abacus_flags,omitempty"`
	Env      string  `json:"env,omitempty"`
	Signal   string  `json:"signal,omitempty"`

	// Values are what was measured; the unit ends the name. None: the peer cannot do it.
	Values map[string]float64 `json:"values"`
	Steps  []float64          `json:"steps,omitempty"` // rates, one after another
	Note   string             `json:"note,omitempty"`
}

func (s *session) record(p *peer, op string, run int) Record {
	system, _, _ := parsePeer(p.name)
	system, _, _ = strings.Cut(system, "-")
	r := Record{Kind: "run", Session: s.id, Row: s.row, Time: time.Now().UTC().Format(time.RFC3339), Peer: p.name, Op: op, Run: run,
		VSize: s.VSize, Conns: s.Conns, Nodes: s.Nodes, Version: p.version, Env: os.Getenv(strings.ToUpper(system) + "_ENV"), Values: map[string]float64{}}
	if system == "abacus" {
		r.Flags = os.Getenv("ABACUS_FLAGS")
	}
	return r
}

// keep writes a record down at once, so that an interrupted session keeps what it has.
func (s *session) keep(r Record) error {
	if s.JSON == "" {
		return nil
	}
	return appendJSON(s.JSON, r)
}

func appendJSON(file string, v any) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(f).Encode(v); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// group is the runs of one peer of one thing.
type group struct {
	Record // of the first run, for its settings
	runs   []Record
}

// groups puts the runs of the same thing together, in the order of their first.
func groups(all []Record) (out []*group) {
	type key struct {
		session, peer, op, task, dist string
		c, records                    int
	}
	by := map[key]*group{}
	for _, r := range all {
		k := key{r.Session, r.Peer, r.Op, r.Task, r.Dist, r.C, r.Records}
		if by[k] == nil {
			by[k] = &group{Record: r}
			out = append(out, by[k])
		}
		by[k].runs = append(by[k].runs, r)
	}
	return out
}

// of is the median of a value over the runs that have it, the least and the greatest, and how many have it.
func (g *group) of(name string) (m, lo, hi float64, n int) {
	var v []float64
	for _, r := range g.runs {
		if x, ok := r.Values[name]; ok {
			v = append(v, x)
		}
	}
	m, lo, hi = measure.Median(v)
	return m, lo, hi, len(v)
}

func (g *group) median(name string) float64 { m, _, _, _ := g.of(name); return m }

func (g *group) sum(name string) (s float64) {
	for _, r := range g.runs {
		s += r.Values[name]
	}
	return
}

func (g *group) max(name string) (m float64) {
	for _, r := range g.runs {
		m = max(m, r.Values[name])
	}
	return
}

// perSecond is how many records a task has gone through in a second.
func (g *group) perSecond() float64 {
	if m := g.median("seconds"); m > 0 {
		return float64(g.Records) / m
	}
	return 0
}

// all are a value's runs in their order.
func (g *group) all(name string) string {
	var b strings.Builder
	for i, r := range g.runs {
		if i > 0 {
			b.WriteByte(' ')
		}
		if v, ok := r.Values[name]; ok {
			fmt.Fprintf(&b, "%.0f", v)
		} else {
			b.WriteByte('-')
		}
	}
	return b.String()
}

func (g *group) unsupported() bool {
	for _, r := range g.runs {
		if len(r.Values) > 0 {
			return false
		}
	}
	return true
}

// headline is the value that ratios are made of.
func (g *group) headline() string {
	switch g.Op {
	case "failover":
		return "first_ms"
	case "idle":
		return "cpu_percent"
	case "start":
		return "ready_ms"
	case "compute":
		return "seconds"
	case "nokeys":
		return "p50_ms"
	case "jobs":
		return "job_records_s"
	}
	return "rate"
}

// ratio of this group to that of another peer in the same session; 0 if there is none.
func (g *group) ratio(gs []*group, peer string) float64 {
	for _, o := range gs {
		if o.Session == g.Session && o.Peer == peer && o.Op == g.Op && o.C == g.C && o.Task == g.Task && o.Records == g.Records && o.Dist == g.Dist {
			if base := o.median(o.headline()); base > 0 {
				return g.median(g.headline()) / base
			}
		}
	}
	return 0
}

// line is what a session prints of a group; gs[0] is of the first peer.
func (g *group) line(gs []*group) string {
	head := fmt.Sprintf("%-15s %-6s", g.Peer, g.Op)
	if g.unsupported() {
		return head + " unsupported"
	}
	spread := func(name, format string) string {
		m, lo, hi, _ := g.of(name)
		return fmt.Sprintf(format+" ["+format+".."+format+"]", m, lo, hi)
	}
	times := func() string {
		if r := g.ratio(gs, gs[0].Peer); r > 0 {
			return fmt.Sprintf(" x%.2f", r)
		}
		return ""
	}
	switch g.Op {
	case "failover":
		s := fmt.Sprintf("%s trials=%d  first write after kill -9: median %s ms%s", head, len(g.runs), spread("first_ms", "%.0f"), times())
		if _, _, _, n := g.of("shards"); n > 0 {
			s += fmt.Sprintf("; every shard of the node (%.0f): median %s ms", g.median("shards"), spread("all_ms", "%.0f"))
		}
		s += "; trials: " + g.all("first_ms")
		if _, _, _, n := g.of("shards"); n > 0 {
			s += "; every shard: " + g.all("all_ms")
		}
		return s
	case "moves":
		return fmt.Sprintf("%s c=%d  half put, half get, open loop at %.0f/s for %.0f s: at rest p50=%.2f p99=%s p99.9=%.2f ms; with %.0f moves, %.0f MiB: p50=%.2f p99=%s p99.9=%.2f max=%.0f ms; p99 %s times; errors %.0f and %.0f", head, g.C, g.Rate, g.Seconds,
			g.median("rest_p50_ms"), spread("rest_p99_ms", "%.2f"), g.median("rest_p999_ms"), g.sum("moves"), g.sum("moved_mib"),
			g.median("moving_p50_ms"), spread("moving_p99_ms", "%.2f"), g.median("moving_p999_ms"), g.max("moving_max_ms"), spread("moving_to_rest", "%.2f"), g.sum("rest_errors"), g.sum("moving_errors"))
	case "compute":
		m, lo, hi, _ := g.of("seconds")
		return fmt.Sprintf("%-15s %-72s %7.3f s [%.3f..%.3f], first of two %s  %.0f records/s  cpu-seconds client=%.2f servers=%.2f", g.Peer, g.Task, m, lo, hi, spread("first_seconds", "%.3f"), g.perSecond(),
			g.median("client_cpu_s"), g.median("server_cpu_s"))
	case "nokeys":
		return fmt.Sprintf("%s job over none of %d records: p50=%s p99=%s max=%.1f ms; %.0f jobs", head, g.Records, spread("p50_ms", "%.2f"), spread("p99_ms", "%.2f"), g.max("max_ms"), g.sum("jobs"))
	case "jobs":
		s := fmt.Sprintf("%s c=%d  half put, half get, open loop at %.0f/s for %.0f s, with and without sums over %d records: %.0f jobs, %s records/s", head, g.C, g.Rate, g.Seconds, g.Records, g.sum("jobs"), spread("job_records_s", "%.0f"))
		for _, op := range []string{"put", "get"} {
			s += fmt.Sprintf("; %s: without p50=%.2f p99=%s ms, with p50=%.2f p99=%s max=%.0f ms, p99 %s times, errors %.0f and %.0f", op, g.median("rest_"+op+"_p50_ms"), spread("rest_"+op+"_p99_ms", "%.2f"),
				g.median("busy_"+op+"_p50_ms"), spread("busy_"+op+"_p99_ms", "%.2f"), g.max("busy_"+op+"_max_ms"), spread(op+"_busy_to_rest", "%.2f"), g.sum("rest_"+op+"_errors"), g.sum("busy_"+op+"_errors"))
		}
		return s
	case "idle":
		return fmt.Sprintf("%s %.0fs  cpu of each server: median %s %% of a core, most %.2f %%, all servers %.2f %%%s  max RSS %.0f MiB (anon %.0f MiB)", head, g.Seconds,
			spread("cpu_percent", "%.2f"), g.max("cpu_most_percent"), g.median("cpu_sum_percent"), times(), g.max("rss_mib"), g.max("rss_anon_mib"))
	case "start":
		return fmt.Sprintf("%s records=%-9d %s: exec to ready: median %s ms%s; trials: %s", head, g.Records, g.Signal, spread("ready_ms", "%.0f"), times(), g.all("ready_ms"))
	case "fill":
		var steps strings.Builder
		for _, v := range g.runs[0].Steps {
			fmt.Fprintf(&steps, " %.0f", v)
		}
		return fmt.Sprintf("%s records=%d c=%d pipeline=%d  %.0f/s%s; each %.0f:%s; last/first %.2f; max RssAnon of a server %.0f MiB (all servers' most: %.0f MiB)  repeated=%.0f",
			head, g.Records, g.C, g.Pipeline, g.median("rate"), times(), g.median("step"), steps.String(), g.median("last_to_first"), g.max("rss_anon_mib"), g.max("rss_anon_sum_mib"), g.sum("errors"))
	}
	head += fmt.Sprintf(" c=%-4d", g.C)
	if g.Pipeline > 1 {
		head += fmt.Sprintf(" pipeline=%d", g.Pipeline)
	}
	if g.Dist != "uniform" {
		head += " " + g.Dist
	}
	s := fmt.Sprintf("%s %12s/s%s  p50=%.2fms p99=%.2fms p99.9=%.2fms  cpu client=%.2f servers=%.2f", head, spread("rate", "%.0f"), times(),
		g.median("p50_ms"), g.median("p99_ms"), g.median("p999_ms"), g.median("client_cpu"), g.median("server_cpu"))
	if g.Rate > 0 {
		s += fmt.Sprintf("  open loop at %.0f/s: sent late p99=%.2fms unfinished=%.0f errors=%.0f", g.Rate, g.median("late_p99_ms"), g.sum("unfinished"), g.sum("errors"))
		if g.Note != "" {
			return s + "; " + g.Note
		}
		return s + fmt.Sprintf("; seconds with a checkpoint of %.0f keys or more: %.0f, p99.9=%sms; without: %.0f, p99.9=%sms; ratio %s; without any checkpoint: %.0f, p99.9=%.2fms; checkpoints=%.0f, largest %.0f keys",
			g.median("big_keys"), g.sum("with_s"), spread("with_p999_ms", "%.2f"), g.sum("without_s"), spread("without_p999_ms", "%.2f"), g.with(),
			g.sum("none_s"), g.median("none_p999_ms"), g.sum("checkpoints"), g.max("largest_keys"))
	}
	lead := ""
	if _, _, _, n := g.of("leader_cpu"); n > 0 {
		lead = fmt.Sprintf(" (leader %.2f)", g.median("leader_cpu"))
	}
	return s + fmt.Sprintf("%s  rss=%.0fMiB flushes/op=%.3f diskKB/op=%.1f errors=%.0f", lead, g.max("rss_mib"), g.median("flushes_op"), g.median("disk_kib_op"), g.sum("errors"))
}

// with is the ratio of the p99.9 in seconds with a large checkpoint to that in seconds without.
func (g *group) with() string {
	m, lo, hi, n := g.of("with_to_without")
	if n == 0 {
		return "unknown: no seconds of both kinds"
	}
	return fmt.Sprintf("%.2f [%.2f..%.2f]", m, lo, hi)
}
