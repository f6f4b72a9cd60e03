// Package access says who may do what: users with tokens and rights on prefixes of keys, and what an audit
// log tells of them. It decides only; node keeps the list in shard 0 and in a file, node/front and the HTTP port ask.
//
// The list (Users) is one immutable value with an epoch, swapped whole, like the shard map. While there is no admin in it, everybody may
// do everything, as in a cluster that has never heard of users.
//
// A token is 256 random bits, so what is kept of it is a plain SHA-256: a slow hash protects passwords that people choose, which
// can be guessed, and there are none here. Nothing but the hash of a token ever reaches the cluster, except when its owner
// authenticates with it.
package access
