// Package abacus_test holds what must be true of the source as a whole. See
// docs/architecture.md for the picture that the import rules keep.
package abacus_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/abacusdb/abacus/"

// rule says what a folder may import, and why nothing else.
type rule struct {
	// folder is a path in this module; it also covers what is below it, unless that has a rule.
	folder string
	// ours and theirs are what it may import, from this module and from outside
	// (the standard library is always allowed). "*" allows anything.
	ours, theirs []string
	why          string
}

var rules = []rule{
	{"fsm/command", nil, nil, "a client shares the command format; it must not draw in Raft, storage or sockets"},
	{"sharding/access", nil, nil, "decisions only: who may do what is tested as a table"},
	{"sharding", nil, nil, "decisions only: what could touch a file or a socket could not be tested as a table"},
	{"transport", []string{"transport/cert"}, nil, "everything above it must be able to run on the in-memory twin"},
	{"transport/cert", nil, nil, "what proves who somebody is depends on nothing but the standard library's TLS"},
	{"transport/resp", nil, nil, "a parser of bytes from strangers is read and fuzzed by itself"},
	{"transport/transporttest", []string{"transport"}, nil, "the in-memory twin of transport and nothing more"},
	{"compute/job", nil, nil, "a client knows jobs without knowing how they are computed"},
	{"compute/job/jobtest", []string{"compute/job"}, nil, "random jobs for the tests of whoever runs them, which no program links"},
	{"fsm/planted", nil, nil, "bugs are planted in every layer, so what plants them depends on none"},
	{"fsm/lookahead", nil, nil, "hints about pages: who may read them as more than that is bbolt"},
	{"fsm/guardpage", nil, nil, "memory with edges, for the tests of whoever reads past bounds that Go does not check"},
	{"fsm/crc32c", nil, []string{"golang.org/x/sys/cpu"}, "one sum, judged by the library's"},
	{"fsm", []string{"fsm/command", "fsm/crc32c", "fsm/lookahead", "fsm/planted"}, []string{"github.com/hashicorp/raft", "go.etcd.io/bbolt", "github.com/tidwall/btree"},
		"apply depends on nothing but entries and its own file, or replicas diverge"},
	{"store", []string{"fsm", "fsm/command", "fsm/planted", "store/wal", "transport"},
		[]string{"github.com/hashicorp/raft", "github.com/hashicorp/raft-boltdb/v2", "go.etcd.io/bbolt", "github.com/hashicorp/go-hclog", "github.com/hashicorp/go-metrics", "github.com/hashicorp/go-metrics/compat", "golang.org/x/time/rate"},
		"a replica knows its own group; what shards and jobs are is decided above it"},
	{"store/wal", []string{"fsm/planted"}, []string{"github.com/hashicorp/raft"},
		"a log of entries: whose they are and what is in them is decided above it"},
	{"compute/wire", nil, nil, "fields of bytes, from strangers too: nothing to know but numbers"},
	{"compute/fold", []string{"compute/job", "compute/wire"}, []string{"github.com/axiomhq/hyperloglog", "github.com/cespare/xxhash/v2"},
		"what comes to the same bytes in any order is tested without records, tasks and nodes"},
	{"compute/expr", []string{"compute/fold", "compute/job"},
		[]string{"cel.dev/cel-go/cel", "cel.dev/cel-go/common/ast", "cel.dev/cel-go/common/cost", "cel.dev/cel-go/common/decls", "cel.dev/cel-go/common/env", "cel.dev/cel-go/common/functions",
			"cel.dev/cel-go/common/operators", "cel.dev/cel-go/common/overloads", "cel.dev/cel-go/common/stdlib", "cel.dev/cel-go/common/types", "cel.dev/cel-go/common/types/ref",
			"cel.dev/cel-go/common/types/traits", "cel.dev/cel-go/ext", "cel.dev/cel-go/interpreter", "github.com/tidwall/gjson"},
		"the one place that knows CEL: what else runs over records is written by us"},
	{"compute/marks", nil, []string{"golang.org/x/sys/cpu"}, "where a string may end is a matter of bytes: nothing of documents, paths and jobs"},
	{"compute", []string{"compute/expr", "compute/fold", "compute/job", "compute/marks", "compute/wire", "sharding", "transport"}, []string{"github.com/tidwall/gjson", "golang.org/x/time/rate"},
		"jobs run on views that node hands in: no Raft and no storage, so that they are tested on a map"},
	{"client", []string{"sharding/access", "compute/job", "sharding", "fsm/command", "fsm/planted", "transport", "transport/cert", "transport/resp"}, []string{"golang.org/x/sync/semaphore"},
		"users link the client: no Raft, no bbolt, no dependency to argue with"},
	{"client/backup", []string{"client", "sharding"}, []string{"golang.org/x/sync/errgroup", "golang.org/x/time/rate"},
		"the format and its making are a client's: what reads a backup needs no cluster"},
	{"client/clienttest", []string{"client", "compute/job", "sharding", "transport/resp"}, nil, "a server for the client's tests, which no program links"},
	{"node/front", []string{"sharding/access", "fsm/command", "sharding", "transport", "transport/cert", "transport/resp", "compute/job"}, []string{"golang.org/x/sync/semaphore"},
		"the RESP front end works on an interface, so that it is tested without a cluster"},
	{"node/page", nil, nil, "the page knows a node by what it answers over HTTP, as any program does"},
	{"node", []string{"sharding/access", "fsm", "fsm/command", "store", "store/wal", "sharding", "transport", "transport/cert", "transport/resp", "compute", "compute/job", "node/front", "node/page", "client", "client/backup"}, []string{"*"},
		"the one place that knows both Raft and compute"},
	{"node/sim", []string{"chaos/workload", "node", "store", "fsm/command", "sharding", "transport", "transport/transporttest"},
		[]string{"github.com/hashicorp/raft", "golang.org/x/sys/unix"},
		"it runs whole nodes from outside, as a client and as their network and disk; no program links it"},
	{"bench", []string{"client", "compute/job", "sharding"}, []string{"github.com/HdrHistogram/hdrhistogram-go"}, "a load program sees what a client sees"},
	{"chaos/disk", nil, nil, "cuts the power of a file system, and knows nothing of who writes to it"},
	{"chaos/lan", []string{"chaos/proc"}, nil, "cuts the links of a network, and knows nothing of who talks on it; whose process is whose, proc tells"},
	{"chaos/workload", []string{"sharding"}, []string{"github.com/anishathalye/porcupine"}, "judges what clients saw, of the simulation as of real processes, and knows neither"},
	{"chaos/campaign", []string{"chaos/disk", "chaos/lan", "chaos/proc", "chaos/workload", "client", "compute/job", "sharding", "transport/cert", "transport/resp"}, nil,
		"it works on real processes from outside, as chaos does"},
	{"chaos", []string{"chaos/campaign", "chaos/disk", "chaos/lan", "chaos/proc", "chaos/load", "client", "compute/job", "sharding", "transport/cert", "transport/resp"}, nil,
		"it works on real processes from outside; what it could reach inside it would come to trust"},
	{"cmd/abacusd", []string{"node"}, []string{"*"}, "flags to configuration, and nothing else"},
	{"cmd/abacus", []string{"client", "client/backup", "bench", "compute/job", "sharding", "transport/cert", "transport/resp", "chaos/proc", "chaos/load"}, []string{"*"},
		"the command line is a client: what it does, a user's program can do"},
}

// restricted outside packages: only these folders may import them, whatever the rules above allow.
var restricted = map[string]struct {
	only []string
	why  string
}{
	"github.com/hashicorp/raft":           {[]string{"fsm", "store", "store/wal", "node/sim"}, "one place starts Raft; fsm needs its Log and FSM types, the simulation's slow disk its stores"},
	"github.com/hashicorp/raft-boltdb/v2": {[]string{"store"}, "the log's choice is the replica's"},
	"go.etcd.io/bbolt":                    {[]string{"fsm", "store"}, "state is reached through views"},
	"github.com/anishathalye/porcupine":   {[]string{"chaos/workload"}, "judging histories is for tests"},
	"github.com/redis/go-redis/v9":        {nil, "others' clients are for tests: they show that ours is not needed"},
	"github.com/redis/rueidis":            {nil, "others' clients are for tests: they show that ours is not needed"},
}

type pkg struct {
	ImportPath, Doc, Name string
	Imports               []string
}

// TestImports shows that arrows between packages go the way that
// docs/architecture.md draws them, and fails with the reason of the rule.
func TestImports(t *testing.T) {
	for _, p := range list(t) {
		folder := strings.TrimPrefix(p.ImportPath, module)
		r, ok := ruleFor(folder)
		if !ok {
			t.Errorf("%s has no import rule: add one to lint_test.go, with its reason", folder)
			continue
		}
		for _, imp := range p.Imports {
			if ours, ok := strings.CutPrefix(imp, module); ok {
				if ours != folder && !slices.Contains(r.ours, ours) {
					t.Errorf("%s must not import %s: %s", folder, ours, r.why)
				}
				continue
			}
			if first, _, _ := strings.Cut(imp, "/"); !strings.Contains(first, ".") {
				continue // the standard library
			}
			if !slices.Contains(r.theirs, "*") && !slices.Contains(r.theirs, imp) {
				t.Errorf("%s must not import %s: %s", folder, imp, r.why)
			}
			if x, ok := restricted[imp]; ok && !slices.Contains(x.only, folder) {
				t.Errorf("%s must not import %s: %s", folder, imp, x.why)
			}
		}
	}
}

// TestPackageComments shows that every package says what it is.
func TestPackageComments(t *testing.T) {
	for _, p := range list(t) {
		want := "Package " + p.Name + " "
		if p.Name == "main" {
			want = "Command " + path.Base(p.ImportPath) + " "
		}
		if !strings.HasPrefix(p.Doc, want) {
			t.Errorf("%s: its comment must begin with %q, it is %q", p.ImportPath, want, p.Doc)
		}
	}
}

func ruleFor(folder string) (best rule, ok bool) {
	for _, r := range rules {
		if (folder == r.folder || strings.HasPrefix(folder, r.folder+"/")) && len(r.folder) >= len(best.folder) {
			best, ok = r, true
		}
	}
	return best, ok
}

// list returns the packages of this module that have more than tests.
func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Doc,Name,Imports,GoFiles", "./...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		t.Fatalf("list the packages: %v", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			pkg
			GoFiles []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("list the packages: %v", err)
		}
		if len(p.GoFiles) > 0 {
			pkgs = append(pkgs, p.pkg)
		}
	}
	if len(pkgs) < 10 {
		t.Fatalf("only %d packages are listed", len(pkgs))
	}
	return pkgs
}
