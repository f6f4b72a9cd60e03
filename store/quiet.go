package store

import (
	"time"

	"github.com/hashicorp/raft"
)

// A leader sends each follower an empty AppendEntries every CommitTimeout, to tell how far the
// log is committed, also when nothing has happened for hours. With tens of shards on a node that is most
// of what an idle cluster does. Here those that tell nothing new are not sent.

// quietFraction of the heartbeat time-out is how old a follower's last answer may be. Its
// heartbeats, one every 100 to 300 ms, go on, and what they find raft finds as late as this.
const quietFraction = 3

// knows says whether a follower has told us, a moment ago and in this term, that it has all that a
// request would tell it. A follower that was restarted tells a lower commit index again.
func (p *peers) knows(id raft.ServerID, req *raft.AppendEntriesRequest) bool {
	if len(req.Entries) > 0 || isHeartbeat(req) {
		return false
	}
	f, ok := p.follower(id, req.Term)
	return ok && f.match >= req.PrevLogEntry && f.report.commit >= req.LeaderCommitIndex &&
		time.Since(f.contact) < p.timing.Heartbeat/quietFraction
}

// agreed is the answer of a follower that knows it all.
func agreed(req *raft.AppendEntriesRequest) raft.AppendEntriesResponse {
	return raft.AppendEntriesResponse{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}, Term: req.Term, LastLog: req.PrevLogEntry, Success: true,
	}
}
