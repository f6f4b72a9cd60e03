//go:build tools

package chaos_test

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/abacusdb/abacus/chaos/proc"
)

func port(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// TestToolsRedisCLI talks through redis-cli, plain, with RESP3 and following
// MOVED on the cluster port.
func TestToolsRedisCLI(t *testing.T) {
	c := sharedCluster(t)
	client, cluster := port(c.Node(2).Addrs().Client), port(c.Node(2).Addrs().Cluster)
	rc := func(args ...string) string {
		t.Helper()
		return strings.TrimSuffix(command(t, "", "redis-cli", args...).must(t), "\n")
	}
	for _, tc := range []struct {
		name string
		args []string
		want string // a regular expression for the whole output
	}{
		{"the slot of foo", []string{"-p", client, "CLUSTER", "KEYSLOT", "foo"}, `12182`},
		{"ping", []string{"-p", client, "PING"}, `PONG`},
		{"set", []string{"-p", client, "SET", "cli:a", "1"}, `OK`},
		{"get", []string{"-p", client, "GET", "cli:a"}, `1`},
		{"incr with RESP3", []string{"-3", "-p", client, "INCR", "cli:a"}, `2`},
		{"cluster mode follows MOVED", []string{"-c", "-p", cluster, "SET", "cli:b", "x"}, `OK`},
		{"and back", []string{"-c", "-p", cluster, "GET", "cli:b"}, `x`},
		{"a transaction over shards", []string{"-p", client, "MSET", "cli:1", "a", "cli:2", "b", "cli:3", "c"}, `OK`},
		{"gathered", []string{"-p", client, "MGET", "cli:1", "cli:2", "cli:3"}, "a\nb\nc"},
		{"an unknown command", []string{"-p", client, "NOSUCH"}, `ERR unknown command.*`},
		{"the command table", []string{"-p", client, "COMMAND", "COUNT"}, `\d+`},
		{"the cluster's state", []string{"-p", cluster, "CLUSTER", "INFO"}, `(?s).*cluster_state:ok.*`},
		{"a scan", []string{"-p", client, "--scan", "--pattern", "cli:[123]"}, "(cli:[123]\n?){3}"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := strings.TrimSpace(strings.ReplaceAll(rc(tc.args...), "\r", "")); !regexp.MustCompile(`^(?:` + tc.want + `)$`).MatchString(got) {
				t.Errorf("redis-cli %s: %q, want %s", strings.Join(tc.args, " "), got, tc.want)
			}
		})
	}
	if out := rc("--cluster", "check", c.Node(1).Addrs().Cluster); !strings.Contains(out, "All 16384 slots covered") {
		t.Errorf("redis-cli --cluster check:\n%s", out)
	}
	// A pipe of commands, as people load data with it.
	var lines strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&lines, "SET cli:pipe:%d %d\r\n", i, i)
	}
	if out := command(t, lines.String(), "redis-cli", "-p", client, "--pipe").must(t); !strings.Contains(out, "errors: 0, replies: 2000") {
		t.Errorf("redis-cli --pipe: %s", out)
	}
}

// TestToolsRedisBenchmark runs redis-benchmark, plain and with --cluster, and then
// looks at what is stored: that it prints no error proves little.
func TestToolsRedisBenchmark(t *testing.T) {
	const requests, space = 20_000, 100_000
	for _, mode := range []string{"plain", "cluster"} {
		t.Run(mode, func(t *testing.T) {
			c := startCluster(t, proc.Config{Shards: 8})
			args := []string{"-p", port(c.Node(1).Addrs().Client)}
			if mode == "cluster" {
				args = []string{"-p", port(c.Node(1).Addrs().Cluster), "--cluster"}
			}
			args = append(args, "-t", "ping,set,get,incr,mset", "-n", strconv.Itoa(requests), "-r", strconv.Itoa(space), "-P", "16", "-c", "50", "--csv")
			out := command(t, "", "redis-benchmark", args...)
			if out.code != 0 {
				t.Fatalf("redis-benchmark %s: exit code %d\n%s\n%s", strings.Join(args, " "), out.code, out.stdout, out.stderr)
			}
			t.Log(out.stdout)

			// INCR goes to counter:__rand_int__ (with a hash tag in cluster mode), one per
			// request: the counters sum up to the requests. SET and MSET write values of
			// three bytes, all of them whole.
			plain := redis.NewClient(&redis.Options{Addr: c.Node(2).Addrs().Client})
			defer plain.Close()
			sum, counters, keys := int64(0), 0, 0
			eachValue(t, plain, "counter:*", func(key, value string) {
				n, err := strconv.ParseInt(value, 10, 64)
				if err != nil {
					t.Errorf("%s holds %q", key, value)
				}
				sum += n
				counters++
			})
			if sum != requests {
				t.Errorf("%d counters sum to %d, there were %d requests", counters, sum, requests)
			}
			eachValue(t, plain, "key:*", func(key, value string) {
				if len(value) != 3 {
					t.Errorf("%s holds %q, want three bytes", key, value)
				}
				keys++
			})
			if keys < requests/2 {
				t.Errorf("%d keys are there after %d SETs of random keys", keys, requests)
			}
		})
	}
}

// eachValue reads every key that matches, in pages.
func eachValue(t *testing.T, rdb *redis.Client, pattern string, each func(key, value string)) {
	t.Helper()
	ctx := timeout(t, time.Minute)
	var keys []string
	for it := rdb.Scan(ctx, 0, pattern, 1000).Iterator(); it.Next(ctx); {
		keys = append(keys, it.Val())
	}
	for page := range slices.Chunk(keys, 1000) {
		values, err := rdb.MGet(ctx, page...).Result()
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range values {
			s, ok := v.(string)
			if !ok {
				t.Fatalf("%s was listed and is not there", page[i])
			}
			each(page[i], s)
		}
	}
}

// TestToolsAwkAndSort asks awk and sort the same questions about the files as jobs
// about the imported records.
func TestToolsAwkAndSort(t *testing.T) {
	c := importData(t)
	for _, tc := range []struct {
		name, shell string
		job         []string
	}{
		{"words", `zcat $WORDS | wc -l`, []string{"--prefix", "word/", "--reduce", "count"}},
		{"bytes in words", `zcat $WORDS | LC_ALL=C awk '{ n += length($0) } END { printf "%.0f\n", n }'`, []string{"--prefix", "word/", "--map", "len", "--reduce", "sum"}},
		{"the longest word", `zcat $WORDS | LC_ALL=C awk 'length($0) > n { n = length($0) } END { print n }'`, []string{"--prefix", "word/", "--map", "len", "--reduce", "max"}},
		{"the last word", `zcat $WORDS | LC_ALL=C sort | tail -1`, []string{"--prefix", "word/", "--reduce", "max"}},
		{"the first word", `zcat $WORDS | LC_ALL=C sort | head -1`, []string{"--prefix", "word/", "--reduce", "min"}},
		{"words with a q", `zcat $WORDS | grep -c '^q'`, []string{"--prefix", "wordkey/q", "--reduce", "count"}},
		{"towns", `zcat $CITIES | tail -n +2 | wc -l`, []string{"--prefix", "city/", "--reduce", "count"}},
		{"people", `zcat $CITIES | awk -F, 'NR > 1 { n += $2 } END { printf "%.0f\n", n }'`, []string{"--prefix", "city/", "--as", "json", "--map", "json:population", "--reduce", "sum"}},
		{"the largest", `zcat $CITIES | awk -F, 'NR > 1 { print $2 }' | sort -n | tail -1`, []string{"--prefix", "city/", "--as", "json", "--map", "json:population", "--reduce", "max"}},
		{"the smallest", `zcat $CITIES | awk -F, 'NR > 1 { print $2 }' | sort -n | head -1`, []string{"--prefix", "city/", "--as", "json", "--map", "json:population", "--reduce", "min"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if strings.HasPrefix(tc.job[1], "wordkey/") && cli(t, c.Node(1), "get", "wordkey/zoo").code != 0 {
				words := command(t, "", "sh", "-c", "zcat "+wordsFile+" | awk '{ printf \"%s\\t1\\n\", $0 }'").must(t)
				command(t, words, abacus, "--addr", c.Node(1).Addrs().Client, "import", "--format", "kv", "--prefix", "wordkey/", "-").must(t)
			}
			want := command(t, "", "env", "WORDS="+wordsFile, "CITIES="+citiesFile, "sh", "-c", tc.shell).must(t)
			got := cli(t, c.Node(2), append([]string{"job", "run"}, tc.job...)...).must(t)
			if strings.TrimSpace(got) != strings.TrimSpace(want) {
				t.Errorf("the job says %q, %s says %q", got, tc.shell, want)
			}
		})
	}
}
