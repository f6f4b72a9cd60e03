package front

import (
	"bytes"
	"flag"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/abacusdb/abacus/transport/resp"
)

var rewrite = flag.Bool("rewrite", false, "write the golden transcripts anew")

// TestTranscripts compares what is on the wire, byte by byte, with
// testdata/*.txt: lines beginning with "> " are sent, with "; " are comments, the others are the reply,
// with CR LF as a line end. What differs from run to run is masked.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			old, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			cl := newCluster(t, 3, 8)
			cfg := Config{}
			if strings.Contains(file, "cluster") {
				cfg.Mode = ModeCluster
			}
			if strings.Contains(file, "sick") { // one node down, one shard without a leader, one led by chance
				cl.down["n3"] = true
				for s, id := range cl.leaders {
					if id == "n3" {
						cl.leaders[s] = "n1"
					}
				}
				cl.leaders[5] = ""
			}
			_, addr := serve(t, cfg, cl.node("n1"))
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			nc.SetDeadline(time.Now().Add(10 * time.Second))
			w := newWire(nc)
			var out strings.Builder
			for _, line := range strings.Split(string(old), "\n") {
				switch {
				case strings.HasPrefix(line, "; "):
					out.WriteString(line + "\n")
				case strings.HasPrefix(line, "> "):
					out.WriteString(line + "\n")
					out.WriteString(w.exchange(t, line[2:]))
				}
			}
			if *rewrite {
				if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			got, want := strings.Split(out.String(), "\n"), strings.Split(string(old), "\n")
			for i := range max(len(got), len(want)) {
				a, b := "(nothing)", "(nothing)"
				if i < len(got) {
					a = got[i]
				}
				if i < len(want) {
					b = want[i]
				}
				if a != b {
					t.Fatalf("%s:%d: got %q, want %q (-rewrite if it is meant)", file, i+1, a, b)
				}
			}
		})
	}
}

// wire keeps what was received.
type wire struct {
	nc  net.Conn
	r   *resp.ReplyReader
	got bytes.Buffer
}

func newWire(nc net.Conn) *wire {
	w := &wire{nc: nc}
	w.r = resp.NewReplyReader(io.TeeReader(nc, &w.got), resp.ReplyLimits{})
	return w
}

// exchange sends one inline command and returns the reply as it came.
func (w *wire) exchange(t *testing.T, line string) string {
	if _, err := io.WriteString(w.nc, line+"\r\n"); err != nil {
		t.Fatal(err)
	}
	w.got.Reset()
	if _, err := w.r.ReadReply(); err != nil {
		t.Fatalf("%s: %v after %q", line, err, w.got.String())
	}
	reply := w.got.String()
	for _, m := range masks {
		reply = m.re.ReplaceAllString(reply, m.with)
	}
	return strings.ReplaceAll(reply, "\r\n", "\n")
}

// masks hide what differs from run to run, and the lengths of strings it is in.
var masks = []struct {
	re   *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`(process_id|tcp_port|used_memory|used_memory_rss|total_connections_received|total_commands_processed):\d+`), "$1:N"},
	{regexp.MustCompile(`used_memory_human:[0-9.]+M`), "used_memory_human:N"},
	{regexp.MustCompile(`os:\w+ \w+`), "os:N"},
	{regexp.MustCompile(`[$=]\d+\r\n((txt:)?(# |id=\d))`), "LEN\r\n$1"},
	{regexp.MustCompile(`(age|idle)=\d+`), "$1=N"},
	{regexp.MustCompile(`(l?addr)=127.0.0.1:\d+`), "$1=N"},
}
