//go:build tools

package chaos_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image/png"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/compute/job"
)

// hostile would run a script if it ever became markup.
const hostile = `<img src=x onerror="document.title='owned'">`

// TestToolsPage looks at a real cluster's page in a real browser: who leads what, a load, names that others wrote, light and dark, a phone, a
// node that was killed, and the asked one killed. ABACUS_PAGE_PICTURES is a directory for pictures of it, those in docs/page.
func TestToolsPage(t *testing.T) {
	c := startCluster(t, proc.Config{Shards: 8, NodeArgs: map[int][]string{2: {"--zone", hostile}}})
	b := startBrowser(t)
	base := "http://" + c.Node(1).Addrs().HTTP
	b.look(1440, 900, "light")
	b.open(base + "/")
	b.until("all is well", `document.querySelector('#verdict').textContent === 'All is well'`)

	// Who leads is as the node says.
	st, err := c.Node(1).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, sh := range st.Shards {
		column := 0
		for i, n := range st.Nodes {
			if n.ID == sh.Leader {
				column = i + 3 // after the shard's number and its slots, from 1
			}
		}
		b.until(fmt.Sprintf("shard %d is led by %s alone, and has two followers", sh.ID, sh.Leader),
			fmt.Sprintf(`(row => row.querySelectorAll('[data-state=leader]').length === 1 && row.querySelector('td:nth-child(%d)').dataset.state === 'leader' && row.querySelectorAll('[data-state=follower]').length === 2)(document.querySelector('[data-shard="%d"]'))`, column, sh.ID))
	}

	// Names are text.
	body := fmt.Sprintf(`{"name":%q,"prefix":%q,"as":"int","map":"square","reduce":"sum"}`, hostile, hostile+"</script>")
	answer, err := http.Post(base+"/v1/jobs", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(answer.Body)
	answer.Body.Close()
	if answer.StatusCode != http.StatusAccepted {
		t.Fatalf("submit a job: %d %s", answer.StatusCode, text)
	}
	b.until("the job has succeeded", `document.querySelector('#jobs .tag.green') && document.querySelector('#jobs').textContent.includes('succeeded')`)
	for where, selector := range map[string]string{"zone": `#nodes [data-node=n2]`, "job": `#jobs tbody tr`} {
		b.until("the hostile "+where+" is shown as it is", fmt.Sprintf(`document.querySelector(%q).textContent.includes(%q)`, selector, hostile))
	}
	b.until("no name became markup", `document.images.length === 0 && !document.title.includes('owned')`)

	// A click on the job shows its tasks, each on the node that did it.
	var clicked bool
	if err := b.eval(&clicked, `(button => { button.click(); return true; })(document.querySelector('#jobs [data-pick]'))`); err != nil || !clicked {
		t.Fatalf("click on the job: %v, %v", clicked, err)
	}
	for node, tasks := range tasksByNode(t, base, text) {
		b.until(fmt.Sprintf("%s has %d tasks that are done", node, tasks), fmt.Sprintf(`document.querySelectorAll('#tasks [data-on=%q] [data-state=done]').length === %d`, node, tasks))
	}
	b.until("no task waits or runs", `!document.querySelector('#tasks [data-state=waiting], #tasks [data-state=running]')`)
	b.until("the title of the tasks says whose they are", fmt.Sprintf(`document.querySelector('#tasks-title').textContent.includes(%q) && document.querySelector('#jobs [aria-pressed=true]')`, hostile))

	// A load is seen, with its latency.
	stop := loadUntil(t, c)
	defer stop()
	b.until("throughput and latency of n1", `(cells => Number(cells[5].textContent.replaceAll(',', '')) > 0 && Number(cells[6].textContent.replaceAll(',', '')) > 0 && /s$/.test(cells[8].textContent))(document.querySelector('#nodes [data-node=n1]').cells)`)
	b.until("a chart with a line", `document.querySelectorAll('#charts svg path.a').length === 3 && document.querySelector('#charts path.b').getAttribute('d').length > 5`)
	pictures(t, b, "light", 1440, 900, "light")
	stop()

	// Light and dark differ, and both can be read.
	var light, dark string
	for scheme, to := range map[string]*string{"light": &light, "dark": &dark} {
		b.look(1440, 900, scheme)
		if err := b.eval(to, `getComputedStyle(document.body).backgroundColor`); err != nil {
			t.Fatal(err)
		}
		b.until(scheme+": text stands out from what is behind it", contrast)
	}
	if light == dark {
		t.Errorf("light and dark both have the background %s", light)
	}
	b.look(1440, 900, "dark")
	dim, bright := brightness(t, b.picture()), 0.0
	b.look(1440, 900, "light")
	if bright = brightness(t, b.picture()); bright < dim+.4 {
		t.Errorf("the picture's brightness is %.2f in light and %.2f in dark", bright, dim)
	}
	b.look(390, 844, "light")
	b.until("a phone's width holds the page", `document.documentElement.scrollWidth <= innerWidth`)
	pictures(t, b, "phone", 390, 844, "light")
	if p := b.troubles(); len(p) > 0 {
		t.Errorf("the browser complains: %s", p)
	}

	// A node that is killed is down, with all that it has.
	if err := c.Node(3).Kill(); err != nil {
		t.Fatal(err)
	}
	b.until("n3 is down", `document.querySelector('[data-node=n3] .tag.red').textContent === 'down' && document.querySelectorAll('[data-state=down]').length === 8`)
	b.until("the page says so", `document.querySelector('#verdict.bad') && document.querySelector('#alarms').textContent.includes('node n3 does not answer')`)
	b.until("the others lead all", `document.querySelectorAll('[data-state=leader]').length === 8`)
	pictures(t, b, "dark", 1440, 900, "dark")

	// The asked node is gone: the page says since when, and who else can be asked; it goes on by itself.
	if err := c.Node(1).Kill(); err != nil {
		t.Fatal(err)
	}
	b.until("the page says that nobody answers", `/does not answer.*ago/.test(document.querySelector('#gone').textContent) && document.querySelector('main.stale')`)
	b.until("and whom else to ask", fmt.Sprintf(`[...document.querySelectorAll('#gone a')].some(a => a.href === 'http://%s/')`, c.Node(2).Addrs().HTTP))
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	b.until("all is well again", `document.querySelector('#verdict').textContent === 'All is well' && !document.querySelector('#gone').textContent`)
}

// tasksByNode counts the tasks of the job that was just submitted, by the node that did them.
func tasksByNode(t *testing.T, base string, submitted []byte) map[string]int {
	t.Helper()
	var id struct{ ID string }
	if err := json.Unmarshal(submitted, &id); err != nil {
		t.Fatal(err)
	}
	answer, err := http.Get(base + "/v1/jobs/" + id.ID + "/tasks")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var rec job.Record
	if err := json.NewDecoder(answer.Body).Decode(&rec); err != nil {
		t.Fatal(err)
	}
	nodes := map[string]int{}
	for _, s := range rec.Shards {
		for _, k := range s.Tasks {
			nodes[k.Node]++
		}
	}
	if len(nodes) == 0 {
		t.Fatalf("job %s has no tasks", id.ID)
	}
	return nodes
}

// contrast says whether every piece of text that is shown has a contrast of 4.5 to what is behind it, as WCAG AA has it.
const contrast = `(() => {
  const rgba = text => { const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number); return { c: [r, g, b], a }; };
  const lum = c => c.map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((t, v, i) => t + v * [.2126, .7152, .0722][i], 0);
  const behind = el => { for (; el; el = el.parentElement) { const b = rgba(getComputedStyle(el).backgroundColor); if (b.a === 1) return b.c; } return [255, 255, 255]; };
  const bad = [];
  for (const el of document.querySelectorAll('body *')) {
    if (el.closest('script, style, noscript, svg, .vh, [hidden]') || ![...el.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const [a, b] = [lum(rgba(getComputedStyle(el).color).c), lum(behind(el))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) bad.push(el.className + ': ' + el.textContent);
  }
  window.poor = bad;
  return bad.length === 0;
})()`

// pictures writes the window to ABACUS_PAGE_PICTURES, if that is set.
func pictures(t *testing.T, b *browser, name string, width, height int, scheme string) {
	t.Helper()
	dir := os.Getenv("ABACUS_PAGE_PICTURES")
	if dir == "" {
		return
	}
	b.look(width, height, scheme)
	if err := os.WriteFile(filepath.Join(dir, name+".png"), b.picture(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// brightness of a picture, 0 to 1.
func brightness(t *testing.T, raw []byte) float64 {
	t.Helper()
	img, err := png.Decode(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	sum, count := 0.0, 0.0
	for y := img.Bounds().Min.Y; y < img.Bounds().Max.Y; y += 4 {
		for x := img.Bounds().Min.X; x < img.Bounds().Max.X; x += 4 {
			r, g, b, _ := img.At(x, y).RGBA()
			sum, count = sum+float64(r+g+b)/3/0xffff, count+1
		}
	}
	return sum / count
}

// loadUntil writes and reads until the function that it returns is called.
func loadUntil(t *testing.T, c *proc.Cluster) (stop func()) {
	cl := open(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	var workers sync.WaitGroup
	for w := range 8 {
		workers.Go(func() {
			for i := w; ctx.Err() == nil; i += 8 {
				key := "page/" + strconv.Itoa(i%1000)
				err := cl.Put(ctx, key, []byte("v"))
				if err == nil {
					_, err = cl.Get(ctx, key)
				}
				if err != nil && ctx.Err() == nil {
					t.Errorf("%s: %v", key, err)
					return
				}
			}
		})
	}
	return func() { cancel(); workers.Wait() }
}
