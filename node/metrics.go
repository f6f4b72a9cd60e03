package node

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/abacusdb/abacus/fsm"
	"github.com/abacusdb/abacus/node/front"
)

// initMetrics makes the node's own registry: two nodes in one test process
// must not share one.
func (n *Node) initMetrics() {
	n.registry = prometheus.NewRegistry()
	n.retries = prometheus.NewCounter(prometheus.CounterOpts{Name: "abacus_forward_retries_total",
		Help: "Attempts to reach a shard's leader that were made again."})
	n.scrubbed = prometheus.NewCounter(prometheus.CounterOpts{Name: "abacus_scrub_bytes_total",
		Help: "Bytes of state that the scrub read and found right."})
	n.scrubs = prometheus.NewCounter(prometheus.CounterOpts{Name: "abacus_scrubs_total",
		Help: "Replicas whose whole state the scrub found right."})
	n.follows = prometheus.NewCounter(prometheus.CounterOpts{Name: "abacus_slot_waits_total",
		Help: "Times that requests waited for slots that move, and asked again."})
	n.slotMoves = prometheus.NewCounter(prometheus.CounterOpts{Name: "abacus_slot_moves_total",
		Help: "Moves of slots that this node, as the leader of the giving shard, has brought to their end."})
	n.slotFreeze = prometheus.NewGauge(prometheus.GaugeOpts{Name: "abacus_slot_freeze_seconds",
		Help: "How long nobody served the slots in the last of them."})
	n.registry.MustRegister(n.follows, n.slotMoves, n.slotFreeze, n.retries, n.scrubbed, n.scrubs, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), stateCollector{n}, tlsCollector{n}, checkCollector{n}, admissionCollector{n})
	n.registry.MustRegister(n.repairs.metrics()...)
}

// stateCollector reads the node's state when it is asked, so that nothing has
// to keep gauges up to date.
type stateCollector struct{ n *Node }

var (
	descInfo      = prometheus.NewDesc("abacus_info", "Always 1; the labels say who this is.", []string{"node", "cluster", "version"}, nil)
	descEpoch     = prometheus.NewDesc("abacus_map_epoch", "Epoch of the newest shard map known here.", nil, nil)
	descUptime    = prometheus.NewDesc("abacus_uptime_seconds", "Seconds since the process opened the node.", nil, nil)
	descAlive     = prometheus.NewDesc("abacus_peer_alive", "Whether a peer answers.", []string{"peer"}, nil)
	descLeads     = prometheus.NewDesc("abacus_shard_leads", "Whether this node leads the shard.", []string{"shard"}, nil)
	descTerm      = prometheus.NewDesc("abacus_shard_term", "Raft term of the replica here.", []string{"shard"}, nil)
	descLast      = prometheus.NewDesc("abacus_shard_last_index", "Last index in the log of the replica here.", []string{"shard"}, nil)
	descCommit    = prometheus.NewDesc("abacus_shard_commit_index", "Commit index known to the replica here.", []string{"shard"}, nil)
	descApplied   = prometheus.NewDesc("abacus_shard_applied_index", "Last index applied by the replica here.", []string{"shard"}, nil)
	descRecords   = prometheus.NewDesc("abacus_shard_records", "Keys in the replica here.", []string{"shard"}, nil)
	descRepeats   = prometheus.NewDesc("abacus_session_repeats_total", "Repeated numbered commands that the replica here answered from its session table.", []string{"shard"}, nil)
	descOverlay   = prometheus.NewDesc("abacus_shard_overlay_bytes", "State of the replica here that is in memory and not in its file yet.", []string{"shard"}, nil)
	descHeld      = prometheus.NewDesc("abacus_shard_writes_held", "Whether this leader holds writes back until a checkpoint has made room.", []string{"shard"}, nil)
	descHolds     = prometheus.NewDesc("abacus_shard_write_holds_total", "Times that this leader began to hold writes back.", []string{"shard"}, nil)
	descNoRoom    = prometheus.NewDesc("abacus_shard_disk_full_refusals_total", "Commands that this leader refused because a disk was full.", []string{"shard"}, nil)
	descChecking  = prometheus.NewDesc("abacus_shard_checkpoint_keys", "Rows that the checkpoint under way of the replica here writes, 0 if there is none.", []string{"shard"}, nil)
	descChecks    = prometheus.NewDesc("abacus_shard_checkpoints_total", "Checkpoints of the replica here.", []string{"shard"}, nil)
	descCheckKeys = prometheus.NewDesc("abacus_shard_checkpoint_keys_total", "Rows that checkpoints of the replica here wrote: keys, and few of another kind.", []string{"shard"}, nil)
	descPins      = prometheus.NewDesc("abacus_shard_pins", "Pins of the replica here: states at one index that are kept for jobs.", []string{"shard"}, nil)
	descPinAge    = prometheus.NewDesc("abacus_shard_pin_oldest_seconds", "Age of the oldest of them, 0 if there is none.", []string{"shard"}, nil)
	descPinHeld   = prometheus.NewDesc("abacus_shard_pin_held_bytes", "What is kept for them, in the state's file and in memory.", []string{"shard"}, nil)
	descPinCopies = prometheus.NewDesc("abacus_shard_pin_copies_total", "Pins of the replica here that were given a copy of the state's file, because too much of it was kept for them.", []string{"shard"}, nil)
	descPinEnds   = prometheus.NewDesc("abacus_shard_pins_ended_total", "Pins of the replica here that ended, or were refused, by reason: unpinned and idle are as it should be; age, number, bytes, disk and fault are not.", []string{"shard", "reason"}, nil)
	descCommits   = prometheus.NewDesc("abacus_log_commits_total", "Writes of the node's log, each with one sync.", nil, nil)
	descRequests  = prometheus.NewDesc("abacus_log_requests_total", "Appends and deletions of all replicas that shared them.", nil, nil)
	descLogBytes  = prometheus.NewDesc("abacus_log_written_bytes_total", "Bytes written to the node's log.", nil, nil)
	descCopied    = prometheus.NewDesc("abacus_log_copied_bytes_total", "Of those, entries copied forward out of old segments.", nil, nil)
	descSegments  = prometheus.NewDesc("abacus_log_segments", "Segments of the node's log.", nil, nil)
	descLogDisk   = prometheus.NewDesc("abacus_log_disk_bytes", "Bytes of these segments.", nil, nil)
	descLogLive   = prometheus.NewDesc("abacus_log_live_bytes", "Bytes in them that some replica's log still has.", nil, nil)
	descDiskFree  = prometheus.NewDesc("abacus_disk_free_bytes", "Free space of the data directory's file system.", nil, nil)
	descDiskSize  = prometheus.NewDesc("abacus_disk_size_bytes", "Size of the data directory's file system.", nil, nil)
	descDiskLeast = prometheus.NewDesc("abacus_disk_least_free_bytes", "Below this, writes that add data are refused.", nil, nil)
	descDiskFull  = prometheus.NewDesc("abacus_disk_full", "Whether writes that add data are refused for want of disk space here.", nil, nil)
	descClients   = prometheus.NewDesc("abacus_resp_clients", "Open RESP connections.", []string{"port"}, nil)
	descBuffered  = prometheus.NewDesc("abacus_resp_buffered_bytes", "Request bytes held for RESP connections.", []string{"port"}, nil)
	descAccepted  = prometheus.NewDesc("abacus_resp_connections_total", "RESP connections accepted.", []string{"port"}, nil)
	descRefused   = prometheus.NewDesc("abacus_resp_refused_total", "RESP connections refused for a limit.", []string{"port"}, nil)
	descCommands  = prometheus.NewDesc("abacus_resp_commands_total", "RESP commands.", []string{"port"}, nil)
	descPipelines = prometheus.NewDesc("abacus_resp_pipelines_total", "RESP pipelines.", []string{"port"}, nil)
	descReads     = prometheus.NewDesc("abacus_reads_confirmed_total", "Linearizable reads that asked the voters.", nil, nil)
	descBusyReads = prometheus.NewDesc("abacus_reads_refused_total", "Reads refused because too many waited for the voters.", nil, nil)
	descRounds    = prometheus.NewDesc("abacus_read_rounds_total", "Rounds in which voters were asked, for one read or many.", nil, nil)
	descAsked     = prometheus.NewDesc("abacus_read_messages_total", "Messages that asked voters, each for many rounds and shards.", nil, nil)
	descUnheard   = prometheus.NewDesc("abacus_read_unanswered_total", "Questions to voters that had to be asked again.", nil, nil)
	descPaced     = prometheus.NewDesc("abacus_write_rounds_total", "Rounds in which the leaders here proposed entries together.", nil, nil)
	descEntries   = prometheus.NewDesc("abacus_write_round_entries_total", "Entries of these rounds.", nil, nil)
	descBeside    = prometheus.NewDesc("abacus_write_rounds_beside_total", "Of these rounds, those opened beside an older one that took too long.", nil, nil)
	descShort     = prometheus.NewDesc("abacus_write_rounds_short_total", "Of these rounds, those that had waited in vain for as many writes as the last.", nil, nil)
	descBeats     = prometheus.NewDesc("abacus_heartbeats_total", "Heartbeats that the leaders here sent.", nil, nil)
	descBeatMsgs  = prometheus.NewDesc("abacus_heartbeat_messages_total", "Messages that these heartbeats shared.", nil, nil)
	descLatency   = prometheus.NewDesc("abacus_resp_latency_seconds", "Times of RESP commands on keys, from when they are there to when they are answered; kind is read or write.", []string{"port", "kind"}, nil)
	descAuth      = prometheus.NewDesc("abacus_auth_failures_total", "Attempts to authenticate that were nobody's.", []string{"port"}, nil)
	descDenied    = prometheus.NewDesc("abacus_denied_total", "Commands and requests that a user had no right to.", []string{"port"}, nil)
	descUsers     = prometheus.NewDesc("abacus_users_epoch", "Epoch of the newest list of users known here; 0: there never was one.", nil, nil)
	descAudit     = prometheus.NewDesc("abacus_audit_lost_total", "Lines that did not get into the file of the audit log.", nil, nil)
	descPeerIn    = prometheus.NewDesc("abacus_peer_received_bytes_total", "Bytes that came from other nodes, before TLS.", nil, nil)
	descPeerOut   = prometheus.NewDesc("abacus_peer_sent_bytes_total", "Bytes that went to other nodes, before TLS.", nil, nil)
	descCopies    = prometheus.NewDesc("abacus_copy_sent_bytes_total", "Bytes of copies of shards and of slots that this node has sent: what --copy-rate bounds.", nil, nil)
	descErrors    = prometheus.NewDesc("abacus_resp_errors_total", "RESP error replies, by prefix.", []string{"port", "prefix"}, nil)
)

func (c stateCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descInfo, descEpoch, descUptime, descAlive, descLeads, descTerm, descLast, descCommit, descApplied, descRecords, descRepeats,
		descPins, descPinAge, descPinHeld, descPinCopies, descPinEnds, descOverlay, descChecking, descChecks, descCheckKeys, descCommits, descRequests, descLogBytes, descCopied, descSegments, descLogDisk, descLogLive, descHeld, descHolds, descNoRoom, descDiskFree, descDiskLeast, descDiskFull,
		descReads, descBusyReads, descRounds, descAsked, descUnheard, descPaced, descEntries, descBeside, descShort, descBeats, descBeatMsgs, descClients, descBuffered, descAccepted, descRefused, descCommands, descPipelines, descLatency, descAuth, descDenied, descUsers, descAudit, descErrors, descDiskSize, descPeerIn, descPeerOut, descCopies} {
		ch <- d
	}
}

func (c stateCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	m := c.n.Router().Map()
	gauge(descInfo, 1, c.n.cfg.ID, m.ClusterID, c.n.cfg.Version)
	gauge(descEpoch, float64(m.Epoch))
	gauge(descUptime, time.Since(c.n.started).Seconds())
	for _, nd := range m.Nodes {
		if nd.ID != c.n.cfg.ID {
			_, alive := c.n.peers.get(nd.ID)
			gauge(descAlive, flag(alive), nd.ID)
		}
	}
	for _, r := range c.n.status().Replicas {
		shard := strconv.FormatUint(uint64(r.Shard), 10)
		gauge(descLeads, flag(r.Leads), shard)
		gauge(descTerm, float64(r.Term), shard)
		gauge(descLast, float64(r.Last), shard)
		gauge(descCommit, float64(r.Commit), shard)
		gauge(descApplied, float64(r.Applied), shard)
		gauge(descRecords, float64(r.Records), shard)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	reads := c.n.net.ReadStats()
	count(descReads, reads.Reads)
	count(descBusyReads, reads.Refused)
	count(descRounds, reads.Rounds)
	count(descAsked, reads.Messages)
	count(descUnheard, reads.Unanswered)
	rounds := c.n.net.RoundStats()
	count(descPaced, rounds.Rounds)
	count(descEntries, rounds.Entries)
	count(descBeside, rounds.Beside)
	count(descShort, rounds.Short)
	count(descCopies, uint64(c.n.net.CopiedBytes()))
	if c.n.peerStats != nil {
		st := c.n.peerStats()
		count(descPeerIn, st.BytesIn)
		count(descPeerOut, st.BytesOut)
	}
	beats := c.n.net.HeartbeatStats()
	count(descBeats, beats.Heartbeats)
	count(descBeatMsgs, beats.Messages)
	for _, st := range c.n.host.all() {
		s, shard := st.Status(), strconv.FormatUint(uint64(st.Shard()), 10)
		gauge(descOverlay, float64(s.OverlayBytes), shard)
		gauge(descChecking, float64(s.CheckpointingRows), shard)
		count(descChecks, s.Checkpoints, shard)
		count(descCheckKeys, s.CheckpointRows, shard)
		gauge(descHeld, flag(s.Held), shard)
		count(descHolds, s.Holds, shard)
		count(descNoRoom, s.RefusedFull, shard)
		count(descRepeats, st.Repeats(), shard)
		pins := st.Pins()
		gauge(descPins, float64(pins.Live), shard)
		gauge(descPinAge, pins.Oldest.Seconds(), shard)
		gauge(descPinHeld, float64(pins.HeldBytes), shard)
		count(descPinCopies, pins.Copied, shard)
		for _, reason := range fsm.PinReasons {
			count(descPinEnds, pins.Ended[reason], shard, string(reason))
		}
	}
	if c.n.wal != nil {
		w := c.n.wal.Stats()
		count(descCommits, uint64(w.Commits))
		count(descRequests, uint64(w.Requests))
		count(descLogBytes, uint64(w.WrittenBytes))
		count(descCopied, uint64(w.CopiedBytes))
		gauge(descSegments, float64(w.SegmentsInUse))
		gauge(descLogDisk, float64(w.DiskBytes))
		gauge(descLogLive, float64(w.LiveBytes))
	}
	disk := c.n.space.now.Load()
	gauge(descDiskFree, float64(disk.free))
	gauge(descDiskSize, float64(disk.size))
	gauge(descDiskLeast, float64(disk.least))
	gauge(descDiskFull, flag(disk.full))
	gauge(descUsers, float64(c.n.usersEpoch()))
	count(descAudit, c.n.audit.lost.Load())
	if h := c.n.http; h != nil {
		count(descAuth, h.authFailed.Load(), "http")
		count(descDenied, h.denied.Load(), "http")
	}
	for i, f := range c.n.fronts {
		port, st := []string{"client", "cluster"}[i], f.Stats()
		gauge(descClients, float64(st.Clients), port)
		gauge(descBuffered, float64(st.Buffered), port)
		count(descAccepted, st.Accepted, port)
		count(descRefused, st.Refused, port)
		count(descCommands, st.Commands, port)
		count(descPipelines, st.Pipelines, port)
		ch <- latencies(st.Reads, port, "read")
		ch <- latencies(st.Writes, port, "write")
		count(descAuth, st.AuthFailed, port)
		count(descDenied, st.Denied, port)
		for kind, v := range st.Errors {
			count(descErrors, v, port, kind)
		}
	}
}

// latencies is a histogram by powers of two: every second class is enough for a series that is kept for years.
func latencies(l front.Latency, labels ...string) prometheus.Metric {
	buckets, below := map[float64]uint64{}, uint64(0)
	for i, bound := range front.LatencyBounds {
		if below += l.Counts[i]; i%2 == 0 {
			buckets[bound.Seconds()] = below
		}
	}
	return prometheus.MustNewConstHistogram(descLatency, l.Count(), l.Sum.Seconds(), buckets, labels...)
}
