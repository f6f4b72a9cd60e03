package chaos_test

import (
	"bufio"
	"compress/gzip"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/abacusdb/abacus/chaos/proc"
)

const (
	wordsFile  = "../docs/data/words.txt.gz"
	citiesFile = "../docs/data/cities.csv.gz"
)

// importData loads both public data sets, once for the whole run.
func importData(t *testing.T) *proc.Cluster {
	t.Helper()
	c := sharedCluster(t)
	if cli(t, c.Node(1), "get", "data-is-loaded").code == 0 {
		return c
	}
	cli(t, c.Node(1), "import", "--format", "lines", "--prefix", "word/", wordsFile).must(t)
	cli(t, c.Node(2), "import", "--format", "csv", "--prefix", "city/", citiesFile).must(t)
	cli(t, c.Node(1), "put", "data-is-loaded", "1").must(t)
	return c
}

func unzip(t *testing.T, path string) io.Reader {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// TestRealData imports the word list and the table, and compares every
// kind of job over them with a straight loop over the files.
func TestRealData(t *testing.T) {
	c := importData(t)
	run := func(args ...string) string {
		t.Helper()
		return strings.TrimSuffix(cli(t, c.Node(3), append([]string{"job", "run"}, args...)...).must(t), "\n")
	}
	expect := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: the job says %q, the file %q", what, got, want)
		}
	}

	var words []string
	bytes, longest := 0, 0
	for lines := bufio.NewScanner(unzip(t, wordsFile)); lines.Scan(); {
		words = append(words, lines.Text())
		bytes += len(lines.Text())
		longest = max(longest, len(lines.Text()))
	}
	if len(words) < 100_000 {
		t.Fatalf("%d words", len(words))
	}
	sort.Strings(words)
	expect("words", run("--prefix", "word/", "--reduce", "count"), strconv.Itoa(len(words)))
	expect("bytes in words", run("--prefix", "word/", "--map", "len", "--reduce", "sum"), strconv.Itoa(bytes))
	expect("the longest word", run("--prefix", "word/", "--map", "len", "--reduce", "max"), strconv.Itoa(longest))
	expect("the first word", run("--prefix", "word/", "--reduce", "min"), words[0])
	expect("the last word", run("--prefix", "word/", "--reduce", "max"), words[len(words)-1])

	table := csv.NewReader(unzip(t, citiesFile))
	rows, err := table.ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	rows = rows[1:]
	if len(rows) < 100_000 {
		t.Fatalf("%d rows", len(rows))
	}
	people, largest, smallest := int64(0), int64(0), int64(1<<62)
	north := -90.0
	for _, r := range rows {
		n, err := strconv.ParseInt(r[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		people, largest, smallest = people+n, max(largest, n), min(smallest, n)
		lat, err := strconv.ParseFloat(r[2], 64)
		if err != nil {
			t.Fatal(err)
		}
		north = max(north, lat)
	}
	population := []string{"--prefix", "city/", "--as", "json", "--map", "json:population"}
	expect("rows", run("--prefix", "city/", "--reduce", "count"), strconv.Itoa(len(rows)))
	expect("people", run(append(population, "--reduce", "sum")...), strconv.FormatInt(people, 10))
	expect("the largest", run(append(population, "--reduce", "max")...), strconv.FormatInt(largest, 10))
	expect("the smallest", run(append(population, "--reduce", "min")...), strconv.FormatInt(smallest, 10))
	expect("the most northern", run("--prefix", "city/", "--as", "json", "--map", "json:lat", "--reduce", "max"), strconv.FormatFloat(north, 'f', -1, 64))
	mean, err := strconv.ParseFloat(run(append(population, "--reduce", "mean")...), 64)
	if want := float64(people) / float64(len(rows)); err != nil || mean != want {
		t.Errorf("the mean: the job says %v (%v), the file %v", mean, err, want)
	}

	// One row, whole: JSON with the columns in order, numbers as numbers.
	for _, i := range []int{0, len(rows) / 2, len(rows) - 1} {
		name, err := json.Marshal(rows[i][4])
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf(`{"country":"%s","population":%s,"lat":%s,"lon":%s,"name":%s}`, rows[i][0], rows[i][1], rows[i][2], rows[i][3], name)
		found := false
		for _, key := range []string{fmt.Sprintf("city/%09d", i), fmt.Sprintf("city/%09d", i+1)} { // counted from 0 or from 1
			if got := cli(t, c.Node(1), "get", key); got.code == 0 && strings.TrimSuffix(got.stdout, "\n") == want {
				found = true
			}
		}
		if !found {
			t.Errorf("row %d: %q is not there", i, want)
		}
	}
}

// TestExportGivesBackWhatWasImported takes awkward bytes through import and export.
func TestExportGivesBackWhatWasImported(t *testing.T) {
	c := sharedCluster(t)
	lines := map[string]string{"a": "1", "b{tag}": "two words", "ü": "ö", "long": strings.Repeat("x", 100_000), "empty": "", "spaces ": " v "}
	path := writeFile(t, "pairs.tsv", func(w io.Writer) {
		for k, v := range lines {
			fmt.Fprintf(w, "%s\t%s\n", k, v)
		}
	})
	cli(t, c.Node(1), "import", "--format", "kv", "--prefix", "pairs/", path).must(t)
	out := cli(t, c.Node(2), "export", "--format", "kv", "--prefix", "pairs/").must(t)
	got := map[string]string{}
	for line := range strings.Lines(out) {
		k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		got[strings.TrimPrefix(k, "pairs/")] = v
	}
	for k, v := range lines {
		if g, ok := got[k]; !ok || g != v {
			t.Errorf("%q: exported %.50q (%v), imported %.50q", k, g, ok, v)
		}
	}
	if len(got) != len(lines) {
		t.Errorf("%d pairs exported, %d imported", len(got), len(lines))
	}
}
