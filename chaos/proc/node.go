package proc

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Node is one node of a Cluster, running or not.
type Node struct {
	c *Cluster
	// N is the node's number, from 1.
	N int

	// Guarded by c.mu, and set only in the process that started the node:
	cmd     *exec.Cmd
	exited  chan struct{} // closed when the process has ended and was waited for
	program string        // see UseProgram
}

// Addrs are the four addresses of a node.
type Addrs struct{ Client, Peer, HTTP, Cluster string }

// ID is the node's id in the cluster.
func (n *Node) ID() string { return "n" + strconv.Itoa(n.N) }

// Addrs are where it listens.
func (n *Node) Addrs() Addrs {
	b, host := n.c.fixed.BasePort+n.N, "127.0.0.1"
	if h := n.c.fixed.Nodes[n.N-1].Host; h != nil {
		host = h.Addr
	}
	return Addrs{Client: addrOn(host, b), Peer: addrOn(host, b+100), HTTP: addrOn(host, b+200), Cluster: addrOn(host, b+300)}
}

// DataDir is where it keeps its data.
func (n *Node) DataDir() string { return n.c.fixed.Nodes[n.N-1].DataDir }

// LogPath is the file that its standard output and error go to, over all its runs.
func (n *Node) LogPath() string { return filepath.Join(n.c.dir, n.ID()+".log") }

// UseProgram has this handle start the node with another program than the cluster's, for tests of upgrades.
func (n *Node) UseProgram(path string) { n.program = path }

// CommandLine is what Start runs, on the node's host if it has one, program first.
func (n *Node) CommandLine() []string {
	a := n.Addrs()
	st := n.c.fixed
	args := []string{cmp.Or(n.program, st.Abacusd), "--id", n.ID(), "--data-dir", n.DataDir(),
		"--client-addr", a.Client, "--peer-addr", a.Peer, "--http-addr", a.HTTP, "--cluster-addr", a.Cluster}
	if n.founds() {
		args = append(args, "--bootstrap", "--shards", strconv.Itoa(st.Shards), "--replicas", strconv.Itoa(st.Replicas))
	} else {
		args = append(args, "--join", n.c.peers(n.N))
	}
	args = append(args, n.tlsFlags()...)
	args = append(args, st.Args...)
	return append(args, st.Nodes[n.N-1].Args...)
}

// founds says whether this is the node that makes the cluster. When it has lost all it had, there is a cluster already, of which it would
// make a second one: then it joins, like any other.
func (n *Node) founds() bool {
	if n.N != 1 {
		return false
	}
	for _, o := range n.c.Nodes() {
		if o.N != 1 && !n.hasData() && o.hasData() {
			return false
		}
	}
	return true
}

func (n *Node) hasData() bool {
	_, err := os.Stat(filepath.Join(n.DataDir(), "ident.json"))
	return err == nil
}

// Start starts the process and returns at once. It fails with ErrRunning if
// there is one.
func (n *Node) Start() error {
	return n.c.update(func(st *state) error {
		ns := &st.Nodes[n.N-1]
		if alive(ns.Pid, ns.StartTime) {
			return fmt.Errorf("%s (process %d) %w", n.ID(), ns.Pid, ErrRunning)
		}
		if err := os.MkdirAll(ns.DataDir, 0o755); err != nil {
			return fmt.Errorf("make the data directory of %s: %w", n.ID(), err)
		}
		log, err := os.OpenFile(n.LogPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return fmt.Errorf("open the log of %s: %w", n.ID(), err)
		}
		// The process gets its own handle: nothing of ours stands between it and its log.
		defer log.Close()
		line := n.CommandLine()
		if ns.Host != nil {
			line = append(slices.Clone(ns.Host.Enter), line...)
		}
		cmd := exec.Command(line[0], line[1:]...)
		cmd.Stdout, cmd.Stderr = log, log
		if n.c.env != nil {
			cmd.Env = append(os.Environ(), n.c.env...)
		}
		// A group of its own, or Ctrl-C in the terminal would go to all nodes at
		// once instead of to the command that stops them in order.
		cmd.SysProcAttr = processAttributes(n.c.dieWithParent)
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("start %s: %w", n.ID(), err)
		}
		ns.Pid, ns.StartTime = cmd.Process.Pid, StartTime(cmd.Process.Pid)
		st.Down = false
		n.cmd, n.exited = cmd, make(chan struct{})
		go func(exited chan struct{}) {
			_ = cmd.Wait()
			close(exited)
		}(n.exited)
		return nil
	})
}

// Running says whether the node has a live process (paused counts).
func (n *Node) Running() bool {
	ns, err := n.c.current(n.N)
	return err == nil && alive(ns.Pid, ns.StartTime)
}

// Paused says whether its process is stopped by Pause.
func (n *Node) Paused() bool {
	ns, err := n.c.current(n.N)
	return err == nil && alive(ns.Pid, ns.StartTime) && processState(ns.Pid) == 'T'
}

// Ended says that the process which this handle started has ended as a whole. One whose threads hang in the kernel may have
// its first thread gone, and hold its ports and files: it does not run any more, and has not ended.
func (n *Node) Ended() bool {
	n.c.mu.Lock()
	cmd, exited := n.cmd, n.exited
	n.c.mu.Unlock()
	if cmd == nil {
		return false
	}
	select {
	case <-exited:
		return true
	default:
		return false
	}
}

// Pid is the process id, 0 if the node does not run.
func (n *Node) Pid() int {
	ns, err := n.c.current(n.N)
	if err != nil || !alive(ns.Pid, ns.StartTime) {
		return 0
	}
	return ns.Pid
}

// Kill ends the process with SIGKILL and returns when it is gone.
func (n *Node) Kill() error {
	if err := n.signal(syscall.SIGKILL); err != nil {
		return err
	}
	return n.waitGone(10 * time.Second)
}

// Stop asks the process to stop (SIGTERM) and waits until it is gone, at most
// for the grace. SIGCONT follows, or a paused process could not hear.
func (n *Node) Stop(grace time.Duration) error {
	if err := n.signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := n.Resume(); err != nil && !errors.Is(err, ErrNotRunning) {
		return err
	}
	return n.waitGone(grace)
}

// Pause stops the process where it is (SIGSTOP); it keeps its memory and its
// connections, and answers nothing. Resume lets it go on.
func (n *Node) Pause() error  { return n.signal(syscall.SIGSTOP) }
func (n *Node) Resume() error { return n.signal(syscall.SIGCONT) }

// ExitCode is how the last run ended: -1 while it runs, when it was ended by a
// signal, or when another process started it.
func (n *Node) ExitCode() int {
	n.c.mu.Lock()
	cmd, exited := n.cmd, n.exited
	n.c.mu.Unlock()
	if cmd == nil {
		return -1
	}
	select {
	case <-exited:
		return cmd.ProcessState.ExitCode()
	default:
		return -1
	}
}

func (n *Node) signal(sig syscall.Signal) error {
	ns, err := n.c.current(n.N)
	if err != nil {
		return err
	}
	if !alive(ns.Pid, ns.StartTime) {
		return fmt.Errorf("%s %w", n.ID(), ErrNotRunning)
	}
	if err := syscall.Kill(ns.Pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %v to %s (process %d): %w", sig, n.ID(), ns.Pid, err)
	}
	return nil
}

func (n *Node) waitGone(limit time.Duration) error {
	ns, err := n.c.current(n.N)
	if err != nil {
		return err
	}
	n.c.mu.Lock()
	exited := n.exited
	if n.cmd == nil || n.cmd.Process.Pid != ns.Pid {
		exited = nil // somebody else's child: only looking tells
	}
	n.c.mu.Unlock()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case <-exited:
			return nil
		case <-look.C:
			if exited == nil && !alive(ns.Pid, ns.StartTime) {
				return nil
			}
		case <-deadline.C:
			return fmt.Errorf("%s (process %d) is still there after %v", n.ID(), ns.Pid, limit)
		}
	}
}

// LogTail returns the last lines of the node's log.
func (n *Node) LogTail(lines int) string {
	f, err := os.Open(n.LogPath())
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > 256<<10 {
		_, _ = f.Seek(-256<<10, io.SeekEnd)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return ""
	}
	all := bytes.Split(bytes.TrimRight(data, "\n"), []byte("\n"))
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return string(bytes.Join(all, []byte("\n")))
}

// alive says whether the process of that id is the one that had that start time,
// and has not ended. One that ended and was not yet waited for counts as gone.
func alive(pid int, start string) bool {
	if pid <= 0 || start == "" {
		return false
	}
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	return StartTime(pid) == start && processState(pid) != 'Z'
}

// Shell quotes a command line so that it can be pasted.
func Shell(args []string) string {
	var out []string
	for _, a := range args {
		if a == "" || strings.ContainsAny(a, " \t\n'\"\\$`!*?[](){}<>|&;#~") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		out = append(out, a)
	}
	return strings.Join(out, " ")
}
