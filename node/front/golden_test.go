package front

import (
	"flag"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
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
			var out strings.Builder
			for _, line := range strings.Split(string(old), "\n") {
				switch {
				case strings.HasPrefix(line, "; "):
					out.WriteString(line + "\n")
				case strings.HasPrefix(line, "> "):
					out.WriteString(line + "\n")
					out.WriteString(exchange(t, nc, line[2:]))
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

// exchange sends one inline command and returns the reply as it came. An ECHO
// behind it marks its end.
func exchange(t *testing.T, nc net.Conn, line string) string {
	const mark = "end-of-reply"
	if _, err := io.WriteString(nc, line+"\r\nECHO "+mark+"\r\n"); err != nil {
		t.Fatal(err)
	}
	end := "$" + strconv.Itoa(len(mark)) + "\r\n" + mark + "\r\n"
	var got []byte
	buf := make([]byte, 4096)
	for !strings.HasSuffix(string(got), end) {
		n, err := nc.Read(buf)
		if err != nil {
			t.Fatalf("%s: %v after %q", line, err, got)
		}
		got = append(got, buf[:n]...)
	}
	reply := strings.TrimSuffix(string(got), end)
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
