package resp

import "bytes"

// parseInline reads a command typed as a line, as people do with netcat. ok is
// false until the line has ended; an empty line leaves no spans.
func (r *Reader) parseInline() (ok bool, err error) {
	line := r.buf[r.begin:r.end]
	nl := bytes.IndexByte(line[r.scanned:], '\n')
	if nl < 0 {
		if len(line) > r.lim.MaxInline {
			return false, protocolErrorf("too big inline request")
		}
		r.scanned = len(line)
		return false, nil
	}
	nl += r.scanned
	r.scanned = 0
	if nl > r.lim.MaxInline {
		return false, protocolErrorf("too big inline request")
	}
	r.pos = r.begin + nl + 1
	line = line[:nl]
	if nl > 0 && line[nl-1] == '\r' {
		line = line[:nl-1]
	}
	if err := r.splitInline(line); err != nil {
		return false, err
	}
	if len(r.spans) > r.lim.MaxArgs {
		return false, protocolErrorf("too big inline request")
	}
	if len(r.spans) > 0 && isHTTP(line[r.spans[0].off:][:r.spans[0].n]) {
		// A web page can make a browser send a request to this port, with
		// commands in its body. The request line or the Host header comes first.
		return false, protocolErrorf("this is an HTTP request, and not a port for HTTP")
	}
	return true, nil
}

// splitInline cuts a line into arguments by the rules of redis-cli: blanks
// separate; "…" knows \n \r \t \b \a \xHH and \ before any other character; '…'
// knows \'; a closing quote must be followed by a blank. The arguments are
// unescaped in place, since none gets longer.
func (r *Reader) splitInline(line []byte) error {
	i := 0
	for {
		for i < len(line) && isBlank(line[i]) {
			i++
		}
		if i == len(line) {
			return nil
		}
		start, out := i, i
		quote := byte(0)
	arg:
		for ; ; i++ {
			if i == len(line) {
				if quote != 0 {
					return protocolErrorf("unbalanced quotes in request")
				}
				break
			}
			c := line[i]
			switch {
			case quote == 0 && isBlank(c):
				break arg
			case quote == 0 && (c == '"' || c == '\''):
				quote = c
				continue
			case quote != 0 && c == quote:
				if i+1 < len(line) && !isBlank(line[i+1]) {
					return protocolErrorf("unbalanced quotes in request")
				}
				i++
				break arg
			case quote == '"' && c == '\\' && i+3 < len(line) && line[i+1] == 'x' && isHex(line[i+2]) && isHex(line[i+3]):
				c = unhex(line[i+2])<<4 | unhex(line[i+3])
				i += 3
			case quote == '"' && c == '\\' && i+1 < len(line):
				i++
				c = unescape(line[i])
			case quote == '\'' && c == '\\' && i+1 < len(line) && line[i+1] == '\'':
				i++
				c = '\''
			}
			line[out] = c
			out++
		}
		r.spans = append(r.spans, span{off: start, n: out - start})
	}
}

func isHTTP(name []byte) bool {
	return bytes.EqualFold(name, []byte("POST")) || bytes.EqualFold(name, []byte("Host:"))
}

// isBlank is C's isspace, which Redis uses.
func isBlank(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	}
	return c - 'a' + 10
}

func unescape(c byte) byte {
	switch c {
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	case 'b':
		return '\b'
	case 'a':
		return '\a'
	}
	return c
}
