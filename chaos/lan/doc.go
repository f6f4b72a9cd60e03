// Package lan is a network for the nodes of a test: a bridge, and on it hosts in network namespaces of their own, so
// that what is cut between two of them is cut by the kernel, below every protocol. All of it is made and removed by
// the test; nothing leaves it but to this machine, which is on the bridge too and can always reach every host.
//
// It needs root, Linux with bridges, veth and nftables, and the programs ip, nft and nsenter.
package lan
