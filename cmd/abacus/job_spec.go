package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/compute/job"
)

// specSource is where a command has its job from: flags, or a file that is the whole of it.
type specSource struct {
	flags   job.Spec
	timeout time.Duration
	file    string
	ofSpec  map[string]bool // the flags that describe a job
}

// specFlags adds the flags that describe a job, and --file.
func specFlags(cmd *cobra.Command) *specSource {
	src := &specSource{ofSpec: map[string]bool{}}
	s, f := &src.flags, pflag.NewFlagSet("", pflag.ContinueOnError)
	f.StringVar(&s.Prefix, "prefix", "", "only keys that begin with this; default: all keys")
	f.StringVar(&s.As, "as", job.AsString, "what values are: string (or raw), int, float or json")
	f.StringVar(&s.Filter, "filter", "", "only records that meet this, such as 'key suffix .jpg', 'json:age range 18..65', or an expression: 'v.age >= 18'")
	f.StringVar(&s.FlatMap, "flat-map", "", "take each record apart: words, or an expression that makes a list")
	f.StringVar(&s.Map, "map", job.MapValue, "what to take of each record: value, key, len, square, parse, lower, json:PATH, or an expression: 'v.price * v.qty'")
	f.StringVar(&s.GroupBy, "group-by", "", "an answer for each group instead of one: value, key, lower, json:PATH, key-part:SEP:N, or an expression")
	f.StringVar(&s.Reduce, "reduce", job.ReduceCount, "how to combine: sum, count, min, max, mean, variance, stddev, distinct, first, last, top:K, quantile:0.5,0.99, histogram:log2, collect:N")
	f.StringVar(&s.OnError, "on-error", job.OnErrorFail, "what a record does that cannot be read so: fail the job; skip (counted and reported); or count: the same, and more than --max-errors of them fail the job")
	f.Int64Var(&s.MaxErrors, "max-errors", 0, "how many records may be bad; implies --on-error count")
	f.IntVar(&s.MaxGroups, "max-groups", 0, fmt.Sprintf("how many groups there may be, one more fails the job (default %d)", job.DefaultMaxGroups))
	f.StringVar(&s.Priority, "priority", job.PriorityNormal, "which jobs go first where they wait: low, normal or high")
	f.StringVar(&s.Cache, "cache", job.CacheOn, "whether a shard that has not changed may answer as it did the last time: on or off")
	f.StringVar(&s.Name, "name", "", "a name for people")
	f.StringVar(&s.ID, "id", "", "the job's id; submitting twice with one id is one job (default: made up)")
	f.IntVar(&s.TasksPerReplica, "tasks-per-replica", 0, "into how many tasks to cut for each replica (default: by the number of records)")
	f.DurationVar(&src.timeout, "timeout", job.DefaultTimeout, "how long the job may take (here it is not the time of one request)")
	f.VisitAll(func(f *pflag.Flag) { src.ofSpec[f.Name] = true })
	cmd.Flags().AddFlagSet(f)
	cmd.Flags().StringVarP(&src.file, "file", "f", "", "read the specification from this file, YAML or JSON (- for stdin); it is the whole of it")
	return src
}

// spec is the job that the command line describes, with its defaults.
func (src *specSource) spec(cmd *cobra.Command) (job.Spec, error) {
	if cmd.Flags().Changed("key") && !cmd.Flags().Changed("cert") && os.Getenv("ABACUS_CERT") == "" {
		return job.Spec{}, usagef("--key is the file with the key of --cert, and there is no --cert: to group records, use --group-by")
	}
	if cmd.Flags().Changed("file") {
		var err error
		cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if f.Changed && src.ofSpec[f.Name] {
				err = usagef("--file and --%s exclude each other: the file is the whole specification", f.Name)
			}
		})
		if err != nil {
			return job.Spec{}, err
		}
		return readSpec(src.file, cmd.InOrStdin())
	}
	if src.timeout < time.Millisecond || src.timeout > job.MaxTimeout {
		return job.Spec{}, usagef("--timeout %v: the time of the job must be within 1ms..%v", src.timeout, job.MaxTimeout)
	}
	s := src.flags
	s.TimeoutMillis = src.timeout.Milliseconds()
	if cmd.Flags().Changed("max-errors") && !cmd.Flags().Changed("on-error") {
		s.OnError = job.OnErrorCount
	}
	s = s.WithDefaults()
	if err := s.Validate(); err != nil {
		var wrong *job.SpecError
		if errors.As(err, &wrong) { // the field has the flag's name, but for the dashes
			return s, usagef("--%s%s", strings.ReplaceAll(wrong.Field, "_", "-"), strings.TrimPrefix(err.Error(), wrong.Field))
		}
		return s, err
	}
	return s, nil
}

// readSpec reads a specification from a file. Its errors say the line.
func readSpec(name string, stdin io.Reader) (job.Spec, error) {
	in, _, err := openInput(name, stdin)
	if err != nil {
		return job.Spec{}, err
	}
	defer in.Close()
	text, err := io.ReadAll(io.LimitReader(in, job.MaxSpecBytes+1))
	if err != nil {
		return job.Spec{}, fmt.Errorf("read %s: %w", name, err)
	}
	if name == "-" {
		name = "stdin"
	}
	spec, line, err := parseSpec(text)
	switch {
	case err != nil && line > 0:
		return spec, usagef("%s:%d: %w", name, line, err)
	case err != nil:
		return spec, usagef("%s: %w", name, err)
	}
	return spec, nil
}

// parseSpec reads a specification in JSON or YAML. With an error comes the line that it is about, 0 if that is the whole.
func parseSpec(text []byte) (spec job.Spec, line int, err error) {
	lines := map[string]int{} // of the fields
	if json.Valid(text) || len(text) > job.MaxSpecBytes {
		for _, name := range specFields() {
			if at := bytes.Index(text, []byte(`"`+name+`"`)); at >= 0 {
				lines[name] = 1 + bytes.Count(text[:at], []byte("\n"))
			}
		}
	} else if text, line, err = specOfYAML(text, lines); err != nil {
		return spec, line, err
	}
	spec, err = job.ParseSpec(text)
	var wrong *job.SpecError
	if errors.As(err, &wrong) {
		if line = lines[wrong.Field]; line == 0 && wrong.Field != "spec" {
			if at := bytes.Index(text, []byte(`"`+wrong.Field+`"`)); at >= 0 { // a field that there is not
				line = 1 + bytes.Count(text[:at], []byte("\n"))
			}
		}
	}
	return spec, line, err
}

// specFields are the names of a specification's fields, in its order.
func specFields() (names []string) {
	for _, f := range reflect.VisibleFields(reflect.TypeFor[job.Spec]()) {
		names = append(names, fieldName(f))
	}
	return names
}

func fieldName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}

// specOfYAML turns a mapping of YAML into the same in JSON, and notes where its fields are. A value is taken as it is
// written: "prefix: 12" is a text, and "on" is not true.
func specOfYAML(text []byte, lines map[string]int) (asJSON []byte, line int, err error) {
	numbers := map[string]bool{}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[job.Spec]()) {
		numbers[fieldName(f)] = f.Type.Kind() != reflect.String
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, 0, errors.New("it is empty; a job needs at least: reduce: count")
	} else if err != nil {
		return nil, 0, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, cmp.Or(more.Line, 1), errors.New("more than one document: a file has one job")
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, root.Line, errors.New("it must be a mapping, such as:\nprefix: num/\nas: int\nreduce: sum")
	}
	fields := map[string]any{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		name, value := root.Content[i].Value, root.Content[i+1]
		at := root.Content[i].Line
		number, known := numbers[name]
		switch {
		case !known:
			return nil, at, fmt.Errorf("unknown field %q (known are %s)", name, strings.Join(specFields(), ", "))
		case lines[name] > 0:
			return nil, at, fmt.Errorf("field %s is there twice, first in line %d", name, lines[name])
		case value.Kind != yaml.ScalarNode:
			return nil, value.Line, fmt.Errorf("%s: it must be one value", name)
		}
		lines[name] = at
		text := value.Value
		if value.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
			text = strings.TrimSuffix(text, "\n") // which every block has
		}
		switch {
		case value.Tag == "!!null":
		case !number:
			fields[name] = text
		default:
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return nil, value.Line, fmt.Errorf("%s: %q is no whole number", name, text)
			}
			fields[name] = n
		}
	}
	asJSON, err = json.Marshal(fields)
	return asJSON, 0, err
}

// wholeSpec is a job's specification as its flags, with those that were left to their defaults.
func wholeSpec(s job.Spec) string {
	s.TimeoutMillis = s.Timeout().Milliseconds()
	s.Priority, s.Cache = cmp.Or(s.Priority, job.PriorityNormal), cmp.Or(s.Cache, job.CacheOn)
	if s.GroupBy != "" {
		s.MaxGroups = cmp.Or(s.MaxGroups, job.DefaultMaxGroups)
	}
	line := specLine(s)
	if s.OnError == job.OnErrorFail {
		line += " --on-error " + s.OnError
	}
	line += " --timeout " + s.Timeout().String()
	if s.Name != "" {
		line += " --name " + proc.Shell([]string{shown(s.Name)})
	}
	return line
}

// specLine is what a job does, as flags.
func specLine(s job.Spec) string {
	var out []string
	add := func(flag, value string, always bool) {
		if value != "" || always {
			out = append(out, "--"+flag+" "+proc.Shell([]string{shown(value)}))
		}
	}
	number := func(flag string, n int64) {
		if n != 0 {
			add(flag, strconv.FormatInt(n, 10), true)
		}
	}
	add("prefix", s.Prefix, true)
	add("as", s.As, true)
	add("filter", s.Filter, false)
	add("flat-map", s.FlatMap, false)
	add("map", s.Map, true)
	add("group-by", s.GroupBy, false)
	add("reduce", s.Reduce, true)
	if s.OnError != job.OnErrorFail && s.MaxErrors == 0 {
		add("on-error", s.OnError, false)
	}
	number("max-errors", s.MaxErrors)
	number("max-groups", int64(s.MaxGroups))
	add("priority", s.Priority, false)
	add("cache", s.Cache, false)
	number("tasks-per-replica", int64(s.TasksPerReplica))
	return strings.Join(out, " ")
}

// printExplanation says what a job would do.
func (a *app) printExplanation(cmd *cobra.Command, e job.Explanation) error {
	out := cmd.OutOrStdout()
	g := grid{head: []string{"SHARD", "SLOTS", "MASTER", "READ BY", "RECORDS", "BYTES", "TASKS"}}
	if a.output != formatTable && a.output != formatWide {
		for _, s := range e.Shards {
			g.add(s.Shard, s.Slots, s.Master, strings.Join(s.Nodes, " "), s.Records, s.Bytes, s.Tasks)
		}
		return a.print(out, e, g)
	}
	most := 24
	if a.output == formatWide {
		most = 1 << 20
	}
	fmt.Fprintf(out, "spec   %s\nreads  at most %s, %s, in about %s on %s", wholeSpec(e.Spec), plural(e.Records, "record"), byteCount(e.Bytes), plural(int64(e.Tasks), "task"), plural(int64(len(e.Nodes)), "node"))
	if len(e.Nodes) > 0 {
		fmt.Fprintf(out, ": %s", strings.Join(e.Nodes, " "))
	}
	fmt.Fprint(out, "\n\n")
	for _, s := range e.Shards {
		g.add(s.Shard, short(s.Slots, most), orDash(s.Master), orDash(strings.Join(s.Nodes, " ")), count(s.Records), byteCount(s.Bytes), s.Tasks)
	}
	if err := g.writeTable(out); err != nil {
		return err
	}
	for _, note := range e.Notes {
		fmt.Fprintln(cmd.ErrOrStderr(), "note:", note)
	}
	return nil
}
