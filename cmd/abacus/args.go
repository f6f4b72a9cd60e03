package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/client"
	"github.com/abacusdb/abacus/compute/job"
)

// takes refuses other numbers of arguments. Too many are most often a value with
// spaces that the shell has taken apart.
func takes(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		what := plural(int64(most), "argument")
		if least != most {
			what = fmt.Sprintf("%d or %s", least, what)
		}
		switch {
		case len(args) < least:
			return fmt.Errorf("%s takes %s, received %d", nameOf(cmd), what, len(args))
		case len(args) > most && most > 1:
			joined := append(slices.Clone(args[:most-1]), strings.Join(args[most-1:], " "))
			return fmt.Errorf("%s takes %s, received %d: quote a value with spaces, as in: %s %s", nameOf(cmd), what, len(args), cmd.CommandPath(), proc.Shell(joined))
		case len(args) > most:
			return fmt.Errorf("%s takes %s, received %d: quote one with spaces", nameOf(cmd), what, len(args))
		}
		return nil
	}
}

// withKey is for commands whose first argument is a key, or each of them.
func withKey(next cobra.PositionalArgs, all bool) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := next(cmd, args); err != nil {
			return err
		}
		if args[0] == "" || all && slices.Contains(args, "") {
			return fmt.Errorf("%s: the key is empty", nameOf(cmd))
		}
		return nil
	}
}

// takesSome refuses to be called without arguments.
func takesSome(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("%s takes 1 argument or more, received none", nameOf(cmd))
	}
	return nil
}

// nameOf is a command's name behind that of the program, as "job run".
func nameOf(cmd *cobra.Command) string {
	return strings.TrimPrefix(cmd.CommandPath(), cmd.Root().CommandPath()+" ")
}

// noArgs is cobra.NoArgs for people: that calls an argument an unknown command.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("%s takes no arguments, received %s", nameOf(cmd), shown(args[0]))
}

// noArgsButPrefix is noArgs for commands to which a prefix goes as a flag.
func noArgsButPrefix(cmd *cobra.Command, args []string) error {
	if err := noArgs(cmd, args); err != nil {
		return fmt.Errorf("%w: did you mean --prefix %s?", err, proc.Shell([]string{shown(args[0])}))
	}
	return nil
}

// flagValues are the words that a flag takes, by its name; what differs between
// commands stands behind the command's name.
var flagValues = map[string][]string{
	"consistency": {"linearizable", "stale", "stale:1s"},
	"as":          {job.AsString, job.AsRaw, job.AsInt, job.AsFloat, job.AsJSON},
	"filter":      {"key prefix ", "key suffix ", "key re ", "prefix ", "suffix ", "re ", "range ", "json:"},
	"flat-map":    {job.FlatMapWords},
	"map":         {job.MapValue, job.MapKey, job.MapLen, job.MapSquare, job.MapParse, job.MapLower, job.MapJSON},
	"group-by":    {job.GroupKey, job.GroupValue, job.GroupLower, job.GroupPair, job.GroupJSON, job.GroupKeyPart},
	"reduce": {job.ReduceSum, job.ReduceCount, job.ReduceMin, job.ReduceMax, job.ReduceMean, job.ReduceVariance, job.ReduceStddev,
		job.ReduceDistinct, job.ReduceFirst, job.ReduceLast, job.ReduceTop + "10", job.ReduceQuantile + "0.5,0.99", job.ReduceHistogram + "log2", job.ReduceCollect + "100"},
	"on-error":      {job.OnErrorFail, job.OnErrorSkip, job.OnErrorCount},
	"priority":      {job.PriorityLow, job.PriorityNormal, job.PriorityHigh},
	"cache":         {job.CacheOn, job.CacheOff},
	"for":           {string(job.Succeeded), finished},
	"state":         {string(job.Queued), string(job.Running), string(job.Succeeded), string(job.Failed), string(job.Cancelled)},
	"op":            {"put", "get", "mixed", "incr"},
	"dist":          {"uniform", "zipfian"},
	"auto":          {"on", "off"},
	"import format": {"lines", "csv", "jsonl", "kv"},
	"export format": {"kv", "jsonl"},
}

// completeValues tells the shell which words flags and arguments take, and that
// file names fit only where a file is meant.
func completeValues(cmd *cobra.Command) {
	if cmd.ValidArgsFunction == nil && cmd.Name() != "import" && !strings.HasPrefix(nameOf(cmd), "backup ") {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	complete := func(f *pflag.Flag) {
		if _, own := cmd.GetFlagCompletionFunc(f.Name); own {
			return
		}
		var err error
		words, known := flagValues[f.Name]
		if !known {
			words, known = flagValues[cmd.Name()+" "+f.Name]
		}
		switch {
		case known:
			rule := cobra.ShellCompDirectiveNoFileComp
			if slices.Contains([]string{"map", "group-by", "filter", "reduce"}, f.Name) {
				rule |= cobra.ShellCompDirectiveNoSpace // an argument follows some
			}
			err = cmd.RegisterFlagCompletionFunc(f.Name, cobra.FixedCompletions(words, rule))
		case f.Name == "dir" || f.Name == "data":
			err = cmd.MarkFlagDirname(f.Name)
		case !slices.Contains([]string{"file", "token-file", "abacusd", "ca", "cert", "key"}, f.Name):
			err = cmd.RegisterFlagCompletionFunc(f.Name, cobra.NoFileCompletions)
		}
		if err != nil {
			panic(fmt.Sprintf("completion of --%s of %s: %v", f.Name, cmd.Name(), err)) // the flag is there: it was just visited
		}
	}
	cmd.LocalNonPersistentFlags().VisitAll(complete)
	cmd.PersistentFlags().VisitAll(complete)
	for _, c := range cmd.Commands() {
		completeValues(c)
	}
}

// boolNoise is what pflag writes behind each flag that takes no value.
const boolNoise = "[=true|false]"

// plainBools takes the noise out of a table of flags and closes the gap.
func plainBools(table string) string {
	if !strings.Contains(table, boolNoise) {
		return table
	}
	lines := strings.Split(strings.ReplaceAll(table, boolNoise, strings.Repeat(" ", len(boolNoise))), "\n")
	gap := len(boolNoise)
	for _, l := range lines {
		if _, rest, ok := strings.Cut(l, "--"); ok {
			_, rest, _ = strings.Cut(rest, "   ")
			gap = min(gap, len(rest)-len(strings.TrimLeft(rest, " ")))
		}
	}
	for i, l := range lines {
		if at := strings.Index(l, "--"); at >= 0 {
			at += strings.Index(l[at:], "   ")
			lines[i] = l[:at] + l[at+gap:]
		}
	}
	return strings.Join(lines, "\n")
}

// completeJobs offers the ids of the jobs that the cluster remembers and that fit, if it says
// so at once: for one argument, or for any number.
func completeJobs(a *app, many bool, fits func(job.State) bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 && !many {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c, err := a.openWith(client.Config{})
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
		defer cancel()
		jobs, err := c.Jobs(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []string
		for _, r := range jobs {
			if !fits(r.State) || slices.Contains(args, r.ID) {
				continue
			}
			out = append(out, cobra.CompletionWithDesc(r.ID, shown(strings.TrimSpace(string(r.State)+" "+r.Spec.Name))))
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// Which jobs a command is about.
func anyJob(job.State) bool          { return true }
func endedJob(s job.State) bool      { return s.Finished() }
func unfinishedJob(s job.State) bool { return !s.Finished() }

// completeNodes offers the numbers of the nodes of the cluster in a directory
// that are not named yet.
func completeNodes(dir *string) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		c, err := proc.Open(*dir)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Release()
		var out []string
		for _, n := range c.Nodes() {
			if s := strconv.Itoa(n.N); !slices.Contains(args, s) && !slices.Contains(args, n.ID()) {
				out = append(out, s)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
