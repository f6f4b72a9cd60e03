package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/abacusdb/abacus/node"
)

func bindFlags(f *pflag.FlagSet, cfg *node.Config, opts *options) {
	f.SortFlags = false
	f.StringVar(&cfg.ID, "id", cfg.ID, "name of this node, for life")
	f.StringVar(&cfg.DataDir, "data-dir", cfg.DataDir, "directory for everything that must not be lost")
	f.StringVar(&cfg.Zone, "zone", "", "where this node stands, such as a rack: replicas of a shard are spread over zones first")
	f.BoolVar(&cfg.Bootstrap, "bootstrap", cfg.Bootstrap, "be the first node of a new cluster")
	f.StringSliceVar(&cfg.Join, "join", cfg.Join, "peer addresses of members to join, host:port[,...]; later, where to look for nodes that are not where they were")
	f.StringVar(&cfg.JoinFile, "join-file", "", "file with such addresses, one to a line, read again whenever they are asked")
	f.IntVar(&cfg.Shards, "shards", cfg.Shards, "with --bootstrap: number of shards, 1-256")
	f.IntVar(&cfg.Replicas, "replicas", cfg.Replicas, "with --bootstrap: copies of each shard, 1-9")
	f.StringVar(&cfg.ClientAddr, "client-addr", cfg.ClientAddr, "RESP for any client: commands are forwarded to the right node")
	f.StringVar(&cfg.ClusterAddr, "cluster-addr", cfg.ClusterAddr, "RESP for Redis Cluster clients: answers -MOVED")
	f.StringVar(&cfg.PeerAddr, "peer-addr", cfg.PeerAddr, "calls from other nodes")
	f.StringVar(&cfg.HTTPAddr, "http-addr", cfg.HTTPAddr, "HTTP: health, metrics, status, keys, jobs")
	f.StringVar(&cfg.Advertise.Client, "advertise-client-addr", "", "client address told to others (default: --client-addr)")
	f.StringVar(&cfg.Advertise.Cluster, "advertise-cluster-addr", "", "cluster address told to others (default: --cluster-addr)")
	f.StringVar(&cfg.Advertise.Peer, "advertise-peer-addr", "", "peer address told to others (default: --peer-addr)")
	f.StringVar(&cfg.Advertise.HTTP, "advertise-http-addr", "", "HTTP address told to others (default: --http-addr)")
	f.BoolVar(&cfg.Insecure, "insecure", false, "allow addresses other than loopback without TLS")
	f.BoolVar(&cfg.NoAuth, "no-auth", false, "check no users on this node, whatever users the cluster has: to get in when all admins' tokens are lost; loopback addresses only")
	f.BoolVar(&cfg.OpenMetrics, "open-metrics", false, "serve /metrics without a user, in a cluster that has users")
	f.StringVar(&cfg.AuditLog, "audit-log", "", "file for what administrators do and who is refused, a JSON line each, beside the log; at 64 MiB it becomes FILE.1")
	f.StringVar(&cfg.TLS.Peer.Cert, "peer-cert", "", "TLS between nodes: this node's certificate, bound to its --id (abacus cert node makes one); read again when it changes, as all of these files")
	f.StringVar(&cfg.TLS.Peer.Key, "peer-key", "", "key of --peer-cert")
	f.StringVar(&cfg.TLS.Peer.CA, "peer-ca", "", "CAs that vouch for nodes, one or more in one file; should vouch for nobody else")
	f.StringVar(&cfg.TLS.Client.Cert, "tls-cert", "", "TLS for clients: certificate of the client, cluster and HTTP ports")
	f.StringVar(&cfg.TLS.Client.Key, "tls-key", "", "key of --tls-cert")
	f.StringVar(&cfg.TLS.Client.CA, "tls-ca", "", "CAs that vouch for clients, for --tls-client-auth")
	f.StringVar(&cfg.TLS.ClientAuth, "tls-client-auth", cfg.TLS.ClientAuth, "certificates of clients: none, request (one may be shown, and must be good) or require")
	f.StringSliceVar(&cfg.TLS.AllowPlaintext, "allow-plaintext", nil, "while TLS is turned on node by node: peer, client or both take plain text, too")
	f.IntVar(&cfg.MaxClients, "max-clients", cfg.MaxClients, "most RESP connections at once")
	f.IntVar(&cfg.MaxCommandBytes, "max-command-bytes", cfg.MaxCommandBytes, "longest command")
	f.DurationVar(&cfg.CommandTimeout, "command-timeout", cfg.CommandTimeout, "answer each command within this time; a write whose fate is unknown by then is -UNCERTAIN")
	f.DurationVar(&cfg.StopTimeout, "stop-timeout", cfg.StopTimeout, "graceful stop within this time")
	f.DurationVar(&cfg.DiskTimeout, "disk-timeout", cfg.DiskTimeout, "end the process (exit code 70) when one write of the log takes longer")
	f.Int64Var(&cfg.MinFreeDisk, "min-free-disk", cfg.MinFreeDisk, "bytes to keep free: below, writes that add data are refused (0: 256 MiB or 5 %, whichever is less)")
	f.DurationVar(&cfg.ScrubInterval, "scrub-interval", cfg.ScrubInterval, "read and check each replica's whole state this often (0: never)")
	f.DurationVar(&cfg.CheckInterval, "check-every", cfg.CheckInterval, "compare the replicas of each shard that this node leads this often (0: never)")
	f.Int64Var(&cfg.CopyRate, "copy-rate", cfg.CopyRate, "bytes per second that copies of shards to other nodes may take together (0: as fast as it goes)")
	f.Int64Var(&cfg.JobScanBytes, "job-scan-bytes", cfg.JobScanBytes, "bytes per second that the tasks of jobs may read on this node together (0: as fast as it goes)")
	f.BoolVar(&cfg.Pprof, "pprof", false, "serve profiles of this process under /debug/pprof/ on --http-addr")
	f.StringVar(&cfg.LogStore, "log-store", cfg.LogStore, "wal: one log for all shards; boltdb: one for each. A data directory keeps what it was made with")
	f.Int64Var(&cfg.SegmentBytes, "log-segment-bytes", 0, "for tests: size of the log's files")
	f.Int64Var(&cfg.CheckpointBytes, "checkpoint-bytes", 0, "for tests: fold a shard's state into its file when so much has gathered")
	f.Uint64Var(&cfg.SnapshotEntries, "snapshot-entries", 0, "for tests: cut a shard's log after so many entries")
	f.StringVar(&opts.faultFile, "fault-file", "", "for tests: delays and a wrong clock, see faults")
	for _, name := range []string{"log-segment-bytes", "checkpoint-bytes", "snapshot-entries", "fault-file"} {
		if err := f.MarkHidden(name); err != nil {
			panic(err) // there is no such flag
		}
	}
	f.StringVar(&opts.logLevel, "log-level", opts.logLevel, "debug, info, warn or error")
	f.StringVar(&opts.logFormat, "log-format", opts.logFormat, "text or json")
	f.StringVar(&opts.config, "config", "", "YAML file with any of these settings")
}

// ignored names the settings that were given and have no meaning, because this
// node makes no cluster: --shards and --replicas. Beside --bootstrap on a directory
// that has a cluster already, the node says so.
func ignored(f *pflag.FlagSet, cfg node.Config) string {
	var given []string
	for _, name := range []string{"shards", "replicas"} {
		if !cfg.Bootstrap && f.Changed(name) {
			given = append(given, "--"+name)
		}
	}
	return strings.Join(given, ", ")
}

// envName is a flag's name in the environment: data-dir → ABACUS_DATA_DIR.
func envName(flag string) string {
	return "ABACUS_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// layer fills flags that were not given from the environment, then from the
// YAML file, and reports every fault in both.
func layer(f *pflag.FlagSet) error {
	var faults []error
	set := func(name, value, where string) {
		if err := f.Set(name, value); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", where, err))
		}
	}
	fromFlag := map[string]bool{}
	f.Visit(func(fl *pflag.Flag) { fromFlag[fl.Name] = true })
	f.VisitAll(func(fl *pflag.Flag) {
		if v, ok := os.LookupEnv(envName(fl.Name)); ok && !fromFlag[fl.Name] && isSetting(fl.Name) {
			fromFlag[fl.Name] = true
			set(fl.Name, v, envName(fl.Name))
		}
	})
	path, _ := f.GetString("config")
	if path == "" {
		return errors.Join(faults...)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return errors.Join(append(faults, fmt.Errorf("--config: %w", err))...)
	}
	// Nodes, not values: a scalar is taken as it is written, and the id 007 stays that.
	var file map[string]yaml.Node
	if err := yaml.Unmarshal(raw, &file); err != nil {
		return errors.Join(append(faults, fmt.Errorf("--config %s: %w", path, err))...)
	}
	for _, name := range slices.Sorted(maps.Keys(file)) {
		v := file[name]
		if f.Lookup(name) == nil || name == "config" || !isSetting(name) {
			faults = append(faults, fmt.Errorf("--config %s: there is no setting %q", path, name))
			continue
		}
		text, err := yamlText(&v)
		switch {
		case err != nil:
			faults = append(faults, fmt.Errorf("--config %s: %s: %w", path, name, err))
		case !fromFlag[name]:
			set(name, text, path)
		}
	}
	return errors.Join(faults...)
}

// isSetting tells what configures a node from the flags that only print something.
func isSetting(flag string) bool { return flag != "help" && flag != "version" }

// yamlText writes a YAML scalar or list of scalars as a flag would be written.
func yamlText(v *yaml.Node) (string, error) {
	for v.Kind == yaml.AliasNode {
		v = v.Alias
	}
	switch {
	case v.Kind == yaml.ScalarNode && v.Tag == "!!null":
		return "", errors.New("it has no value: give one, or leave the line out")
	case v.Kind == yaml.ScalarNode:
		return v.Value, nil
	case v.Kind != yaml.SequenceNode:
		return "", errors.New("want a value or a list of values")
	}
	parts := make([]string, len(v.Content))
	for i, p := range v.Content {
		if p.Kind == yaml.SequenceNode {
			return "", errors.New("want a value or a list of values")
		}
		var err error
		if parts[i], err = yamlText(p); err != nil {
			return "", err
		}
	}
	return strings.Join(parts, ","), nil
}
