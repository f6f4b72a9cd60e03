package node

// quietRate is how many commands on keys a second, in the whole cluster, are too few to spare anybody: jobs go as fast as they can below it.
const quietRate = 10

// quiet says whether hardly any client asks this cluster for anything.
func (n *Node) quiet() bool {
	here := n.worked()
	said := []*load{n.loads.now.Load()}
	for _, nd := range n.Router().Map().Nodes {
		if s, alive := n.peers.get(nd.ID); nd.ID != n.cfg.ID && alive {
			said = append(said, s.Load)
		}
	}
	return isQuiet(said, here.commands()-n.loads.seen.Load())
}

// isQuiet decides it by what nodes say of their last loadEvery, and by how many commands have come to this one since it last looked. Of a node that says
// nothing (nil: it has just begun, or is of an older version) it is not known.
func isQuiet(said []*load, since uint64) bool {
	rate := 0.0
	for _, l := range said {
		if l == nil {
			return false
		}
		rate += l.Reads + l.Writes + l.HTTP
	}
	return rate < quietRate && float64(since) < quietRate*loadEvery.Seconds()
}
