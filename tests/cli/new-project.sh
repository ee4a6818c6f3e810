#!/usr/bin/env bash
# A new project builds and runs at once, and what is wrong with one is said with the mend.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
tidemill new my-job
cd my-job
tidemill build
tidemill run >"$scratch/out"
grep -q '"word":"tide","count":3' "$scratch/out"
tidemill inspect | grep -q window

# refused WORDS COMMAND...: the command fails with code 2 and says these words.
refused() {
    local words=$1 status=0
    shift
    "$@" >"$scratch/said" 2>&1 || status=$?
    if ((status != 2)) || ! grep -q "$words" "$scratch/said"; then
        echo "'$*' ended with $status, and not with '$words':"
        cat "$scratch/said"
        exit 1
    fi
}
refused 'blackhole' tidemill run --set sinks.counts.connector=blakhole
refused 'no/such' tidemill run --set sources.messages.path=no/such.csv
printf '\0asm\1\0\0\0' >core.wasm
refused 'tidemill build' tidemill run --component core.wasm
head -c 1000 target/tidemill/my-job.wasm >short.wasm
refused 'short.wasm' tidemill run --component short.wasm
