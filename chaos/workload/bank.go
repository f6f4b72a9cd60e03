package workload

import (
	"fmt"
	"math/rand/v2"
	"sync"
)

// Banks is the workload of accounts between which money moves: each bank's accounts have one {tag}, a transfer is a MULTI
// of two INCRBY. Whatever fails, whatever is uncertain, the money of a bank stays what it was, for whoever
// looks at all its accounts at one moment: a MULTI of reads, or a job.
type Banks struct {
	prefix string

	mu    sync.Mutex
	banks []*bank
	wrong []string
	// looks is how often somebody saw all accounts of a bank, or of all.
	looks int
}

type bank struct {
	accounts []string
	opened   bool
}

// Of each bank: accounts, and what is in each of them at first.
const (
	bankAccounts = 5
	bankMoney    = 100
)

// NewBanks returns one bank for each of so many shards; all keys begin with the prefix. Each of Opening has to be answered
// before anything else is asked for.
func NewBanks(prefix string, shards int, k Keys) *Banks {
	b := &Banks{prefix: prefix}
	for shard := range shards {
		tag, one := k(shard), &bank{}
		for a := range bankAccounts {
			one.accounts = append(one.accounts, fmt.Sprintf("%s{%s}/%d", prefix, tag, a))
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
	one := b.banks[shard%len(b.banks)]
	if read {
		return b.audit(one)
	}
	from := rng.IntN(bankAccounts)
	to := (from + 1 + rng.IntN(bankAccounts-1)) % bankAccounts
	sum := 1 + rng.Int64N(20)
	return Call{Op{Kind: Multi, Key: one.accounts[from], Parts: []Op{
		{Kind: Incr, Key: one.accounts[from], By: -sum},
		{Kind: Incr, Key: one.accounts[to], By: sum},
	}}, func(Outcome, Result) {}}
}

func (b *Banks) audit(one *bank) Call {
	op := Op{Kind: Multi, Key: one.accounts[0]}
	for _, a := range one.accounts {
		op.Parts = append(op.Parts, Op{Kind: Get, Key: a})
	}
	return Call{op, func(o Outcome, r Result) {
		if o != Answered {
			return
		}
		sum, held := int64(0), []string{}
		for _, p := range r.Parts {
			n, ok := atoi(p.Value)
			if held = append(held, p.Value); !ok {
				sum = -1 << 40
			}
			sum += n
		}
		b.looked(fmt.Sprintf("the accounts of %s hold %q", one.accounts[0], held), sum, bankAccounts*bankMoney)
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

// Final reads all banks.
func (b *Banks) Final() (calls []Call) {
	for _, one := range b.banks {
		calls = append(calls, b.audit(one))
	}
	return calls
}

func (b *Banks) Check(f *Findings) int {
	for _, one := range b.banks {
		if !one.opened {
			f.Add("bank %s was never opened", one.accounts[0])
		}
	}
	for _, w := range b.wrong {
		f.Add("bank: %s", w)
	}
	return len(b.banks) * bankAccounts
}

// Jobs is the workload of jobs over banks, while money moves in them: each shard is read at one position of its log, so
// the sum over all accounts is all the money, and their number is theirs.
type Jobs struct {
	banks *Banks

	mu               sync.Mutex
	begun, done, bad int
}

// NewJobs returns the jobs over these banks.
func NewJobs(b *Banks) *Jobs { return &Jobs{banks: b} }

// Next is a job; there are no others.
func (j *Jobs) Next(rng *rand.Rand, _ int, _ bool) Call {
	accounts := int64(len(j.banks.banks) * bankAccounts)
	op, want := Op{Kind: Job, Key: j.banks.prefix, Value: "sum"}, accounts*bankMoney
	if rng.IntN(3) == 0 {
		op.Value, want = "count", accounts
	}
	j.mu.Lock()
	j.begun++
	j.mu.Unlock()
	return Call{op, func(o Outcome, r Result) {
		j.mu.Lock()
		if o == Answered {
			j.done++
		} else {
			j.bad++
		}
		j.mu.Unlock()
		if o == Answered {
			j.banks.looked("job "+op.Value, r.Int, want)
		}
	}}
}

// Done says how many jobs there were, and how many ended with a result.
func (j *Jobs) Done() (begun, done int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.begun, j.done
}

// Final is one job of each kind.
func (j *Jobs) Final() []Call { return nil }

// Check adds nothing: what a job saw is the banks' finding.
func (j *Jobs) Check(*Findings) int { return 0 }
