package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/abacusdb/abacus/chaos/proc"
	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/transport/cert"
)

// The CAs that `abacus cert ca` makes.
const (
	peerCA   = "peer-ca"
	clientCA = "client-ca"
)

// newCertCommand is `abacus cert`: CAs and certificates for development.
func newCertCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cert",
		Short: "Make CAs and certificates for development and tests",
		Long: `Make CAs and certificates for development and tests: ECDSA P-256, in files of one directory, keys readable for
their owner only. Nothing is overwritten. There are two CAs: one vouches for nodes to each other, the other for the
ports of clients and for clients. Who holds a key of a CA can be anybody: for production, use a CA that keeps its keys.`,
		Example: `  abacus cert ca certs
  abacus cert node certs --id n1 --host 10.0.0.1,db1.example
  abacus cert client certs --name app`,
	}
	cmd.AddCommand(newCertCACommand(), newCertNodeCommand(), newCertClientCommand())
	return cmd
}

// validFlag adds --days.
func validFlag(cmd *cobra.Command, days *int, usual int) {
	cmd.Flags().IntVar(days, "days", usual, "how long it is valid")
}

func certDays(days int) (time.Duration, error) {
	if days < 1 || days > 36500 {
		return 0, usagef("--days %d: want 1 to 36500", days)
	}
	return time.Duration(days) * 24 * time.Hour, nil
}

func newCertCACommand() *cobra.Command {
	var days int
	cmd := &cobra.Command{
		Use:   "ca DIR",
		Short: "Make the two CAs in a directory",
		Args:  takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			valid, err := certDays(days)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(args[0], 0o700); err != nil {
				return err
			}
			for _, name := range []string{peerCA, clientCA} {
				if _, err := cert.NewAuthority(args[0], name, valid); err != nil {
					return err
				}
				made(cmd.OutOrStdout(), args[0], name)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "next, for each node: %s cert node %s --id n1 --host ADDRESS\n", self, proc.Shell(args))
			return nil
		},
	}
	validFlag(cmd, &days, 3650)
	return cmd
}

func newCertNodeCommand() *cobra.Command {
	var (
		id, out string
		hosts   []string
		days    int
	)
	cmd := &cobra.Command{
		Use:   "node DIR --id ID --host HOST[,...]",
		Short: "Make the certificates of a node: one for its peers, one for its clients",
		Long: `Make the certificates of a node with the CAs in DIR: ID-peer, bound to the node's id, and ID-client, which the ports
of clients show. Hosts are all names and addresses by which clients reach the node; localhost, 127.0.0.1 and ::1 are added.`,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			valid, err := certDays(days)
			switch {
			case err != nil:
				return err
			case sharding.CheckNodeID(sharding.NodeID(id)) != nil:
				return usagef("--id %q: want the --id of the node's abacusd: %w", id, sharding.CheckNodeID(sharding.NodeID(id)))
			case len(hosts) == 0:
				return usagef("--host is missing: names and addresses by which clients reach the node, such as 127.0.0.1")
			}
			dir := args[0]
			if out == "" {
				out = dir
			}
			if err := issue(dir, out, peerCA, id+"-peer", cert.Request{Name: id, Node: id, Server: true, Client: true, Valid: valid}); err != nil {
				return err
			}
			made(cmd.OutOrStdout(), out, id+"-peer")
			hosts = append(hosts, "localhost", "127.0.0.1", "::1")
			if err := issue(dir, out, clientCA, id+"-client", cert.Request{Name: id, Hosts: hosts, Server: true, Valid: valid}); err != nil {
				return err
			}
			made(cmd.OutOrStdout(), out, id+"-client")
			in := func(dir, name string) string { return proc.Shell([]string{filepath.Join(dir, name)}) }
			fmt.Fprintf(cmd.ErrOrStderr(), "next: abacusd --id %s --peer-cert %s --peer-key %s --peer-ca %s \\\n  --tls-cert %s --tls-key %s ...\nand to use it: %s --ca %s status\n", id,
				in(out, id+"-peer.crt"), in(out, id+"-peer.key"), in(dir, peerCA+".crt"), in(out, id+"-client.crt"), in(out, id+"-client.key"), self, in(dir, clientCA+".crt"))
			return nil
		},
	}
	cmd.Flags().StringVar(&id, "id", "", "the node's id")
	cmd.Flags().StringSliceVar(&hosts, "host", nil, "names and addresses by which clients reach the node")
	cmd.Flags().StringVar(&out, "out", "", "directory for the files (default: DIR)")
	validFlag(cmd, &days, 365)
	return cmd
}

func newCertClientCommand() *cobra.Command {
	var (
		name, out string
		days      int
	)
	cmd := &cobra.Command{
		Use:   "client DIR --name NAME",
		Short: "Make the certificate of a client, for nodes with --tls-client-auth",
		Args:  takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			valid, err := certDays(days)
			switch {
			case err != nil:
				return err
			case name == "" || strings.ContainsAny(name, "/\\") || strings.HasPrefix(name, "."):
				return usagef("--name %q: want a name, which is also that of the files", name)
			}
			dir := args[0]
			if out == "" {
				out = dir
			}
			if err := issue(dir, out, clientCA, name, cert.Request{Name: name, Client: true, Valid: valid}); err != nil {
				return err
			}
			made(cmd.OutOrStdout(), out, name)
			base := filepath.Join(out, name)
			fmt.Fprintf(cmd.ErrOrStderr(), "next: %s %s status\n", self, proc.Shell([]string{"--ca", filepath.Join(dir, clientCA+".crt"), "--cert", base + ".crt", "--key", base + ".key"}))
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "who it is")
	cmd.Flags().StringVar(&out, "out", "", "directory for the files (default: DIR)")
	validFlag(cmd, &days, 365)
	return cmd
}

func issue(dir, out, ca, file string, r cert.Request) error {
	a, err := cert.LoadAuthority(dir, ca)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: make CAs there first, with \"%s cert ca %s\"", err, self, proc.Shell([]string{dir}))
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o700); err != nil {
		return err
	}
	return a.Issue(out, file, r)
}

func made(w io.Writer, dir, name string) {
	fmt.Fprintf(w, "%s\n%s\n", filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"))
}
