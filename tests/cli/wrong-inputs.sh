#!/usr/bin/env bash
# What is wrong ends with a message that names the thing and how to mend it, with exit code 1 (the job failed) or 2 (what
# was typed is wrong), and never with a panic. Each line of the table below is one wrong input: the exit code, a pattern
# (extended, of one line) that the message has, and the command.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
tidemill new job >/dev/null 2>&1
tidemill build job >"$scratch/said" 2>&1 || { cat "$scratch/said"; exit 1; }
cd job
failures=0 count=0

# wrong CODE PATTERN COMMAND...
wrong() {
    local code=$1 pattern=$2 status=0
    shift 2
    count=$((count + 1))
    timeout 60 "$@" </dev/null >"$scratch/said" 2>&1 || status=$?
    if ((status != code)) || ! grep -qE -- "$pattern" "$scratch/said" || ! grep -q 'mend:\|^help:\|For more information' "$scratch/said" ||
        grep -q 'panicked\|RUST_BACKTRACE\|defect of Tidemill' "$scratch/said"; then
        failures=$((failures + 1))
        printf -- '--- %s\nended with %s (%s expected), a message like "%s" and a mend are expected:\n' "$*" "$status" "$code" "$pattern"
        cat "$scratch/said"
    fi
}

# manifest FILE LINE...: a copy of the project's manifest with more lines.
manifest() {
    local file=$1
    shift
    { cat tidemill.toml; printf '%s\n' "$@"; } >"$file"
}

run() { wrong "$1" "$2" tidemill run --format quiet "${@:3}"; }
source_of() { printf '%s' "sources.messages.$1"; }

# What the command line names.
wrong 2 'there is no nowhere/tidemill.toml|there is no nowhere' tidemill run nowhere
wrong 2 'data/tidemill.toml' tidemill run data
wrong 2 "unexpected argument '--paralelism'" tidemill run --paralelism 2
wrong 2 'no-such.wasm' tidemill run --component no-such.wasm
wrong 2 'data is a folder, not a component' tidemill run --component data
wrong 2 'tidemill.toml is not WebAssembly' tidemill run --component tidemill.toml
printf '\0asm\1\0\0\0' >core.wasm
wrong 2 'core.wasm is a core WebAssembly module' tidemill run --component core.wasm
head -c 1000 target/tidemill/job.wasm >short.wasm
wrong 2 'short.wasm is damaged' tidemill run --component short.wasm
LC_ALL=C sed 's/tidemill:job\/\([a-z]*\)@0\.[0-9]\.[0-9]/tidemill:job\/\1@9.9.9/g' target/tidemill/job.wasm >future.wasm
wrong 2 '9\.9\.9' tidemill run --component future.wasm
wrong 2 'set' tidemill run --set no-equals-sign
wrong 2 'fast' tidemill connectors fast
wrong 2 'there is no component|is not WebAssembly|there is no' tidemill inspect no-such.wasm
wrong 2 'exists and is not empty' tidemill new ../job

# The manifest.
manifest a.toml '[jub]' 'x = 1'
wrong 2 'a.toml:[0-9]+.*jub' tidemill run a.toml
sed 's/^parallelism/paralelism/' tidemill.toml >a.toml
wrong 2 "a.toml:[0-9]+.*paralelism" tidemill run a.toml
manifest a.toml '[limits]' 'memory = true'
wrong 2 "a.toml:[0-9]+.*memory" tidemill run a.toml
manifest a.toml 'this is no TOML'
wrong 2 'a.toml:[0-9]+' tidemill run a.toml
manifest a.toml '[checkpoints]' 'interval = "1 s"'
wrong 2 "checkpoints.*location|location" tidemill run a.toml
printf '\377\376' >a.toml
wrong 2 'a.toml' tidemill run a.toml
run 2 "'parallelism' is 0; 1 to" --set job.parallelism=0
run 2 "'parallelism' is 1000000; 1 to" --set job.parallelism=1000000
run 2 "invalid value '0' for '--parallelism" -p 0
run 2 "'batch-rows' is 0" --set job.batch-rows=0
run 2 "'max-parallelism' is 0" --set job.max-parallelism=0
run 2 'batch-rows' --set 'job.batch-rows="many"'
run 2 'call-time' --set 'limits.call-time="5 parsecs"'
run 2 "'call-time' is nothing at all" --set 'limits.call-time="0 s"'
run 2 "'interval' is below a millisecond" --set checkpoints.location=ck --set 'checkpoints.interval="0 s"'
run 2 "'retained' is 0" --set checkpoints.location=ck --set checkpoints.retained=0
run 2 'hopefully' --set checkpoints.location=ck --set restart.strategy=hopefully
run 2 'intervall' --set checkpoints.location=ck --set 'checkpoints.intervall="1 s"'
run 2 'parameter' --set 'params.a.b=1'
run 2 'NOT_SET_ANYWHERE' --set "$(source_of path)"='${NOT_SET_ANYWHERE}'

# Sources and sinks.
run 2 "no connector 'kafca'" --set "$(source_of connector)=kafca"
run 2 "does not bind|job 'job' has no source 'mesages'" --set sources.mesages.connector=stdin
run 2 "formt" --set "$(source_of formt)=csv"
run 2 'yaml' --set "$(source_of format)=yaml"
run 2 'no/such.csv' --set "$(source_of path)=no/such.csv"
mkdir empty
run 2 'there is no file' --set "$(source_of path)=empty"
run 2 'delimiter' --set "$(source_of delimiter)=ab"
printf 'time,words\n' >data/header.csv
run 2 "header.csv.*'text'|'text'.*header.csv" --set "$(source_of path)=data/header.csv"
printf 'time,text\n2026-01-01T12:00:00Z,fine\nyesterday,bad\n' >data/bad.csv
printf '{"time":"2026-01-01T12:00:00Z","text":"fine"}\n{"time":1,"text":\n' >data/bad.json
for format in csv json; do
    bad=("--set" "$(source_of path)=data/bad.$format" --set "$(source_of format)=$format")
    run 1 "bad.$format', line [23] \\(byte [0-9]+\\)" "${bad[@]}"
    run 1 "bad.$format.*line [23]|dead-letter" "${bad[@]}" --set "$(source_of on-error)=dead-letter"
    count=$((count + 1))
    if ! tidemill run "${bad[@]}" --set "$(source_of on-error)=skip" >"$scratch/said" 2>&1 || ! grep -q 'messages .* 1  *[0-9]*$' "$scratch/said"; then
        failures=$((failures + 1))
        echo "--- one record of bad.$format is skipped and counted:"
        cat "$scratch/said"
    fi
done
run 2 'sink|counts' --set sinks.counts.connector=files
run 2 "tidemill.toml' failed" --set sinks.counts.connector=files --set sinks.counts.path=tidemill.toml
run 2 "tidemill.toml/out' failed" --set sinks.counts.connector=files --set sinks.counts.path=tidemill.toml/out
mkdir full && printf 'mine\n' >full/part-0-0.json
tidemill run --format quiet --set sinks.counts.connector=files --set sinks.counts.path=again
run 2 'again' --set sinks.counts.connector=files --set sinks.counts.path=again
run 2 'tidemill.toml' --set checkpoints.location=tidemill.toml
run 2 'bucket' --set checkpoints.location=s3:///job --set checkpoints.interval='"1 s"'
run 2 'ftp' --set checkpoints.location=ftp://host/job

# State and savepoints.
run 1 'state|memory' --set 'state.memory="100 B"'
run 2 'from' --from savepoint
run 2 'data' --from data --set checkpoints.location=ck
run 2 '99' --from 99 --set checkpoints.location=ck
wrong 2 'checkpoint' tidemill state list
wrong 1 'no job runs' tidemill stop
wrong 1 'no job runs' tidemill savepoint sp
wrong 2 'data' tidemill state inspect --from data

# The job's code.
cp src/lib.rs lib.rs
sed -i 's/word: window.key.to_owned()/word: window.count/' src/lib.rs
status=0
tidemill build >"$scratch/said" 2>&1 || status=$?
count=$((count + 1))
if ((status != 1)) || ! grep -q 'error\[E' "$scratch/said" || ! grep -q 'src/lib.rs:' "$scratch/said"; then
    failures=$((failures + 1))
    echo "--- code that does not compile ended with $status:"
    cat "$scratch/said"
fi
mv lib.rs src/lib.rs

echo "$count wrong inputs, $failures of them ended in another way than they should"
((failures == 0))
