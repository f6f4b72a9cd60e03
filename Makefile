# The table of contents of the development loop; .ci/run is the whole of it in order.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)

# Linters are built from source at a fixed version, so that a new one cannot turn a good tree red.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

# Tests with real processes are kept apart: they want the machine to themselves,
# and the test cache cannot know that they depend on abacusd.
UNIT = $(shell $(GO) list ./... | grep -v '/chaos$$')

.DEFAULT_GOAL := help
.PHONY: help build test test-tools test-peers test-system sim planted powercut check demo cluster micro bench peers chaos chaos-long chaos-planted lint fmt fuzz

# A missing tool is a failure: a test that was skipped has shown nothing.
NEEDS := need() { command -v "$$1" >/dev/null || { echo "$$1 is missing: install the package $$2 (apt-get install $$2)" >&2; exit 1; }; }

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## bin/abacusd and bin/abacus, static
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/abacusd ./cmd/abacus

demo: build ## three real nodes, real data, jobs, and a kill in the middle; leaves nothing behind
	bin/abacus dev demo

cluster: build ## three nodes in the foreground (ports 7401-7403); Ctrl-C stops them
	bin/abacus dev up

test: ## all tests that need nothing but Go, git and make
	$(GO) test -timeout 8m $(UNIT)
	ABACUS_TEST_LOG=boltdb $(GO) test -timeout 5m ./store
	$(GO) test -tags planted -run '^TestPlanted' -timeout 5m ./store ./fsm ./client
	$(GO) test -short -run '^$$' -bench ScanSum -benchtime 1x -timeout 1m ./compute # that it runs; it measures nothing so short
	$(GO) test -timeout 9m -count=1 ./chaos/

# Real processes, each on a host and a disk of its own, broken in every way there is while clients work.
DURATION ?= 5m
chaos: ## a cluster broken in all ways (without root: in some) for DURATION (5m), judged by what its clients saw; SEED= NODES= NEMESES= WORKLOADS= WITHIN= TLS=off DIR=
	@test "$$(id -u)" = 0 || { echo "NOT ROOT: make chaos leaves out what takes a network and disks of its own (sudo make chaos does it all)" >&2; exit 0; }; \
	  set -e; $(NEEDS); need fsfreeze util-linux; need losetup mount; need mkfs.ext4 e2fsprogs; need strace strace; \
	  need ip iproute2; need nft nftables; need nsenter util-linux
	ABACUS_CHAOS_DURATION=$(DURATION) ABACUS_CHAOS_SEED=$(SEED) ABACUS_CHAOS_NODES=$(NODES) ABACUS_CHAOS_NEMESES="$(NEMESES)" ABACUS_CHAOS_WORKLOADS="$(WORKLOADS)" ABACUS_CHAOS_WITHIN=$(WITHIN) ABACUS_CHAOS_TLS="$(TLS)" ABACUS_CHAOS_DIR=$(DIR) \
	  $(GO) test -tags system -run '^TestChaos$$' -timeout 0 -count=1 -v ./chaos/

chaos-long: ## the same for DURATION (90m)
	$(MAKE) chaos DURATION=$(if $(filter file,$(origin DURATION)),90m,$(DURATION))

chaos-planted: ## bugs that are put in on purpose: the campaign must find each within four minutes (root)
	@test "$$(id -u)" = 0 || { echo "make chaos-planted needs root: it cuts networks and the power of disks (sudo make chaos-planted)" >&2; exit 1; }
	@set -e; $(NEEDS); need losetup mount; need mkfs.ext4 e2fsprogs; need ip iproute2; need nft nftables; need nsenter util-linux
	$(GO) test -tags system,planted -run '^TestPlantedChaos$$' -timeout 25m -count=1 -v ./chaos/

test-tools: ## redis-cli, redis-benchmark and awk against real nodes, sqlite3 and python3 against jobs, and all unit tests under the race detector
	@set -e; $(NEEDS); \
	  need redis-cli redis-tools; need redis-benchmark redis-tools; need gcc gcc; need awk mawk; need sort coreutils; need zcat gzip; need chromium chromium; need sqlite3 sqlite3; need python3 python3
	CGO_ENABLED=1 $(GO) build -race ./... # first, or the first packages' tests share the processors with the compiler
	CGO_ENABLED=1 $(GO) test -race -short -timeout 15m $(UNIT) # all the same tests; make test has the long walks of their models
	$(GO) test -tags tools -run '^TestTools' -timeout 15m -count=1 ./chaos/ ./compute/

test-system: ## tests that need root: disks that freeze, fail, hang and fill under real nodes, power cuts, networks that are cut
	@test "$$(id -u)" = 0 || { echo "make test-system needs root: it mounts and freezes file systems, and traces processes (sudo make test-system)" >&2; exit 1; }
	@set -e; $(NEEDS); \
	  need fsfreeze util-linux; need losetup mount; need mount mount; need mkfs.ext4 e2fsprogs; need strace strace; \
	  need ip iproute2; need nft nftables; need nsenter util-linux; need ping iputils-ping
	$(GO) test -tags system -timeout 2m -count=1 -v ./chaos/lan/ ./chaos/disk/
	$(GO) test -tags system -run '^TestSystem|^TestPowerCut' -timeout 15m -count=1 -v ./chaos/
	$(GO) test -tags system,planted -run '^TestPlantedPowerCuts' -timeout 4m -count=1 -v ./chaos/

# A cut takes a fifth of a second, on one of three nodes a whole one; five times that is time enough.
CUTS ?= 300
powercut: ## CUTS (300) power cuts under one node and under three, for root; a long run: make powercut CUTS=5000
	@test "$$(id -u)" = 0 || { echo "make powercut needs root: it mounts file systems (sudo make powercut)" >&2; exit 1; }
	@set -e; $(NEEDS); \
	  need losetup mount; need mkfs.ext4 e2fsprogs
	ABACUS_CUTS=$(CUTS) $(GO) test -tags system -run '^TestPowerCut' -timeout $$(( 10 + $(CUTS) / 30 ))m -count=1 -v ./chaos/

# What docs/testing.md promises, times SIM_TIMES. Each run takes new seeds.
SIM_TIMES ?= 1
SIM_LIMIT ?= 10m
sim: ## whole clusters in virtual time: 1,000,000 checked operations, 5,000 crashes, 8,000 cuts; SIM_TIMES=10 SIM_LIMIT=2h for more
	ABACUS_SIM_OPS=$$((1000000 * $(SIM_TIMES))) ABACUS_SIM_CRASHES=$$((5000 * $(SIM_TIMES))) ABACUS_SIM_CUTS=$$((8000 * $(SIM_TIMES))) ABACUS_SIM_LIMIT=$(SIM_LIMIT) \
	  $(GO) test -timeout 0 -count=1 -run '^TestSim$$' -v ./node/sim/

planted: ## bugs that are put in on purpose: each must be found within 30 s
	$(GO) test -tags planted -timeout 9m -count=1 -run '^TestPlanted' -v ./node/sim/ ./store/ ./fsm/ ./client/

# Under three minutes, to be run before every commit.
check: lint ## formatting, vet, staticcheck, import rules, and the changed packages under the race detector
	@changed=$$( { git diff --name-only HEAD; git ls-files --others --exclude-standard; git diff --name-only HEAD~1 2>/dev/null; } \
	    | grep '\.go$$' | xargs -r -n1 dirname | sort -u | grep -v '^chaos$$' \
	    | while read d; do if ls "$$d"/*.go >/dev/null 2>&1; then echo "./$$d"; fi; done ); \
	  test -n "$$changed" || changed="./fsm/... ./sharding/... ./transport/..."; \
	  echo CGO_ENABLED=1 $(GO) test -race -short -timeout 150s $$changed; \
	  CGO_ENABLED=1 $(GO) test -race -short -timeout 150s $$changed

lint: ## formatting, vet, staticcheck and the import rules
	@bad=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$bad" || { echo "run make fmt; not formatted:" $$bad >&2; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags tools,system ./chaos/... ./compute/
	$(GO) vet -tags system,planted ./chaos/...
	$(GO) vet -tags planted ./...
	$(GO) run $(STATICCHECK) -tags tools,system ./...
	$(GO) test -count=1 .

fmt: ## format all Go files
	gofmt -w $$(git ls-files '*.go')

# Go's fuzzer now and then takes the end of its own time for a failure (golang/go#75804, mended in Go 1.27):
# it then says nothing but "context deadline exceeded", and writes no input. Any other failure counts.
FUZZTIME ?= 20s
fuzz: ## every fuzz test for FUZZTIME (20s) each
	@set -e; out=$$(mktemp); trap 'rm -f $$out' EXIT; for f in $$(git grep -l '^func Fuzz' -- '*_test.go'); do \
	  for name in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' $$f); do \
	    echo "fuzz $$name in $$(dirname $$f)"; \
	    if ! $(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) ./$$(dirname $$f) >$$out 2>&1; then \
	      cat $$out; \
	      if grep -q 'Failing input written\|panic' $$out || test "$$(grep -A1 '^--- FAIL' $$out | tail -1 | tr -d ' ')" != contextdeadlineexceeded; then exit 1; fi; \
	      echo "the fuzzer ran into its own deadline and found nothing"; \
	    else tail -3 $$out; fi; \
	  done; done

# Some minutes; compared with another revision: make micro BASE=main~10
micro: ## the micro-benchmarks, as benchstat tells them; BASE=revision compares
	@bench/micro.sh $(BASE)

# An hour or two on a machine that does nothing else. What is below the mark in docs/benchmarks.md is made anew.
bench: ## the micro-benchmarks and the whole table beside etcd, Redis and PostgreSQL, into docs/benchmarks.md
	@mkdir -p bin/peers
	bench/micro.sh $(BASE) > bin/peers/micro.txt
	$(MAKE) peers PEERS_ARGS='$(BENCH_ARGS)'
	bench/page.sh bin/peers/peers.md bin/peers/micro.txt

test-peers: ## the load program's own tests; a module of its own, with etcd's client and others to download
	cd bench/peers && $(GO) vet ./... && $(GO) test ./... && $(GO) run $(STATICCHECK) ./...

# Some minutes with -quick. All of it takes an hour or two and wants the machine to itself: make peers PEERS_ARGS=
PEERS_ARGS ?= -quick
peers: build ## the table of figures beside etcd, Redis and PostgreSQL, short, into bin/peers/peers.md; PEERS_ARGS= for all of it
	PEERS_BIN=$(CURDIR)/bin/peers bench/peers/setup.sh etcd redis pg
	cd bench/peers && $(GO) build -o $(CURDIR)/bin/peers/peers .
	ABACUS_BIN=$(CURDIR)/bin bin/peers/peers suite -bin bin/peers -dir bin/peers/data -out bin/peers $(PEERS_ARGS)
