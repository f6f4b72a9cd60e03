// Package transport carries calls between the nodes of a cluster.
//
// There is one listener per node, and towards each peer one multiplexed link
// per lane, so that a heartbeat never waits behind a bulk transfer. Calls are
// frames with a request number; a link has one reading and one writing loop.
// Who finds a link idle writes his frame himself; else the writing loop sends all
// frames that wait in one write. Streams (state snapshots) get a connection of their own.
//
// Errors have numbers that cross the wire (errors.go), and say whether the
// request can have been delivered: only what certainly was not may be retried
// blindly.
//
// Package transporttest is the in-memory twin.
package transport

import (
	"context"
	"io"
	"time"
)

// Lane is a class of traffic with a link of its own to each peer.
type Lane uint8

const (
	LaneControl Lane = iota // heartbeats, votes, status exchange: small and urgent
	LaneLog                 // AppendEntries with entries
	LaneCall                // forwarded commands, tasks, everything else
	Lanes                   // how many
)

// Method numbers a call. Never reuse a number.
type Method uint16

// Transport is one node's way to its peers. All methods may be used
// concurrently. Handlers are set before the first call arrives (before Start).
type Transport interface {
	// Self is this node's id.
	Self() string

	// Call sends a request to a peer and waits for the answer, ctx's end, or the
	// link's loss. ctx should have a deadline; without one Call sets 10 s.
	// The request body must not be changed until Call returns.
	Call(ctx context.Context, to string, lane Lane, m Method, req []byte) ([]byte, error)

	// Go sends a request and returns at once. done is called once, with the answer or why
	// there is none, at the deadline at the latest: never by Go itself, as a rule on the loop that reads
	// answers, so it must not wait for anything; perhaps beside other calls, or after Close. Requests on one lane to one peer
	// are delivered in the order of the calls to Go or Call.
	Go(to string, lane Lane, m Method, req []byte, deadline time.Time, done func(resp []byte, err error))

	// CallAddr is Call to an address whose node id is not known yet (a seed),
	// over a connection of its own.
	CallAddr(ctx context.Context, addr string, m Method, req []byte) ([]byte, error)

	// Stream sends a header and a body of exactly size bytes over a connection of its own and waits
	// for the answer. Cancelling ctx breaks the connection, and the receiver's
	// body then fails: a half-sent stream is never taken for a whole one.
	Stream(ctx context.Context, to string, m Method, header []byte, body io.Reader, size int64) ([]byte, error)

	// Handle serves a method: each request runs on a goroutine of its own, at
	// most a set number at once per peer.
	Handle(m Method, h Handler)
	// HandleInOrder serves a method on the link's reading loop, in the order
	// sent. h must not block; it answers by calling reply, once, from anywhere.
	HandleInOrder(m Method, h InOrderHandler)
	// HandleStream serves streams.
	HandleStream(m Method, h StreamHandler)

	// HandleEnded has f told of each peer whose process has ended: a link to it broke, and
	// nobody listens at its address. f must not block.
	HandleEnded(f func(peer string))

	// Close breaks all links, fails what is pending and waits for the loops.
	Close() error
}

// Handler answers a request. ctx ends with the caller's deadline, the link or
// the transport. from is the caller's node id ("" for CallAddr).
type Handler func(ctx context.Context, from string, req []byte) ([]byte, error)

// InOrderHandler answers a request by calling reply.
type InOrderHandler func(from string, req []byte, reply func([]byte, error))

// StreamHandler consumes a stream. body yields io.ErrUnexpectedEOF if the
// sender gave up.
type StreamHandler func(ctx context.Context, from string, header []byte, body io.Reader, size int64) ([]byte, error)
