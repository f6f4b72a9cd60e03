#!/bin/sh
# Runs all micro-benchmarks COUNT (6) times for BENCHTIME (300ms) each and prints them as benchstat does. With a
# revision as its argument, both it and this tree are run, in turn, and compared.
set -eu
cd "$(dirname "$0")/.."
count=${COUNT:-6} time=${BENCHTIME:-300ms}
benchstat=golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da
out=$(mktemp -d)
trap 'git worktree remove --force "$out/base" 2>/dev/null || true; rm -rf "$out"' EXIT

# Test binaries are built first, so that the two trees' runs are next to each other.
compile() {
	(cd "$1" && for p in $(git grep -l '^func Benchmark' -- '*_test.go' ':!bench/peers' | xargs -n1 dirname | sort -u); do
		name=$(echo "$p" | tr / _)
		mkdir -p "$2/$name" && go test -c -o "$2/$name/test" "./$p" && echo "$p" >"$2/$name/dir"
	done)
}
measure() {
	for d in "$1"/*/; do
		(cd "$2/$(cat "$d/dir")" && echo "pkg: github.com/abacusdb/abacus/$(cat "$d/dir")" && "$d/test" -test.run '^$' -test.bench . -test.benchmem -test.benchtime "$time" >"$out/run.txt" && grep '^Benchmark\|^goos\|^goarch\|^cpu' "$out/run.txt")
	done
}

compile . "$out/new"
if [ $# -gt 0 ]; then
	git worktree add -q --detach "$out/base" "$1"
	compile "$out/base" "$out/old"
fi
for i in $(seq "$count"); do
	[ $# -eq 0 ] || measure "$out/old" "$out/base" >>"$out/old.txt"
	measure "$out/new" "$PWD" >>"$out/new.txt"
	echo "run $i of $count" >&2
done
if [ $# -gt 0 ]; then
	go run "$benchstat" "before=$out/old.txt" "after=$out/new.txt"
else
	go run "$benchstat" "this tree=$out/new.txt"
fi
