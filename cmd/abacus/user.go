package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/client"
)

func newUserCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "user",
		Short: "Users: who may read, write, run jobs and administer",
		Long: `Users of the cluster. A user has a token, which clients authenticate with, and rights to the keys that begin with a
prefix; an admin may do everything. While there is no admin, everybody who reaches a node may do everything; from the first one on,
every connection has to authenticate. Make the users of programs before, and give those their tokens: a cluster that checks nobody
takes any token, and none of their connections is lost when it begins to.

A token is shown once, when it is made, and cannot be asked for again: the cluster keeps its SHA-256 only. Commands take one from the
environment (ABACUS_TOKEN) or from a file (--token-file), never from the command line, which others on this machine can read.

A change holds on every living node when the command returns; nodes that do not answer are named, and follow when they are back.`,
		Example: `  abacus user create admin --admin > admin.token     # from here on users are checked
  export ABACUS_TOKEN=$(cat admin.token)
  abacus user create shop --write cart/ --read price/ --jobs
  abacus user rotate shop                            # the old token is good until --end
  abacus user rotate shop --end
  abacus user revoke shop --read price/
  abacus user disable shop`,
	}
	cmd.AddCommand(newUserCreateCommand(a), newUserListCommand(a), newUserShowCommand(a),
		newUserRightsCommand(a, "grant", "Give rights to a user", "--write lets read, too. Rights that the user has stay."),
		newUserRightsCommand(a, "revoke", "Take rights from a user, of open connections too", "--read takes all rights to the prefix, --write leaves reading. It fails where the user may do it all the same, by a right to a shorter prefix."),
		newUserRotateCommand(a),
		newUserVerb(a, "disable", "Let nobody in as a user, and refuse what its open connections ask", "is disabled"),
		newUserVerb(a, "enable", "Let a user in again", "may come in again"),
		newUserVerb(a, "delete", "Take a user out", "is deleted"),
		newUserOffCommand(a))
	return cmd
}

// rightsFlags are what a user is given, or loses.
type rightsFlags struct {
	admin, jobs bool
	read, write []string
}

func (r *rightsFlags) bind(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&r.admin, "admin", false, "may do everything")
	f.BoolVar(&r.jobs, "jobs", false, "may run jobs over the keys that it may read")
	f.StringArrayVar(&r.read, "read", nil, `prefix of keys to read; "" is that of all; may be repeated`)
	f.StringArrayVar(&r.write, "write", nil, "prefix of keys to write and to read; may be repeated")
}

// words are the rights as the cluster takes them.
func (r *rightsFlags) words() (words []string) {
	if r.admin {
		words = append(words, "admin")
	}
	if r.jobs {
		words = append(words, "jobs")
	}
	for _, p := range r.read {
		words = append(words, "read:"+p)
	}
	for _, p := range r.write {
		words = append(words, "write:"+p)
	}
	return words
}

func newUserCreateCommand(a *app) *cobra.Command {
	var rights rightsFlags
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a user, and print its token: the only time",
		Long: `Make a user with rights, and print its token on stdout: the only time. The token is 256 random bits made here; the cluster gets
its SHA-256. From the first admin on, every connection has to authenticate.`,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				return a.newToken(ctx, cmd, c, args[0], "user "+args[0]+" is made", func(hash string) []string {
					return append([]string{"create", args[0], hash}, rights.words()...)
				})
			})
		},
	}
	rights.bind(cmd)
	return cmd
}

// newToken makes a token, has the cluster take its hash, and prints it.
func (a *app) newToken(ctx context.Context, cmd *cobra.Command, c *client.Client, user, done string, words func(hash string) []string) error {
	token, hash := client.NewToken()
	change, err := c.ChangeUsers(ctx, words(hash)...)
	if err != nil {
		return err
	}
	if a.json() {
		err = writeJSON(cmd.OutOrStdout(), map[string]any{"name": user, "token": token, "epoch": change.Epoch, "on": change.On, "not_heard": change.NotHeard})
	} else {
		_, err = fmt.Fprintln(cmd.OutOrStdout(), token)
	}
	if err != nil {
		return fmt.Errorf("%s, but its token could not be written: make another with %s: %w", done, a.try("user rotate "+user+" --now"), err)
	}
	info := cmd.ErrOrStderr()
	fmt.Fprintf(info, "%s; this is its token, which cannot be asked for again\n", done)
	switch {
	case !change.On:
		fmt.Fprintln(info, "nothing is checked yet: that begins with the first admin, who is made with", a.try("user create NAME --admin"))
	case a.token == "":
		fmt.Fprintln(info, "every connection has to authenticate from now on: put the token into ABACUS_TOKEN, or its file behind --token-file")
	}
	sayNotHeard(info, change)
	return nil
}

// sayNotHeard names the nodes that go by older users.
func sayNotHeard(w io.Writer, change client.UsersChange) {
	if len(change.NotHeard) > 0 {
		fmt.Fprintf(w, "not heard of it have: %s; until they answer again they go by the users of before\n", strings.Join(change.NotHeard, ", "))
	}
}

// changeUsers changes users and says what that means.
func (a *app) changeUsers(cmd *cobra.Command, done string, words ...string) error {
	return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
		change, err := c.ChangeUsers(ctx, words...)
		if err != nil {
			return err
		}
		sayNotHeard(cmd.ErrOrStderr(), change)
		if a.json() {
			return writeJSON(cmd.OutOrStdout(), change)
		}
		return a.carriedOut(cmd, done)
	})
}

func newUserRightsCommand(a *app, verb, short, long string) *cobra.Command {
	var rights rightsFlags
	cmd := &cobra.Command{
		Use:               verb + " NAME",
		Short:             short,
		Long:              short + ". " + long,
		Args:              takes(1, 1),
		ValidArgsFunction: completeUsers(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			words := rights.words()
			if len(words) == 0 {
				return usagef("user %s %s: of what? give --read PREFIX, --write PREFIX, --jobs or --admin", verb, args[0])
			}
			return a.changeUsers(cmd, fmt.Sprintf("done; see: %s", a.try("user show "+args[0])), append([]string{verb, args[0]}, words...)...)
		},
	}
	rights.bind(cmd)
	return cmd
}

func newUserRotateCommand(a *app) *cobra.Command {
	var now, end bool
	cmd := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Give a user a new token, and print it: the only time",
		Long: `Give a user a new token, and print it on stdout: the only time. The token before stays good, so that clients can be given the new one
one after the other; then end it with --end. With --now it is no good any more at once: for one that others may have seen.`,
		Args:              takes(1, 1),
		ValidArgsFunction: completeUsers(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			if now && end {
				return usagef("--now makes a token and --end makes none: give one of them")
			}
			if end {
				return a.changeUsers(cmd, "the newest token of user "+name+" is its only one", "rotated", name)
			}
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				done := "user " + name + " has a new token; the old one is good until: " + a.try("user rotate "+name+" --end")
				words := []string{"rotate", name}
				if now {
					done = "user " + name + " has a new token, and no other"
				}
				return a.newToken(ctx, cmd, c, name, done, func(hash string) []string {
					if now {
						return append(words, hash, "now")
					}
					return append(words, hash)
				})
			})
		},
	}
	cmd.Flags().BoolVar(&now, "now", false, "the old token is no good any more at once")
	cmd.Flags().BoolVar(&end, "end", false, "make no token: the old one is no good any more")
	return cmd
}

func newUserVerb(a *app, verb, short, done string) *cobra.Command {
	return &cobra.Command{
		Use:               verb + " NAME",
		Short:             short,
		Args:              takes(1, 1),
		ValidArgsFunction: completeUsers(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeUsers(cmd, "user "+args[0]+" "+done, verb, args[0])
		},
	}
}

func newUserOffCommand(a *app) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "off",
		Short: "Take all users out: whoever reaches a node may do everything again",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !yes {
				return usagef("user off deletes all users, and lets everybody who reaches a node do everything: say --yes if that is meant")
			}
			return a.changeUsers(cmd, "there are no users any more: whoever reaches a node may do everything", "off")
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "it is meant")
	return cmd
}

func newUserListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List users with their rights",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				users, err := c.Users(ctx)
				if err != nil {
					return err
				}
				if a.json() {
					return writeJSON(cmd.OutOrStdout(), users)
				}
				if len(users) == 0 {
					fmt.Fprintln(cmd.ErrOrStderr(), "there are no users: whoever reaches a node may do everything; that ends with the first admin:", a.try("user create NAME --admin"))
				}
				t := newTable(cmd.OutOrStdout(), "USER", "STATE", "MAY", "READ", "WRITE", "TOKENS")
				for _, u := range users {
					read, write := prefixes(u)
					t.row(u.Name, userState(u), userMay(u), read, write, len(u.Tokens))
				}
				return t.flush()
			})
		},
	}
}

func newUserShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME",
		Short:             "Show a user, its rights and its tokens' ids and ages",
		Args:              takes(1, 1),
		ValidArgsFunction: completeUsers(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd, func(ctx context.Context, c *client.Client) error {
				users, err := c.Users(ctx)
				if err != nil {
					return err
				}
				for _, u := range users {
					if u.Name != args[0] {
						continue
					}
					if a.json() {
						return writeJSON(cmd.OutOrStdout(), u)
					}
					return showUser(cmd.OutOrStdout(), u)
				}
				return &exitError{code: exitNotFound, err: fmt.Errorf("there is no user %s", shown(args[0]))}
			})
		},
	}
}

func showUser(w io.Writer, u client.User) error {
	read, write := prefixes(u)
	t := newTable(w, "USER", u.Name)
	t.row("state", userState(u))
	t.row("may", userMay(u))
	t.row("read", read)
	t.row("write", write)
	for _, token := range u.Tokens {
		t.row("token", fmt.Sprintf("%s… of %s", token.ID, token.Created.Local().Format(time.DateTime)))
	}
	return t.flush()
}

func userState(u client.User) string {
	if u.Disabled {
		return "DISABLED"
	}
	return "enabled"
}

func userMay(u client.User) string {
	switch {
	case u.Admin:
		return "everything"
	case u.Jobs:
		return "run jobs"
	}
	return "-"
}

// prefixes are those that a user may only read, and those that he may write.
func prefixes(u client.User) (read, write string) {
	var r, w []string
	for _, right := range u.Rights {
		if p := proc.Shell([]string{right.Prefix}); right.Write {
			w = append(w, p)
		} else {
			r = append(r, p)
		}
	}
	return orDash(strings.Join(r, " ")), orDash(strings.Join(w, " "))
}

// completeUsers offers the users that there are, if one may know them.
func completeUsers(a *app) cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		c, err := a.open()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		users, err := c.Users(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for _, u := range users {
			names = append(names, u.Name)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// maxTokenFile bounds the file that --token-file names: one that is longer is something else.
const maxTokenFile = 4 << 10

// readToken takes the token from --token-file, or else from the environment. It is never on the command line.
func (a *app) readToken() error {
	a.token = strings.TrimSpace(os.Getenv("ABACUS_TOKEN"))
	if a.tokenFile != "" {
		f, err := os.Open(a.tokenFile)
		if err != nil {
			return usagef("--token-file: %w", err)
		}
		defer f.Close()
		text, err := io.ReadAll(io.LimitReader(f, maxTokenFile+1))
		if err != nil {
			return fmt.Errorf("--token-file: %w", err)
		}
		a.token = strings.TrimSpace(string(text))
		if a.token == "" || len(text) > maxTokenFile {
			return usagef("--token-file %s: want one token in it, and nothing else", a.tokenFile)
		}
	}
	switch {
	case strings.ContainsAny(a.token, " \t\r\n"):
		return usagef("the token in %s has blanks in it", a.tokenFrom())
	case a.user != "" && a.token == "":
		return usagef("--user %s without a token: put it into ABACUS_TOKEN, or its file behind --token-file", shown(a.user))
	}
	return nil
}

func (a *app) tokenFrom() string {
	if a.tokenFile != "" {
		return "the file " + a.tokenFile
	}
	return "ABACUS_TOKEN"
}

// authHint says what to do where the cluster does not let one in, or not do something.
func (a *app) authHint(err error) string {
	switch {
	case errors.Is(err, client.ErrNoPermission):
		right := "--read PREFIX or --write PREFIX" // it is about keys
		if _, after, ok := strings.Cut(err.Error(), "permissions to run the '"); ok {
			switch command, _, _ := strings.Cut(after, "'"); {
			case strings.HasPrefix(command, "job."):
				right = "--jobs"
			case strings.HasPrefix(command, "abacus."):
				return "only an admin may do that: use an admin's token"
			}
		}
		return fmt.Sprintf("an admin gives rights with \"%s\"", a.try("user grant NAME "+right))
	case a.token == "":
		return "the cluster has users: put the token of one into ABACUS_TOKEN, or name a file that has it with --token-file"
	case a.user != "":
		return fmt.Sprintf("the token in %s is not one of user %s, or the user is disabled", a.tokenFrom(), a.user)
	}
	return fmt.Sprintf("the token in %s is not one of a user, or the user is disabled", a.tokenFrom())
}
