package lan

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/abacusdb/abacus/chaos/proc"
)

// MaxHosts is how many hosts there may be.
const MaxHosts = 99

// Losses are the shares of packets that Lose may have dropped, in percent.
var Losses = []int{1, 5, 10, 20, 30}

// Link is one direction between two hosts, which are counted from 1.
type Link struct{ From, To int }

// Both are the two directions between two hosts.
func Both(a, b int) []Link { return []Link{{a, b}, {b, a}} }

// LAN is the network. Its methods may be called by several goroutines.
type LAN struct {
	// net names it, and is the third byte of its addresses.
	net   int
	hosts int

	mu sync.Mutex
	// set is the set of the table that a link is in: "" or none while it is whole.
	set map[Link]string
	// dropped are packets, of faults that are over; live, of those that are not, as last seen.
	dropped, live map[Link]uint64
}

// tag begins every name that we give to the kernel, and with it what a test that was killed has left is found.
const tag = "abac"

func (l *LAN) name() string { return tag + strconv.Itoa(l.net) }

func (l *LAN) bridge() string            { return l.name() + "br" }
func (l *LAN) namespace(host int) string { return l.name() + "h" + strconv.Itoa(host) }
func (l *LAN) port(host int) string      { return l.name() + "p" + strconv.Itoa(host) }
func (l *LAN) mac(host int) string       { return fmt.Sprintf("02:ab:ac:00:%02x:%02x", l.net, host) }
func (l *LAN) subnet(last int) string    { return fmt.Sprintf("10.171.%d.%d", l.net, last) }
func (l *LAN) element(link Link) string {
	return fmt.Sprintf("{ %q . %q }", l.port(link.From), l.port(link.To))
}
func lossSet(percent int) string           { return "lose" + strconv.Itoa(percent) }
func (l *LAN) table() string               { return "bridge " + l.name() }
func owner(pid int, started string) string { return fmt.Sprintf("%s of %d %s", tag, pid, started) }

// Addr is a host's address; Router, ours on the bridge.
func (l *LAN) Addr(host int) string { return l.subnet(host) }
func (l *LAN) Router() string       { return l.subnet(254) }

// Enter is what to put before a command line to have it run on a host. The process stays the one that was started.
func (l *LAN) Enter(host int) []string {
	return []string{"nsenter", "--net=/run/netns/" + l.namespace(host), "--"}
}

// Create makes a network with hosts 1 to n.
func Create(n int) (*LAN, error) {
	if n < 1 || n > MaxHosts {
		return nil, fmt.Errorf("%d hosts: not between 1 and %d", n, MaxHosts)
	}
	if err := sweep(); err != nil {
		return nil, err
	}
	var err error
	for range 20 {
		l := &LAN{net: rand.IntN(255), hosts: n, set: map[Link]string{}, dropped: map[Link]uint64{}, live: map[Link]uint64{}}
		if err = ip("link", "add", l.bridge(), "type", "bridge"); err != nil {
			continue // the number is taken
		}
		if err := l.create(); err != nil {
			return nil, errors.Join(fmt.Errorf("make network %s: %w", l.name(), err), l.Close())
		}
		return l, nil
	}
	return nil, fmt.Errorf("make a bridge: %w", err)
}

func (l *LAN) create() error {
	if err := ip("link", "set", l.bridge(), "alias", owner(os.Getpid(), proc.StartTime(os.Getpid()))); err != nil {
		return err
	}
	// No addresses of IPv6 by itself: it would talk about them, and what is dropped of that be counted.
	if err := ip("link", "set", l.bridge(), "up", "address", l.mac(254), "addrgenmode", "none"); err != nil {
		return err
	}
	if err := ip("addr", "add", l.Router()+"/24", "dev", l.bridge()); err != nil {
		return err
	}
	for h := 1; h <= l.hosts; h++ {
		ns := l.namespace(h)
		for _, args := range [][]string{
			{"netns", "add", ns},
			{"link", "add", l.port(h), "type", "veth", "peer", "name", "eth0", "netns", ns},
			{"link", "set", l.port(h), "master", l.bridge(), "up", "addrgenmode", "none"},
			{"-n", ns, "link", "set", "eth0", "up", "address", l.mac(h), "addrgenmode", "none"},
			{"-n", ns, "link", "set", "lo", "up"},
			{"-n", ns, "addr", "add", l.Addr(h) + "/24", "dev", "eth0"},
		} {
			if err := ip(args...); err != nil {
				return err
			}
		}
	}
	// Whoever has an address is told for good: a question that a cut has swallowed would be asked again only later.
	for h := 1; h <= l.hosts; h++ {
		if err := ip("neigh", "replace", l.Addr(h), "lladdr", l.mac(h), "nud", "permanent", "dev", l.bridge()); err != nil {
			return err
		}
		for o := 1; o <= l.hosts; o++ {
			if o == h {
				continue
			}
			if err := ip("-n", l.namespace(h), "neigh", "replace", l.Addr(o), "lladdr", l.mac(o), "nud", "permanent", "dev", "eth0"); err != nil {
				return err
			}
		}
		if err := ip("-n", l.namespace(h), "neigh", "replace", l.Router(), "lladdr", l.mac(254), "nud", "permanent", "dev", "eth0"); err != nil {
			return err
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "table %s {\n", l.table())
	fmt.Fprintf(&b, "set cut { type ifname . ifname; counter; }\n")
	for _, p := range Losses {
		fmt.Fprintf(&b, "set %s { type ifname . ifname; counter; }\n", lossSet(p))
	}
	fmt.Fprintf(&b, "chain forward { type filter hook forward priority 0;\niifname . oifname @cut drop\n")
	for _, p := range Losses {
		// The chance first: a set counts the packets that it is asked for.
		fmt.Fprintf(&b, "numgen random mod 100 < %d iifname . oifname @%s drop\n", p, lossSet(p))
	}
	b.WriteString("}\n}\n")
	return nft(b.String())
}

// Cut has everything on the links dropped, until Heal.
func (l *LAN) Cut(links ...Link) error { return l.put("cut", links) }

// Lose has so many percent of the packets on the links dropped, one of Losses, until Heal.
func (l *LAN) Lose(percent int, links ...Link) error {
	if !slices.Contains(Losses, percent) {
		return fmt.Errorf("a loss of %d percent: it is one of %v", percent, Losses)
	}
	return l.put(lossSet(percent), links)
}

// Heal makes links whole again, all at once; without any, all that are not.
func (l *LAN) Heal(links ...Link) error {
	if len(links) == 0 {
		l.mu.Lock()
		links = slices.Collect(maps.Keys(l.set))
		l.mu.Unlock()
	}
	return l.put("", links)
}

// put moves links into a set, out of those that they are in.
func (l *LAN) put(set string, links []Link) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.look(); err != nil { // what a set has counted of a link goes with it
		return err
	}
	var b strings.Builder
	for _, link := range links {
		if min(link.From, link.To) < 1 || max(link.From, link.To) > l.hosts || link.From == link.To {
			return fmt.Errorf("link %v: hosts are 1 to %d", link, l.hosts)
		}
		if old := l.set[link]; old != "" {
			fmt.Fprintf(&b, "delete element %s %s %s\n", l.table(), old, l.element(link))
		}
		if set != "" {
			fmt.Fprintf(&b, "add element %s %s %s\n", l.table(), set, l.element(link))
		}
	}
	if err := nft(b.String()); err != nil {
		return err
	}
	for _, link := range links {
		l.dropped[link] += l.live[link]
		delete(l.live, link)
		if delete(l.set, link); set != "" {
			l.set[link] = set
		}
	}
	return nil
}

// Dropped is how many packets were dropped so far, link by link: a fault without any did not bite.
func (l *LAN) Dropped() (map[Link]uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.look(); err != nil {
		return nil, err
	}
	all := maps.Clone(l.dropped)
	for link, packets := range l.live {
		all[link] += packets
	}
	return all, nil
}

// look reads what the sets have counted. The caller holds mu.
func (l *LAN) look() error {
	sets := map[string]bool{}
	for _, set := range l.set {
		sets[set] = true
	}
	for set := range sets {
		out, err := run("", "nft", append([]string{"-j", "list", "set"}, append(strings.Fields(l.table()), set)...)...)
		if err != nil {
			return err
		}
		counted, err := parseSet(out)
		if err != nil {
			return fmt.Errorf("nft set %s: %w", set, err)
		}
		for ports, packets := range counted {
			l.live[Link{l.hostAt(ports[0]), l.hostAt(ports[1])}] = packets
		}
	}
	return nil
}

func (l *LAN) hostAt(port string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(port, l.name()+"p"))
	return n
}

// parseSet reads the packets counted by the elements of a set of pairs of ports.
func parseSet(out []byte) (map[[2]string]uint64, error) {
	var doc struct {
		Nftables []struct {
			Set *struct {
				Elem []struct {
					Elem struct {
						Val     struct{ Concat [2]string }
						Counter struct{ Packets uint64 }
					}
				}
			}
		}
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		return nil, err
	}
	counted := map[[2]string]uint64{}
	for _, item := range doc.Nftables {
		if item.Set != nil {
			for _, e := range item.Set.Elem {
				counted[e.Elem.Val.Concat] += e.Elem.Counter.Packets
			}
		}
	}
	return counted, nil
}

// Close removes the network. Processes on it should have ended.
func (l *LAN) Close() error {
	return remove(l.name())
}

// remove takes down what has that name, as far as it is there.
func remove(name string) error {
	var errs []error
	if out, err := run("", "nft", "-j", "list", "tables", "bridge"); err == nil && strings.Contains(string(out), `"`+name+`"`) {
		errs = append(errs, nft("delete table bridge "+name+"\n"))
	}
	out, err := run("", "ip", "netns", "list")
	errs = append(errs, err)
	for line := range strings.Lines(string(out)) {
		ns, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if h, ok := strings.CutPrefix(ns, name+"h"); ok && isNumber(h) {
			errs = append(errs, ip("netns", "del", ns)) // its end of the pair goes with it, and so does ours
		}
	}
	if _, err := os.Stat("/sys/class/net/" + name + "br"); err == nil {
		errs = append(errs, ip("link", "del", name+"br"))
	}
	return errors.Join(errs...)
}

// sweep removes the networks of tests that ended without.
func sweep() error {
	out, err := run("", "ip", "-j", "link", "show", "type", "bridge")
	if err != nil {
		return err
	}
	var links []struct {
		Ifname  string
		Ifalias string
	}
	if len(strings.TrimSpace(string(out))) > 0 {
		if err := json.Unmarshal(out, &links); err != nil {
			return fmt.Errorf("read the list of bridges: %w", err)
		}
	}
	for _, link := range links {
		var pid int
		var started string
		if n, _ := fmt.Sscanf(link.Ifalias, tag+" of %d %s", &pid, &started); n != 2 || proc.StartTime(pid) == started {
			continue
		}
		if err := remove(strings.TrimSuffix(link.Ifname, "br")); err != nil {
			return fmt.Errorf("remove what process %d has left: %w", pid, err)
		}
	}
	return nil
}

func isNumber(s string) bool { _, err := strconv.Atoi(s); return err == nil }

func ip(args ...string) error {
	_, err := run("", "ip", args...)
	return err
}

// nft runs a script of nftables, all of it or nothing.
func nft(script string) error {
	if script == "" {
		return nil
	}
	_, err := run(script, "nft", "-f", "-")
	return err
}

func run(in, name string, args ...string) ([]byte, error) {
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(in)
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return out, nil
}
