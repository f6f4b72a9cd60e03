// Command abacus is the command-line client of Abacus: keys and values, import
// and export, jobs, the cluster's state, a load generator, and `abacus dev`,
// which runs a cluster on this machine.
//
// Results go to stdout and everything else to stderr, so that both can be used
// in scripts; exit.go lists the exit codes.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/client"
)

// version is set by the linker (see Makefile).
var version = ""

const defaultAddr = "127.0.0.1:7401"

// giveUpRefused is how long a command tries nodes none of which runs: not long,
// for somebody waits who may have mistaken the address.
const giveUpRefused = 1500 * time.Millisecond

// self is how the user calls this program, for advice that can be pasted.
var self = "abacus"

func main() {
	self = proc.Shell([]string{os.Args[0]})
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is main with its surroundings as arguments.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{}
	root := a.command()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	refuseUnknownCommands(root)
	cmd, err := root.ExecuteContextC(context.Background())
	if err != nil && !a.started { // cobra refused the command line
		err = &usageError{err: err}
	}
	code := exitCode(err)
	if err != nil && !errors.Is(err, errQuiet) {
		fmt.Fprintf(stderr, "abacus: %v\n", err)
		if hint := hintFor(err, a, cmd); hint != "" {
			fmt.Fprintln(stderr, hint)
		}
	}
	return code
}

// app is what the global flags say.
type app struct {
	addrs   string
	output  string
	timeout time.Duration
	// user, tokenFile and token: see readToken.
	user, tokenFile, token string
	tls                    bool
	files                  client.TLSFiles
	// consistency is of the commands that read; empty where there is no such flag.
	consistency string

	usual   string // the addresses without --addr
	started bool   // the command line was good and the command runs
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use: "abacus",
		// For usage lines; the name proper stays, for completion goes by it.
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: self},
		Short:       "Use an Abacus cluster: keys and values, jobs over them, and how the cluster is",
		Long: `abacus talks to an Abacus cluster: a durable, linearizable key-value database
whose replicas also compute jobs over the keys.

Results go to stdout, everything else to stderr; with -o json too, errors are lines of
text there, and the exit code is for programs. Exit codes: 0 done, 1 failed
(no such key, no records, a sick cluster), 2 wrong usage, 3 job cancelled,
4 no such job, 5 cluster unavailable (nothing was done), 6 outcome unknown,
7 not let in or not allowed, 124 time-out, 130 interrupted.`,
		Example: `  abacus dev up --detach                  # a cluster on this machine
  abacus put greeting hello
  abacus get greeting
  abacus import words.txt --prefix word/
  abacus job run --prefix word/ --map len --reduce max
  abacus status`,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkFormat(cmd, a.output); err != nil {
				return err
			}
			if a.timeout <= 0 {
				return fmt.Errorf("--timeout %v: it must be more than 0", a.timeout)
			}
			a.started = true
			return nil
		},
	}
	root.Version = versionString()
	root.SetVersionTemplate("abacus {{.Version}}\n")
	a.usual = cmp.Or(os.Getenv("ABACUS_ADDR"), defaultAddr)
	f := root.PersistentFlags()
	f.StringVar(&a.addrs, "addr", a.usual, "client address of a node, or several with commas (environment: ABACUS_ADDR)")
	f.StringVar(&a.user, "user", os.Getenv("ABACUS_USER"), "user whose token is given; without it, the user whose token it is (environment: ABACUS_USER)")
	f.StringVar(&a.tokenFile, "token-file", "", "file with the token of a user, for clusters that have users (or the token itself in the environment: ABACUS_TOKEN)")
	f.StringVarP(&a.output, "output", "o", formatTable, "how results are written: table or json; for jobs also wide, yaml, csv or name, where it makes sense")
	f.DurationVar(&a.timeout, "timeout", 10*time.Second, "how long one request may take, attempts on several nodes included")
	f.BoolVar(&a.tls, "tls", os.Getenv("ABACUS_TLS") != "", "speak TLS; --ca and --cert imply it, and so does an address rediss://HOST:PORT (environment: ABACUS_TLS=1)")
	f.StringVar(&a.files.CA, "ca", os.Getenv("ABACUS_CA"), "file with the CAs that vouch for the nodes (default: those of the system; environment: ABACUS_CA)")
	f.StringVar(&a.files.Cert, "cert", os.Getenv("ABACUS_CERT"), "file with a certificate that says who you are (environment: ABACUS_CERT)")
	f.StringVar(&a.files.Key, "key", os.Getenv("ABACUS_KEY"), "file with the key of --cert (environment: ABACUS_KEY)")
	f.StringVar(&a.files.ServerName, "server-name", os.Getenv("ABACUS_SERVER_NAME"), "name that the nodes' certificates must be for (default: the host of each address; environment: ABACUS_SERVER_NAME)")
	root.SetFlagErrorFunc(flagError)
	cobra.AddTemplateFunc("plainBools", plainBools)
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages |", ".FlagUsages | plainBools |"))

	root.AddGroup(&cobra.Group{ID: "keys", Title: "Keys and values:"}, &cobra.Group{ID: "jobs", Title: "Jobs:"}, &cobra.Group{ID: "cluster", Title: "The cluster:"})
	group := func(id string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	group("keys", newGetCommand(a), newPutCommand(a), newDelCommand(a), newIncrCommand(a), newCASCommand(a), newScanCommand(a), newImportCommand(a), newExportCommand(a))
	group("jobs", newJobCommand(a))
	group("cluster", newStatusCommand(a), newPingCommand(a), newNodeCommand(a), newShardCommand(a), newSlotsCommand(a), newRebalanceCommand(a), newRecoverCommand(a), newUserCommand(a), newUpgradeCommand(a), newBackupCommand(a), newBenchCommand(a), newDevCommand(), newCertCommand())
	root.AddCommand(newVersionCommand(a))
	if err := root.RegisterFlagCompletionFunc("output", completeFormats); err != nil {
		panic(err) // the flag is there: see above
	}
	completeValues(root)
	return root
}

// refuseUnknownCommands makes "abacus dev nosuch" wrong usage: left to itself,
// cobra prints the help of a command that only has subcommands, and succeeds.
// It comes after the outputs are set, which cobra's own commands keep.
func refuseUnknownCommands(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch {
		case c.Name() == "help":
			c.Args = func(_ *cobra.Command, args []string) error {
				topic, rest, err := root.Find(args)
				if err == nil && len(rest) > 0 {
					err = unknownCommand(topic, rest)
				}
				return err
			}
		case c.HasSubCommands() && !c.Runnable():
			c.Args = unknownCommand
			c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	}
}

// unknownCommand refuses all arguments of a command that only has subcommands.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
	if near := nearest(cmd, args[0]); near != "" {
		err = fmt.Errorf("%w: did you mean %s?", err, near)
	}
	return err
}

// flagError says what to do about flags that there are not, and about values that look like flags.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return err
	}
	if args := cmd.Flags().Args(); cmd.HasSubCommands() && len(args) > 0 { // it is the flag of a command that there is not
		return unknownCommand(cmd, args)
	}
	name := cmp.Or(unknown.GetSpecifiedShortnames(), unknown.GetSpecifiedName())
	if near := nearestFlag(cmd, name); near != "" {
		err = fmt.Errorf("%w: did you mean --%s?", err, near)
	}
	if unknown.GetSpecifiedShortnames() != "" {
		return fmt.Errorf("%w (a value that begins with - goes behind --, as in: %s ... -- -5)", err, cmd.CommandPath())
	}
	return err
}

// nearestFlag is the flag of a command that a name is a slip of the hand away from.
func nearestFlag(cmd *cobra.Command, name string) string {
	if len(name) < 3 {
		return ""
	}
	flags := &cobra.Command{} // cobra compares names of commands
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			flags.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
		}
	})
	return nearest(flags, name)
}

// nearest is the command under cmd that a name is a slip of the hand away from: it itself, else one that begins with it, else the only one
// that differs in two letters.
func nearest(cmd *cobra.Command, name string) string {
	cmd.SuggestionsMinimumDistance = 2
	near := cmd.SuggestionsFor(name)
	if slices.Contains(near, name) {
		return name
	}
	if i := slices.IndexFunc(near, func(s string) bool { return strings.HasPrefix(s, name) }); i >= 0 {
		return near[i]
	}
	if len(near) == 1 {
		return near[0]
	}
	return ""
}

// open connects to the cluster of the flags.
func (a *app) open() (*client.Client, error) {
	var cfg client.Config
	if err := a.readAs(&cfg); err != nil {
		return nil, err
	}
	return a.openWith(cfg)
}

// consistencyFlag adds --consistency to a command that reads.
func (a *app) consistencyFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.consistency, "consistency", "linearizable",
		"linearizable; or stale: what the node asked has itself, stale:2s if it surely has all that is older than 2s")
}

// readAs turns --consistency into the client's settings.
func (a *app) readAs(cfg *client.Config) error {
	mode, bound, bounded := strings.Cut(a.consistency, ":")
	switch {
	case mode == "" || mode == "linearizable" && !bounded:
		return nil
	case mode != "stale":
		return usagef("--consistency %s: it must be linearizable, stale or stale:DURATION", a.consistency)
	}
	cfg.Stale = true
	if bounded {
		d, err := time.ParseDuration(bound)
		if err != nil || d < time.Millisecond {
			return usagef("--consistency %s: want a duration of at least 1ms, as stale:500ms", a.consistency)
		}
		cfg.MaxStale = d
	}
	return nil
}

func (a *app) openWith(cfg client.Config) (*client.Client, error) {
	for _, addr := range strings.Split(a.addrs, ",") {
		addr, secure := strings.CutPrefix(strings.TrimSpace(addr), "rediss://")
		a.tls = a.tls || secure
		if addr != "" {
			cfg.Addrs = append(cfg.Addrs, addr)
		}
	}
	if err := a.readToken(); err != nil {
		return nil, err
	}
	cfg.User, cfg.Token = a.user, a.token
	if a.tls || a.files != (client.TLSFiles{}) {
		cfg.TLSFiles = &a.files
	}
	cfg.Timeout = a.timeout
	cfg.GiveUpRefused = giveUpRefused
	c, err := client.Open(cfg)
	if err != nil {
		if cfg.TLSFiles != nil && errors.As(err, new(*os.PathError)) {
			return nil, &usageError{err: err}
		}
		return nil, &usageError{err: fmt.Errorf("--addr %s: %w", a.addrs, err)}
	}
	return c, nil
}

// try is a command as its user would type it, for advice.
func (a *app) try(command string) string {
	if a.addrs != a.usual {
		command += " " + proc.Shell([]string{"--addr", a.addrs})
	}
	if a.tokenFile != "" {
		command += " " + proc.Shell([]string{"--token-file", a.tokenFile})
	}
	return self + " " + command
}

func (a *app) json() bool { return a.output == "json" }

// withClient runs f with a client and a context that ends with SIGINT or SIGTERM.
func (a *app) withClient(cmd *cobra.Command, f func(ctx context.Context, c *client.Client) error) error {
	c, err := a.open()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	return f(ctx, c)
}

// interruptible ends the context at the first SIGINT or SIGTERM; a second one
// ends the process as it would without us.
func interruptible(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case <-sig:
			signal.Stop(sig)
			cancel(errInterrupted)
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(sig)
		cancel(nil)
	}
}

// terminal says whether w (or r) is one.
func terminal(f any) bool {
	file, ok := f.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

func newVersionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.json() {
				return writeJSON(cmd.OutOrStdout(), map[string]string{"version": versionString()})
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "abacus", versionString())
			return err
		},
	}
}

func versionString() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
