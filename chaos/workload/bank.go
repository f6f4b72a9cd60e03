package workload

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Banks is the workload of accounts between which money moves: each bank's accounts have one {tag}, a transfer is a MULTI
// of two INCRBY, and an APPEND of the transfer's name to the bank's ledger. Whatever fails, whatever is uncertain, the money of a bank stays what it
// was, for whoever looks at all its accounts at one moment: a MULTI of reads, or a job. And since a transfer that is lost, or carried out twice, keeps
// that, too: in the end each that was acknowledged is in the ledger once, where its answer said, one that failed for certain is not, and
// the accounts hold exactly what the transfers in the ledger make of them.
type Banks struct {
	prefix string

	mu        sync.Mutex
	banks     []*bank
	transfers int // given out
	wrong     []string
	// looks is how often somebody saw all accounts of a bank, or of all.
	looks int
}

type bank struct {
	tag      string
	accounts []string
	ledgers  []*ledger // the last is the one in use
	opened   bool
	// ends is what the accounts hold in the end, nil: nobody could read it.
	ends []int64
}

// ledger is a key that transfers leave their names in. A bank begins a new one now and then, for it is written whole each time.
type ledger struct {
	key       string
	transfers map[string]*transfer
	end       string
	read      bool // end is known
}

type transfer struct {
	from, to int
	sum      int64
	o        Outcome
	at       int // the ledger's length after it, as answered
}

// Of each bank: accounts, what is in each of them at first, and how many transfers a ledger holds.
const (
	bankAccounts = 5
	bankMoney    = 100
	ledgerLength = 300
)

// NewBanks returns one bank for each of so many shards; all keys of accounts begin with the prefix, and no others. Each of Opening has to be answered
// before anything else is asked for.
func NewBanks(prefix string, shards int, k Keys) *Banks {
	b := &Banks{prefix: prefix}
	for shard := range shards {
		one := &bank{tag: k(shard)}
		for a := range bankAccounts {
			one.accounts = append(one.accounts, fmt.Sprintf("%s{%s}/%d", prefix, one.tag, a))
		}
		b.banks = append(b.banks, one)
	}
	return b
}

// Opening are calls that open the banks. They may be repeated before the first Next.
func (b *Banks) Opening() (calls []Call) {
	for _, one := range b.banks {
		var op Op
		for _, a := range one.accounts {
			op.Parts = append(op.Parts, Op{Kind: Set, Key: a, Value: fmt.Sprint(bankMoney)})
		}
		op.Kind, op.Key = Multi, one.accounts[0]
		calls = append(calls, Call{op, func(o Outcome, _ Result) {
			b.mu.Lock()
			defer b.mu.Unlock()
			one.opened = one.opened || o == Answered
		}})
	}
	return calls
}

func (b *Banks) Next(rng *rand.Rand, shard int, read bool) Call {
	b.mu.Lock()
	defer b.mu.Unlock()
	one := b.banks[shard%len(b.banks)]
	if read {
		return b.audit(one, nil)
	}
	t := &transfer{from: rng.IntN(bankAccounts), sum: 1 + rng.Int64N(20), o: Uncertain}
	t.to = (t.from + 1 + rng.IntN(bankAccounts-1)) % bankAccounts
	b.transfers++
	l, name := one.ledger(), strconv.Itoa(b.transfers)+";"
	l.transfers[name] = t
	return Call{Op{Kind: Multi, Key: one.accounts[t.from], Parts: []Op{
		{Kind: Incr, Key: one.accounts[t.from], By: -t.sum},
		{Kind: Incr, Key: one.accounts[t.to], By: t.sum},
		{Kind: Append, Key: l.key, Value: name},
	}}, func(o Outcome, r Result) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if t.o = o; o == Answered && len(r.Parts) == 3 {
			t.at = int(r.Parts[2].Int)
		}
	}}
}

// ledger is the one in use.
func (one *bank) ledger() *ledger {
	if n := len(one.ledgers); n == 0 || len(one.ledgers[n-1].transfers) >= ledgerLength {
		one.ledgers = append(one.ledgers, &ledger{key: fmt.Sprintf("ledger/{%s}/%d", one.tag, n), transfers: map[string]*transfer{}})
	}
	return one.ledgers[len(one.ledgers)-1]
}

// audit looks at all accounts of a bank, and tells tell what they hold.
func (b *Banks) audit(one *bank, tell func(held []int64)) Call {
	op := Op{Kind: Multi, Key: one.accounts[0]}
	for _, a := range one.accounts {
		op.Parts = append(op.Parts, Op{Kind: Get, Key: a})
	}
	return Call{op, func(o Outcome, r Result) {
		if o != Answered {
			return
		}
		sum, held, numbers := int64(0), []string{}, []int64{}
		for _, p := range r.Parts {
			n, ok := atoi(p.Value)
			if held = append(held, p.Value); !ok {
				sum = -1 << 40
			}
			sum += n
			numbers = append(numbers, n)
		}
		b.looked(fmt.Sprintf("the accounts of %s hold %q", one.accounts[0], held), sum, bankAccounts*bankMoney)
		if tell != nil {
			tell(numbers)
		}
	}}
}

// looked notes what somebody saw, and should have seen.
func (b *Banks) looked(what string, saw, want int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.looks++; saw != want && len(b.wrong) < mostFaults {
		b.wrong = append(b.wrong, fmt.Sprintf("%s: %d in all, want %d", what, saw, want))
	}
}

// Final reads all banks, and their ledgers.
func (b *Banks) Final() (calls []Call) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, one := range b.banks {
		calls = append(calls, b.audit(one, func(held []int64) {
			b.mu.Lock()
			defer b.mu.Unlock()
			one.ends = held
		}))
		for _, l := range one.ledgers {
			calls = append(calls, Call{Op{Kind: Get, Key: l.key}, func(o Outcome, r Result) {
				b.mu.Lock()
				defer b.mu.Unlock()
				if o == Answered {
					l.end, l.read = r.Value, true
				}
			}})
		}
	}
	return calls
}

func (b *Banks) Check(f *Findings) (keys int) {
	for _, w := range b.wrong {
		f.Add("bank: %s", w)
	}
	var unread []string
	for _, one := range b.banks {
		keys += len(one.accounts) + len(one.ledgers)
		if !one.opened {
			f.Add("bank %s was never opened", one.accounts[0])
			continue
		}
		missing := one.check(f)
		unread = append(unread, missing...)
	}
	f.unread("bank", unread, keys)
	return keys
}

// check compares the accounts of a bank with its ledgers, and these with what was answered. It returns the keys whose ends nobody could read.
func (one *bank) check(f *Findings) (unread []string) {
	want := make([]int64, bankAccounts)
	for i := range want {
		want[i] = bankMoney
	}
	for _, l := range one.ledgers {
		if !l.read {
			unread = append(unread, l.key)
			continue
		}
		l.check(f, want)
	}
	switch {
	case one.ends == nil:
		return append(unread, one.accounts...)
	case len(unread) == 0 && !slices.Equal(one.ends, want):
		f.Add("bank: the accounts of %s end at %d, and by the transfers in its ledgers they hold %d", one.accounts[0], one.ends, want)
	}
	return unread
}

// check judges a ledger and carries out what is in it.
func (l *ledger) check(f *Findings, accounts []int64) {
	at, seen := 0, map[string]bool{}
	for name := range strings.SplitAfterSeq(l.end, ";") {
		if name == "" {
			continue
		}
		at += len(name)
		t := l.transfers[name]
		switch {
		case t == nil:
			f.Add("bank: %s holds the transfer %q, which nobody began", l.key, name)
			continue
		case seen[name]:
			f.Add("bank: %s holds the transfer %q twice", l.key, name)
		case t.o == Failed:
			f.Add("bank: %s holds the transfer %q, which certainly failed", l.key, name)
		case t.o == Answered && t.at != at:
			f.Add("bank: the transfer %q is in %s up to %d, the answer said %d", name, l.key, at, t.at)
		}
		seen[name] = true
		accounts[t.from] -= t.sum
		accounts[t.to] += t.sum
	}
	for name, t := range l.transfers {
		if t.o == Answered && !seen[name] {
			f.Add("bank: the transfer %q was acknowledged and is not in %s", name, l.key)
		}
	}
}

// Jobs is the workload of jobs over banks, while money moves in them: each shard is read at one position of its log, so
// the sum over all accounts is all the money, and their number is theirs.
type Jobs struct {
	banks *Banks

	mu               sync.Mutex
	begun, done, bad int
	wrong            []string
}

// Kinds of jobs.
const (
	JobSum   = "sum"   // of all numbers
	JobCount = "count" // of all keys
	// JobGroups is a sum for each second part of the key, between slashes.
	JobGroups = "groups"
	// JobExpression is the sum, by way of an expression.
	JobExpression = "expression"
)

// JobKinds are all of them.
var JobKinds = []string{JobSum, JobCount, JobGroups, JobExpression}

// NewJobs returns the jobs over these banks.
func NewJobs(b *Banks) *Jobs { return &Jobs{banks: b} }

// Next is a job; there are no others.
func (j *Jobs) Next(rng *rand.Rand, _ int, _ bool) Call {
	accounts := int64(len(j.banks.banks) * bankAccounts)
	op, want := Op{Kind: Job, Key: j.banks.prefix, Value: JobKinds[rng.IntN(len(JobKinds))]}, accounts*bankMoney
	if op.Value == JobCount {
		want = accounts
	}
	j.mu.Lock()
	j.begun++
	j.mu.Unlock()
	return Call{op, func(o Outcome, r Result) {
		j.mu.Lock()
		defer j.mu.Unlock()
		if o != Answered {
			j.bad++
			return
		}
		if j.done++; r.Int != want && len(j.wrong) < mostFaults {
			j.wrong = append(j.wrong, fmt.Sprintf("job %s: %d in all, want %d", op.Value, r.Int, want))
		}
		if op.Value == JobGroups {
			j.wrong = append(j.wrong, j.banks.wrongGroups(r.Parts)...)
		}
	}}
}

// wrongGroups tells which banks' sums are not what all of their money is.
func (b *Banks) wrongGroups(groups []Result) (wrong []string) {
	sums := map[string]int64{}
	for _, g := range groups {
		sums[g.Value] += g.Int
	}
	for _, one := range b.banks {
		if got := sums["{"+one.tag+"}"]; got != bankAccounts*bankMoney {
			wrong = append(wrong, fmt.Sprintf("a job finds %d in bank %s, want %d", got, one.tag, bankAccounts*bankMoney))
		}
	}
	if len(sums) != len(b.banks) {
		wrong = append(wrong, fmt.Sprintf("a job finds %d banks, want %d", len(sums), len(b.banks)))
	}
	return wrong[:min(len(wrong), mostFaults)]
}

// Done says how many jobs there were, and how many ended with a result.
func (j *Jobs) Done() (begun, done int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.begun, j.done
}

// Final is nothing: what a job saw is judged at once.
func (j *Jobs) Final() []Call { return nil }

// Check adds what jobs saw and should not have. It judges no keys, which are the banks'.
func (j *Jobs) Check(f *Findings) int {
	for _, w := range j.wrong {
		f.Add("%s", w)
	}
	return 0
}
