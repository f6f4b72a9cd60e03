//go:build linux

package campaign

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"math"
	"slices"
	"strings"
	"time"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"ms":    func(d time.Duration) string { return d.Round(time.Millisecond).String() },
	"first": func(list []time.Duration) time.Duration { return slices.Max(append(list, 0)) },
}).Parse(pageText))

// page is the report as one file that needs nothing else: what was broken when, over what clients saw.
func (r *Report) page() ([]byte, error) {
	var b bytes.Buffer
	err := pageTemplate.Execute(&b, map[string]any{
		"R": r, "Kinds": r.kindRows(), "Errors": r.errorRows(), "Chart": r.chart(), "OK": r.OK(),
		"Began": r.Began.UTC().Format(time.RFC1123), "Took": r.Took.Round(time.Second), "Rate": fmt.Sprintf("%.0f", r.QuietRate),
	})
	return b.Bytes(), err
}

type kindRow struct {
	Kind             string
	Count, Bit       int
	Recovery, Outage Quantiles
}

func (r *Report) kindRows() (rows []kindRow) {
	counts := r.ByKind()
	names := sortedKeys(counts)
	slices.Sort(names)
	for _, name := range names {
		row := kindRow{Kind: name, Count: counts[name]}
		var recovery, outage []time.Duration
		for _, ev := range r.Events {
			if ev.Kind != name {
				continue
			}
			if ev.Bit {
				row.Bit++
			}
			recovery, outage = append(recovery, ev.Recovery...), append(outage, ev.Outage...)
		}
		row.Recovery, row.Outage = quantiles(recovery), quantiles(outage)
		rows = append(rows, row)
	}
	return rows
}

type errorRow struct {
	Text  string
	Count int
}

func (r *Report) errorRows() (rows []errorRow) {
	for _, text := range sortedKeys(r.Errors) {
		if rows = append(rows, errorRow{text, r.Errors[text]}); len(rows) == 30 {
			break
		}
	}
	return rows
}

// chart is an SVG: faults as bars in lanes, operations a second, latencies, on one axis of time.
func (r *Report) chart() template.HTML {
	const left, lane, plot, gap = 40, 12, 160, 28
	scale := max(2, 1200/max(1, float64(len(r.seconds)))) // pixels a second
	x := func(t time.Time) float64 { return left + t.Sub(r.Began).Seconds()*scale }
	width := left + float64(len(r.seconds)+1)*scale

	// Each fault in the first lane that is free.
	var free []time.Time
	laneOf := make([]int, len(r.Events))
	for i, ev := range r.Events {
		n := slices.IndexFunc(free, func(until time.Time) bool { return ev.Began.After(until) })
		if n < 0 {
			n, free = len(free), append(free, time.Time{})
		}
		laneOf[i], free[n] = n, ev.Mended
	}
	var s strings.Builder
	top := float64(20)
	faultsEnd := top + float64(len(free))*(lane+4)
	rates, lats := faultsEnd+gap, faultsEnd+gap+plot+gap
	height := lats + plot + 30
	fmt.Fprintf(&s, `<svg viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" role="img" aria-label="faults, throughput and latency over time">`, width, height, width, height)
	for i, ev := range r.Events {
		if ev.Mended.IsZero() {
			continue
		}
		recovered := time.Duration(0)
		if len(ev.Recovery) > 0 {
			recovered = slices.Max(ev.Recovery)
		}
		title := template.HTMLEscapeString(fmt.Sprintf("%s: %s\n%s to %s, served again after %v", ev.Kind, ev.Detail,
			ev.Began.Sub(r.Began).Round(100*time.Millisecond), ev.Mended.Sub(r.Began).Round(100*time.Millisecond), recovered.Round(time.Millisecond)))
		y := top + float64(laneOf[i])*(lane+4)
		fmt.Fprintf(&s, `<g><title>%s</title><rect class="shade" x="%.1f" y="%.1f" width="%.1f" height="%.1f"/><rect class="fault" x="%.1f" y="%.1f" width="%.1f" height="%d"/><rect class="recovery" x="%.1f" y="%.1f" width="%.1f" height="%d"/></g>`,
			title, x(ev.Began), rates, max(1, x(ev.Mended)-x(ev.Began)), lats+plot-rates,
			x(ev.Began), y, max(2, x(ev.Mended)-x(ev.Began)), lane, x(ev.Mended), y, recovered.Seconds()*scale, lane)
	}
	most := 1.0
	for _, sec := range r.seconds {
		most = max(most, float64(sec.answered+sec.failed+sec.uncertain))
	}
	for i, sec := range r.seconds {
		at, from := left+float64(i)*scale, rates+plot
		for _, part := range []struct {
			class string
			n     int
		}{{"answered", sec.answered}, {"failed", sec.failed}, {"uncertain", sec.uncertain}} {
			h := float64(part.n) / most * plot
			from -= h
			if part.n > 0 {
				fmt.Fprintf(&s, `<rect class="%s" x="%.1f" y="%.1f" width="%.1f" height="%.1f"/>`, part.class, at, from, scale, max(.5, h))
			}
		}
	}
	// Latencies by powers of ten, from 0.1 ms to 100 s.
	y := func(ms float64) float64 { return lats + plot - (math.Log10(max(.1, ms))+1)/6*plot }
	for ms := .1; ms < 1e5; ms *= 10 {
		fmt.Fprintf(&s, `<line class="grid" x1="%d" x2="%.0f" y1="%.1f" y2="%.1f"/><text x="0" y="%.1f">%v</text>`, left, width, y(ms), y(ms), y(ms)+4, time.Duration(ms*float64(time.Millisecond)))
	}
	for _, p := range []struct {
		class string
		share float64
	}{{"p50", .5}, {"p99", .99}} {
		var line []string
		for i, sec := range r.seconds {
			if len(sec.took) == 0 {
				continue
			}
			took := slices.Clone(sec.took)
			slices.Sort(took)
			line = append(line, fmt.Sprintf("%.1f,%.1f", left+(float64(i)+.5)*scale, y(float64(took[min(len(took)-1, int(p.share*float64(len(took))))]))))
		}
		fmt.Fprintf(&s, `<polyline class="%s" points="%s"/>`, p.class, strings.Join(line, " "))
	}
	fmt.Fprintf(&s, `<text x="0" y="12">faults, and until all shards served again</text><text x="0" y="%.0f">operations a second, at most %.0f</text><text x="0" y="%.0f">latency, p50 and p99 of each second</text>`, rates-6, most, lats-6)
	for sec := 0; sec < len(r.seconds); sec += 60 {
		fmt.Fprintf(&s, `<line class="grid" x1="%.0f" x2="%.0f" y1="%.0f" y2="%.0f"/><text x="%.0f" y="%.0f">%d min</text>`, left+float64(sec)*scale, left+float64(sec)*scale, rates, lats+plot, left+float64(sec)*scale, height-8, sec/60)
	}
	s.WriteString(`</svg>`)
	return template.HTML(s.String()) // all text in it is ours or escaped
}
