#!/usr/bin/env bash
# A cluster by hand, under TLS: submit, a worker dies, rescale, stop with a savepoint, on from there; and what the API refuses.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
pids=()
# Who has ended by itself needs no ending.
end() { kill -KILL "$1" 2>/dev/null && wait "$1" 2>/dev/null || true; }
end_all() { for pid in "${pids[@]}"; do end "$pid"; done; }
trap 'end_all; rm -rf "$scratch"' EXIT
cd "$scratch"

openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout authority.key -out authority.pem 2>/dev/null
openssl req -newkey rsa:2048 -nodes -subj /CN=tidemill-cluster -keyout cluster.key -out cluster.csr 2>/dev/null
printf 'subjectAltName=DNS:tidemill-cluster\nextendedKeyUsage=serverAuth,clientAuth\n' >cluster.ext
openssl x509 -req -in cluster.csr -CA authority.pem -CAkey authority.key -CAcreateserial -days 2 \
    -extfile cluster.ext -out cluster.pem 2>/dev/null
tls=(--tls-authority authority.pem --tls-certificate cluster.pem --tls-key cluster.key)

# Ports that the system does not hand out by itself, apart for each process that runs this.
base=$((20000 + $$ % 5000 * 2))
listen=127.0.0.1:$base
export TIDEMILL_CLUSTER=http://127.0.0.1:$((base + 1))
api=$TIDEMILL_CLUSTER/api/v1

# until_true COMMAND...: within a minute.
until_true() {
    local end=$((SECONDS + 60))
    until "$@"; do
        ((SECONDS < end)) || { echo "never: $*"; tidemill list; cat ./*.log; exit 1; }
        read -r -t 0.1 <> <(:) || true
    done
}
has_workers() { [[ $(curl -fsS "$api/overview" 2>/dev/null) == *"\"workers\":$1,"* ]]; }
is_in() { [[ $(tidemill status "$1") == *": $2"* ]]; }
has_checkpoints() { [[ $(tidemill status "$1") =~ checkpoints:\ [1-9] ]]; }
worker() {
    tidemill worker --slots 2 --coordinator "$listen" "${tls[@]}" >>"worker-$1.log" 2>&1 &
    pids+=($!)
}

tidemill coordinator --storage storage --listen "$listen" --rest "${TIDEMILL_CLUSTER#http://}" "${tls[@]}" \
    >coordinator.log 2>&1 &
pids+=($!)
for number in 1 2 3; do worker "$number"; done
until_true has_workers 3

# Who has no certificate is not heard.
timeout 3 tidemill worker --coordinator "$listen" >stranger.log 2>&1 && exit 1
has_workers 3

# A job that runs until it is stopped.
tidemill new clicks >/dev/null 2>&1
cat >clicks/tidemill.toml <<END
[job]
name = "clicks"
component = "$root/plugins-examples/word-count/target/tidemill/word-count.wasm"
[checkpoints]
location = "$scratch/checkpoints"
interval = "100 ms"
[restart]
strategy = "fixed-delay"
attempts = 100
delay = "10 ms"
[sources.lines]
connector = "files"
path = "$scratch/in"
format = "lines"
discover-every = "50 ms"
[sinks.counts]
connector = "files"
path = "$scratch/out"
format = "csv"
END
tidemill build "$root/plugins-examples/word-count" >/dev/null 2>&1
mkdir in
printf 'ebb flood\nebb\n' >in/1.txt
submitted=$(tidemill submit clicks --detach --parallelism 4 --json)
[[ $submitted =~ \"id\":\ \"([0-9a-f]+)\" ]]
job=${BASH_REMATCH[1]}
lines() { cat out/* 2>/dev/null | grep -cx "$1" || true; }
wrote() { [[ $(lines "$1") == 1 ]]; }
until_true wrote ebb,2

end "${pids[1]}"
printf 'ebb\n' >in/2.txt
until_true wrote ebb,3
until_true is_in "$job" RUNNING

tidemill rescale "$job" --parallelism 1
printf 'ebb\n' >in/3.txt
until_true wrote ebb,4
[[ $(tidemill status "$job" --json) == *'"parallelism": 1,'* ]]
until_true has_checkpoints "$job"
tidemill stop --job "$job" --savepoint savepoint
until_true is_in "$job" FINISHED

printf 'ebb\n' >in/4.txt
submitted=$(tidemill submit clicks --detach --parallelism 3 --from savepoint --json)
[[ $submitted =~ \"id\":\ \"([0-9a-f]+)\" ]]
second=${BASH_REMATCH[1]}
until_true wrote ebb,5
tidemill cancel "$second"
until_true is_in "$second" CANCELED
for n in 1 2 3 4 5; do wrote "ebb,$n" || { echo "ebb,$n is there $(lines "ebb,$n") times"; exit 1; }; done

# refused STATUS WORDS CURL-ARGUMENTS...
refused() {
    local status=$1 words=$2 got
    shift 2
    got=$(curl -sS -o answer -w '%{http_code} %{content_type}' "$@")
    [[ $got == "$status application/problem+json" ]] || { echo "$got instead of $status: $*"; cat answer; exit 1; }
    grep -q "$words" answer || { echo "not '$words':"; cat answer; exit 1; }
}
json=(-H 'content-type: application/json')
refused 404 'no job' "$api/jobs/none"
refused 404 'no job' -X POST "$api/jobs/none/cancel"
refused 404 'below /api/v1' "$api/nothing"
refused 409 'is over' -X POST "$api/jobs/$job/cancel"
refused 409 'is over' -X POST "${json[@]}" -d '{}' "$api/jobs/$job/stop"
refused 422 'parallelism' -X POST "${json[@]}" -d '{"parallelism":-1}' "$api/jobs/$job/rescale"
refused 422 'wasm' -X POST --data-binary 'no component' "$api/artifacts"
head -c 70000000 /dev/zero >large
refused 413 'MiB' -X POST --data-binary @large "$api/artifacts"
refused 400 'JSON' -X POST "${json[@]}" -d '{' "$api/jobs"
refused 422 'names no artifact' -X POST "${json[@]}" -d '{"artifact":"../x","manifest":"[job]\ncomponent=\"x\""}' "$api/jobs"
refused 415 'Content-Type' -X POST -d '{}' "$api/jobs"
