package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/abacusdb/abacus/sharding"
	"github.com/abacusdb/abacus/store"
	"github.com/abacusdb/abacus/transport"
)

// Config says who a node is, where it keeps its data and where it listens.
// Nothing can be changed after Open.
type Config struct {
	// ID is the node's name for life: 1-64 letters, digits, '-', '_' or '.'.
	ID sharding.NodeID
	// DataDir holds everything the node must not lose. Created if missing.
	DataDir string

	// Listen addresses (host:port). Loopback unless TLS or Insecure is set: whoever reaches a port without TLS owns the data.
	ClientAddr, ClusterAddr, PeerAddr, HTTPAddr string
	// Advertised addresses, for when others reach this node under another name.
	// Empty: the listen address.
	Advertise sharding.Addrs
	// Insecure allows addresses other than loopback without TLS.
	Insecure bool
	// TLS is what the ports prove themselves with, and whom they trust. Default: none of it, and plain text.
	TLS TLSConfig

	// Zone is where the node stands (a rack, a data centre): replicas of a shard are spread over zones first. Empty: a zone of its own.
	Zone string

	// Bootstrap makes this node the first of a new cluster of Shards shards.
	// Ignored once the data directory belongs to a cluster.
	Bootstrap bool
	// Shards is how many Raft groups a new cluster has, 1-256 (default 8).
	Shards int
	// Replicas is how many copies of each shard a new cluster keeps once it has
	// nodes enough, 1-9 (default 3). Odd numbers survive most for what they cost.
	Replicas int
	// Join lists peer addresses of members, any of which lets this node in.
	// Once the data directory belongs to a cluster, they are where to look for nodes that are not where they were. A name stands for all
	// addresses that it has.
	Join []string
	// JoinFile is a file with more of them, one to a line, read whenever they are asked.
	JoinFile string

	// Transport, if it is set, carries the calls between nodes in place of PeerAddr,
	// and the node listens nowhere: it is reached through Exec. Its address is its
	// id. Open takes it over. It is for simulations, in which there are no sockets.
	Transport transport.Transport
	// TuneStore, if it is set, may change how each replica is opened: other time-outs,
	// a slow disk. For simulations.
	TuneStore func(*store.Config)

	// CommandTimeout bounds the time to answer one client command (default 3s).
	// A write that has no answer by then is reported as UNCERTAIN.
	CommandTimeout time.Duration
	// MaxClients bounds the open connections of each RESP port (default 10,000).
	MaxClients int
	// MaxCommandBytes bounds one client command (default 64 MiB).
	MaxCommandBytes int
	// StopTimeout bounds a graceful stop (default 10s).
	StopTimeout time.Duration

	// DiskTimeout is how long one write of the log may take before the process ends
	// with ExitFatal (default 10s): a node whose disk hangs still answers its peers, and is
	// in everybody's way. Checkpoints get more, by what they write.
	DiskTimeout time.Duration
	// MinFreeDisk is how many bytes of the data directory's file system are kept for the
	// log and for checkpoints: below, writes that add data are refused and leaderships are
	// handed over (default 0: 256 MiB, or 5 % of the file system if that is less).
	MinFreeDisk int64
	// CopyRate bounds what this node sends of states to replicas elsewhere, for all that it copies together, in bytes per second (default
	// 64 MiB; 0: as fast as it goes). Copies share disks, links and processors with clients.
	CopyRate int64
	// JobScanBytes bounds what jobs' tasks read here of keys and values, all together, in bytes per second (default 0: as fast as it
	// goes). To be set where the state does not fit into memory, and clients need the disk.
	JobScanBytes int64
	// ScrubInterval is how often each replica's state is read and checked as a whole
	// (default 24h, 0: never).
	ScrubInterval time.Duration
	// CheckInterval is how often the replicas of each shard that this node leads are compared (default 24h, 0: never).
	CheckInterval time.Duration
	// Fatal is told of a failure or a hang of the disk, a *FatalError. It must end the
	// process, and not return. Default: panic.
	Fatal func(error)

	// LogStore is the kind of log that new replicas here get: LogWAL (default) or LogBolt. A
	// data directory keeps the kind that it was made with.
	LogStore string
	// SegmentBytes is the size of the log's files, for tests; 0: wal's default.
	SegmentBytes int64
	// CheckpointBytes and SnapshotEntries are when a shard's state is folded into its
	// file and when its log is cut; 0: the store's defaults. Smaller costs speed. They are
	// flags that the help does not list, so that tests of power cuts meet both often.
	CheckpointBytes int64
	SnapshotEntries uint64

	// OnReplicas is told how many replicas run here, after each change; it does not wait. Default: nobody is.
	OnReplicas func(count int)

	// Dial connects to peers (default: TCP), Accept may wrap a connection that a peer has made (default: it is taken as it is), and Now
	// is the wall clock (default: time.Now), which nothing but what users are told
	// in times of day depends on. Tests have the ones late and the other wrong.
	Dial   func(ctx context.Context, addr string) (net.Conn, error)
	Accept func(net.Conn) net.Conn
	Now    func() time.Time

	// NoAuth lets everybody in whom this node's ports reach, whatever users the cluster has: for when all administrators' tokens
	// are lost. Its ports must be on loopback addresses then.
	NoAuth bool
	// OpenMetrics serves GET /metrics to who has not authenticated, too. What they tell of is sizes and rates, and the names of nodes.
	OpenMetrics bool
	// AuditLog is a file to which what administrators do, and who is refused, is appended as lines of JSON, beside the log. At
	// 64 MiB it becomes AuditLog.1, in place of the one before. Empty: none.
	AuditLog string

	// Pprof serves profiles of the process under /debug/pprof/ on HTTPAddr. They cost processor
	// time, and tell what commands and keys are made of.
	Pprof bool

	// Version is what the binary says it is.
	Version string
	Log     *slog.Logger
}

// DefaultConfig returns what abacusd runs with when nothing is said.
func DefaultConfig() Config {
	return Config{
		ID:              "n1",
		DataDir:         "./abacus-data",
		ClientAddr:      "127.0.0.1:7401",
		ClusterAddr:     "127.0.0.1:7701",
		PeerAddr:        "127.0.0.1:7501",
		HTTPAddr:        "127.0.0.1:7601",
		Shards:          8,
		Replicas:        3,
		CommandTimeout:  3 * time.Second,
		MaxClients:      10_000,
		MaxCommandBytes: 64 << 20,
		StopTimeout:     10 * time.Second,
		LogStore:        LogWAL,
		DiskTimeout:     store.DefaultDiskTimeout,
		CopyRate:        64 << 20,
		ScrubInterval:   24 * time.Hour,
		CheckInterval:   24 * time.Hour,
		Version:         "dev",
	}
}

// joins says that the node is to join a cluster.
func (c *Config) joins() bool { return len(c.Join) > 0 || c.JoinFile != "" }

// joinsItself says that there is nobody in Join but this node.
func (c *Config) joinsItself() bool {
	for _, j := range c.Join {
		if j != c.PeerAddr && j != c.Advertise.Peer {
			return false
		}
	}
	return len(c.Join) > 0 && c.JoinFile == ""
}

// minCopyRate is the least that a copy arrives with, before anybody's patience ends.
const minCopyRate = 1 << 20

// minJobScan is the least with which a task ends before its attempt's time does.
const minJobScan = 1 << 20

// Validate reports every fault at once, so that one edit mends them all.
func (c *Config) Validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if err := sharding.CheckNodeID(c.ID); err != nil {
		fault("--id: %w", err)
	}
	if c.DataDir == "" {
		fault("--data-dir is empty: name a directory for this node's data")
	}
	if c.Transport == nil {
		c.validateAddrs(fault)
		c.TLS.validate(fault)
	}
	if c.Bootstrap && c.joins() {
		fault("--bootstrap and --join exclude each other: the first node of a cluster bootstraps, the others join it")
	}
	if c.Shards < 1 || c.Shards > 256 {
		fault("--shards %d: want 1 to 256", c.Shards)
	}
	if c.Replicas < 1 || c.Replicas > 9 {
		fault("--replicas %d: want 1 to 9", c.Replicas)
	}
	if c.CommandTimeout < 10*time.Millisecond || c.CommandTimeout > 5*time.Minute {
		fault("--command-timeout %s: want 10ms to 5m", c.CommandTimeout)
	}
	if c.MaxClients < 1 {
		fault("--max-clients %d: want at least 1", c.MaxClients)
	}
	if c.MaxCommandBytes < 2<<20 || c.MaxCommandBytes > 64<<20 { // it must fit a log entry and a frame between nodes
		fault("--max-command-bytes %d: want 2 MiB to 64 MiB (2097152 to 67108864)", c.MaxCommandBytes)
	}
	if c.LogStore != LogWAL && c.LogStore != LogBolt {
		fault("--log-store %q: want %s or %s", c.LogStore, LogWAL, LogBolt)
	}
	if c.StopTimeout < 100*time.Millisecond || c.StopTimeout > 10*time.Minute {
		fault("--stop-timeout %s: want 100ms to 10m", c.StopTimeout)
	}
	// Above what a leader waits before it stops to lead, or the process ends for what a
	// hand-over would have cured.
	if c.DiskTimeout < 5*time.Second || c.DiskTimeout > time.Hour {
		fault("--disk-timeout %s: want 5s to 1h", c.DiskTimeout)
	}
	if c.MinFreeDisk < 0 {
		fault("--min-free-disk %d: want bytes, at least 0", c.MinFreeDisk)
	}
	if c.CopyRate != 0 && c.CopyRate < minCopyRate {
		fault("--copy-rate %d: want at least %d (1 MiB a second), or 0 for as fast as it goes", c.CopyRate, minCopyRate)
	}
	if c.JobScanBytes != 0 && c.JobScanBytes < minJobScan {
		fault("--job-scan-bytes %d: want at least %d (1 MiB a second), or 0 for as fast as it goes", c.JobScanBytes, minJobScan)
	}
	if len(c.Zone) > sharding.MaxZone || !utf8.ValidString(c.Zone) {
		fault("--zone %q: want text of at most %d bytes", c.Zone, sharding.MaxZone)
	}
	if c.ScrubInterval != 0 && c.ScrubInterval < time.Second {
		fault("--scrub-interval %s: want at least 1s, or 0 for never", c.ScrubInterval)
	}
	if c.CheckInterval != 0 && c.CheckInterval < time.Minute {
		fault("--check-every %s: want at least 1m, or 0 for never", c.CheckInterval)
	}
	return errors.Join(faults...)
}

// validateAddrs checks what is listened on, told to others and dialled.
func (c *Config) validateAddrs(fault func(format string, args ...any)) {
	seen := map[string]string{}
	for _, a := range []struct{ flag, addr, advertise string }{
		{"--client-addr", c.ClientAddr, c.Advertise.Client}, {"--cluster-addr", c.ClusterAddr, c.Advertise.Cluster},
		{"--peer-addr", c.PeerAddr, c.Advertise.Peer}, {"--http-addr", c.HTTPAddr, c.Advertise.HTTP},
	} {
		host, port, err := net.SplitHostPort(a.addr)
		if err != nil {
			fault("%s %q: want host:port", a.flag, a.addr)
			continue
		}
		if other := seen[a.addr]; other != "" && port != "0" {
			fault("%s and %s are both %s: each needs a port of its own", other, a.flag, a.addr)
		}
		seen[a.addr] = a.flag
		if ip := net.ParseIP(host); (host == "" || ip != nil && ip.IsUnspecified()) && a.advertise == "" {
			fault("%s %s listens on every address, which others cannot dial: name the one to tell them with --advertise-%s HOST:PORT", a.flag, a.addr, strings.TrimPrefix(a.flag, "--"))
		}
		if c.NoAuth && a.flag != "--peer-addr" && !(isLoopback(host) && (a.advertise == "" || isLoopback(hostOf(a.advertise)))) {
			fault("--no-auth lets everybody in, so %s %s must be a loopback address, and be advertised as one", a.flag, a.addr)
		}
		if flags := c.TLS.missing(a.flag == "--peer-addr"); flags != "" && !c.Insecure && !isLoopback(host) {
			fault("%s %s is not a loopback address: anyone who reaches it could read and change everything; give it TLS (%s), use a loopback address, or --insecure on a network that you trust", a.flag, a.addr, flags)
		}
	}
	for _, a := range []struct{ flag, addr string }{
		{"--advertise-client-addr", c.Advertise.Client}, {"--advertise-cluster-addr", c.Advertise.Cluster},
		{"--advertise-peer-addr", c.Advertise.Peer}, {"--advertise-http-addr", c.Advertise.HTTP},
	} {
		if a.addr == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(a.addr); err != nil {
			fault("%s %q: want host:port", a.flag, a.addr)
		}
	}
	if c.JoinFile != "" && !isMember(c.DataDir) { // a member needs nobody from it
		if _, err := readSeeds(c.JoinFile); err != nil {
			fault("%w", err)
		}
	}
	for _, j := range c.Join {
		if _, _, err := net.SplitHostPort(j); err != nil {
			fault("--join %q: want host:port of a member's peer address", j)
		}
	}
}

func hostOf(addr string) string {
	host, _, _ := net.SplitHostPort(addr)
	return host
}

// isLoopback says whether host can only be reached from this machine.
func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// listenAddrs in the order: peer, client, cluster, HTTP; none with a Transport.
func (c *Config) listenAddrs() []string {
	if c.Transport != nil {
		return nil
	}
	return []string{c.PeerAddr, c.ClientAddr, c.ClusterAddr, c.HTTPAddr}
}

// advertised are the addresses that others are told, given those listened on
// (which differ from the configured ones where a port is 0).
func (c *Config) advertised(listening []net.Listener) sharding.Addrs {
	if c.Transport != nil {
		return sharding.Addrs{Peer: c.ID}
	}
	said := []string{c.Advertise.Peer, c.Advertise.Client, c.Advertise.Cluster, c.Advertise.HTTP}
	for i, l := range listening {
		if said[i] == "" {
			said[i] = l.Addr().String()
		}
	}
	return sharding.Addrs{Peer: said[0], Client: said[1], Cluster: said[2], HTTP: said[3]}
}

// httpHosts are the Host header values (without port) that the HTTP port answers to.
func (c *Config) httpHosts(self sharding.Addrs) []string {
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	for _, a := range []string{c.HTTPAddr, self.HTTP} {
		if h, _, err := net.SplitHostPort(a); err == nil && h != "" && !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	return hosts
}
