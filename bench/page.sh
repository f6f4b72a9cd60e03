#!/bin/sh
# Makes what is below the mark in docs/benchmarks.md anew, of the table and of the micro-benchmarks that are given.
set -eu
table=$(realpath "$1") micro=$(realpath "$2")
cd "$(dirname "$0")/.."
page=docs/benchmarks.md
mark='<!-- What follows is made by make bench. -->'
grep -qxF "$mark" "$page" || { echo "$page has no line: $mark" >&2; exit 1; }
new=$(mktemp)
trap 'rm -f "$new"' EXIT
{
	sed "/^$mark\$/q" "$page"
	echo
	sed 's/^#/##/' "$table"
	printf '\n## Micro-benchmarks\n\n```\n'
	cat "$micro"
	printf '```\n'
} >"$new"
cat "$new" >"$page"
