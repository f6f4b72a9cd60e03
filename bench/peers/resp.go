package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"
)

// respConn is one TCP connection that speaks plain RESP: so many commands written at
// once, so many replies read. It is for one goroutine. After an error of the connection
// it is closed and dialled anew with the next use, as Redis clients do, for whoever
// sent a command late would otherwise read the reply to an earlier one.
type respConn struct {
	addr string
	nc   net.Conn
	r    *bufio.Reader
	buf  []byte
}

// replyError is an error that the server answered; the connection is sound.
type replyError string

func (e replyError) Error() string { return string(e) }

// PutMany sends a SET for each key in one write, waits for all replies until the
// deadline, and returns how many were OK and the first thing that went wrong.
func (c *respConn) PutMany(deadline time.Time, keys []string, val []byte) (ok int, err error) {
	if c.nc == nil {
		d := net.Dialer{Deadline: deadline}
		if c.nc, err = d.Dial("tcp", c.addr); err != nil {
			c.nc = nil
			return 0, err
		}
		c.r = bufio.NewReaderSize(c.nc, 4096)
	}
	b := c.buf[:0]
	for _, k := range keys {
		b = append(b, "*3\r\n$3\r\nSET\r\n$"...)
		b = strconv.AppendInt(b, int64(len(k)), 10)
		b = append(append(append(b, "\r\n"...), k...), "\r\n$"...)
		b = strconv.AppendInt(b, int64(len(val)), 10)
		b = append(append(append(b, "\r\n"...), val...), "\r\n"...)
	}
	c.buf = b
	c.nc.SetDeadline(deadline)
	if _, err := c.nc.Write(b); err != nil {
		c.Close()
		return 0, err
	}
	for range keys {
		switch e := c.readReply(); {
		case e == nil:
			ok++
		case errors.As(e, new(replyError)):
			if err == nil {
				err = e
			}
		default:
			c.Close()
			return ok, e
		}
	}
	return ok, err
}

// readReply reads the reply to a SET: one line.
func (c *respConn) readReply() error {
	line, err := c.r.ReadSlice('\n')
	if err != nil {
		return err
	}
	switch line[0] {
	case '+':
		return nil
	case '-':
		return replyError(line[1 : len(line)-2])
	}
	return fmt.Errorf("a reply to SET that begins %q", line[:1])
}

func (c *respConn) Close() {
	if c.nc != nil {
		c.nc.Close()
		c.nc = nil
	}
}

// respWriter is a respConn as a Client that can only write, for one caller.
type respWriter struct{ c *respConn }

func (w respWriter) Close() { w.c.Close() }
func (w respWriter) Put(ctx context.Context, k string, v []byte) error {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(10 * time.Second)
	}
	_, err := w.c.PutMany(deadline, []string{k}, v)
	return err
}
func (respWriter) Get(context.Context, string, bool) error { return errUnsupported }
func (respWriter) Range(context.Context, string, int, func(string, []byte)) (int, error) {
	return 0, errUnsupported
}
