// Package job is the vocabulary of jobs: what a client asks for (Spec), what
// the ledger keeps and a client gets to see (Record), and a job's result (Value).
//
// It only describes. How a job is cut, handed out and combined is package
// compute. This package is a leaf on the standard library, so that a client
// can use it without any of the machinery.
package job
