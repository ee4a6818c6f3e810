#!/usr/bin/env bash
# The standard input as a source: read to its end, and a stop while it is waited for.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
tidemill build "$root/plugins-examples/word-count"
cd "$scratch"
cat >tidemill.toml <<END
[job]
component = "$root/plugins-examples/word-count/target/tidemill/word-count.wasm"
[sources.lines]
connector = "stdin"
[sinks.counts]
connector = "print"
format = "csv"
END
lines() { printf 'line\nto be or\nnot to be\n'; }

lines | tidemill run --set sources.lines.format=csv >out
grep -qx 'to,2' out
lines | tidemill run --set sources.lines.format=lines --parallelism 2 >out
grep -qx 'line,1' out
grep -qx 'be,2' out
tidemill run </dev/null >out
test ! -s out || { echo "no input, but output:"; cat out; exit 1; }

# Ctrl-C while it waits for input: what was read is processed, and the job ends well.
mkfifo pipe
sleep 60 >pipe & # keeps the pipe open
holder=$!
set -m # a job of its own group, or the shell would make it ignore Ctrl-C
tidemill run --set sources.lines.format=csv <pipe >out 2>err &
job=$!
set +m
lines >pipe
until grep -qx 'to,2' out; do read -r -t 0.05 <> <(:) || true; done
kill -INT "$job"
wait "$job" || { echo "the stopped job ended with $?:"; cat err; exit 1; }
kill "$holder"
grep -q stopped err
