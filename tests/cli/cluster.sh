#!/usr/bin/env bash
# A cluster by hand, under TLS: submit, a worker dies, rescale, stop with a savepoint, on from there; and what the API refuses.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
pids=()
logs=(coordinator.log worker-{1,2,3}.log)
# Who has ended by itself needs no ending.
end() { kill -KILL "$1" 2>/dev/null && wait "$1" 2>/dev/null || true; }
end_all() { for pid in "${pids[@]}"; do end "$pid"; done; }
trap 'end_all; rm -rf "$scratch"' EXIT
cd "$scratch"
# shellcheck source=tests/cli/clusters.bash
. "$root/tests/cli/clusters.bash"

tidemill certs certs 2>/dev/null
[[ $(stat -c %a certs/cluster.key certs/authority.key) == $'600\n600' ]]
tidemill certs certs 2>refused && exit 1
grep -q 'is there already' refused
tls=(--tls-authority certs/authority.pem --tls-certificate certs/cluster.pem --tls-key certs/cluster.key)

# Ports that the system does not hand out by itself, apart for each process that runs this.
base=$((20000 + $$ % 5000 * 2))
listen=127.0.0.1:$base
export TIDEMILL_CLUSTER=https://127.0.0.1:$((base + 1)) TIDEMILL_AUTHORITY=$scratch/certs/authority.pem
api=$TIDEMILL_CLUSTER/api/v1

# Everything that the coordinator needs is in a file; who may ask is in another.
printf 'a-token-that-reads\n' >reads
printf 'a-token-that-submits\n' >submits
cat >tokens.yaml <<END
tokens:
  - {name: dashboard, role: read, token-file: $scratch/reads}
  - {name: ada, role: submit, sha256: $(tr -d '\n' <submits | sha256sum | cut -d ' ' -f 1)}
END
cat >coordinator.yaml <<END
storage: $scratch/storage
listen: $listen
rest: ${TIDEMILL_CLUSTER#https://}
tokens: $scratch/tokens.yaml
rest-certificate: $scratch/certs/cluster.pem
rest-key: $scratch/certs/cluster.key
tls-authority: $scratch/certs/authority.pem
tls-certificate: $scratch/certs/cluster.pem
tls-key: $scratch/certs/cluster.key
END
export TIDEMILL_TOKEN_FILE=$scratch/submits
ask() { curl -sS --cacert "$TIDEMILL_AUTHORITY" -H "Authorization: Bearer $(cat "$TIDEMILL_TOKEN_FILE")" "$@"; }

has_workers() { [[ $(ask -f "$api/overview" 2>/dev/null) == *"\"workers\":$1,"* ]]; }
is_in() { [[ $(tidemill status "$1") == *": $2"* ]]; }
has_checkpoints() { [[ $(tidemill status "$1") =~ checkpoints:\ [1-9] ]]; }
worker() {
    tidemill worker --slots 2 --coordinator "$listen" "${tls[@]}" >>"worker-$1.log" 2>&1 &
    pids+=($!)
}

tidemill coordinator --config coordinator.yaml >coordinator.log 2>&1 &
pids+=($!)
for number in 1 2 3; do worker "$number"; done
until_true has_workers 3

# Who has no certificate is not heard.
timeout 3 tidemill worker --coordinator "$listen" >stranger.log 2>&1 && exit 1
has_workers 3

# Nor is who has no token, and who has one may do what its role says.
env -u TIDEMILL_TOKEN_FILE tidemill list 2>refused && exit 1
grep -q 'asks for a token' refused
TIDEMILL_TOKEN_FILE=$scratch/reads tidemill list >/dev/null
TIDEMILL_TOKEN_FILE=$scratch/reads tidemill cancel none 2>refused && exit 1
grep -q "'dashboard' has the role 'read'" refused

# A job that runs until it is stopped.
new_clicks '[restart]
strategy = "fixed-delay"
attempts = 100
delay = "10 ms"'
submitted=$(tidemill submit clicks --detach --parallelism 4 --json)
[[ $submitted =~ \"id\":\ \"([0-9a-f]+)\" ]]
job=${BASH_REMATCH[1]}
until_true wrote ebb,2

end "${pids[1]}"
printf 'ebb\n' >in/2.txt
until_true wrote ebb,3
until_true is_in "$job" RUNNING
TIDEMILL_TOKEN_FILE=$scratch/reads tidemill logs "$job" >logged
for words in 'it is deployed: 4 slots on worker-' 'all its slots run' 'ERROR' 'is started again'; do grep -q "$words" logged; done
env -u TIDEMILL_TOKEN_FILE tidemill logs -f "$job" 2>refused && exit 1
grep -q 'asks for a token' refused
tidemill workers | grep -q 'guests'

tidemill rescale "$job" --parallelism 1 --wait
printf 'ebb\n' >in/3.txt
until_true wrote ebb,4
[[ $(tidemill status "$job" --json) == *'"parallelism": 1,'* ]]
until_true has_checkpoints "$job"

# The coordinator dies. The job runs on, and the next one takes it over: an attempt that began again would have read nothing.
has_read() { [[ $(ask "$api/jobs/$job") =~ \"records_out\":[1-9] ]]; }
until_true has_read
end "${pids[0]}"
tidemill coordinator --config coordinator.yaml >>coordinator.log 2>&1 &
pids[0]=$!
until_true is_in "$job" RUNNING
until_true has_read
printf 'ebb\n' >in/4.txt
until_true wrote ebb,5
until_true has_checkpoints "$job"

operation=$(ask -X POST "$api/jobs/$job/checkpoints" | grep -o '"id":"[^"]*"' | cut -d '"' -f 4)
is_taken() { [[ $(ask "$api/operations/$operation") =~ \"state\":\"COMPLETED\".*\"checkpoint\":[1-9] ]]; }
until_true is_taken

tidemill savepoint --job "$job" on-the-way
[[ -d on-the-way ]]
tidemill savepoint --job "$job" on-the-way 2>refused && exit 1
tidemill stop --job "$job" --savepoint savepoint
until_true is_in "$job" FINISHED

printf 'ebb\n' >in/5.txt
submitted=$(tidemill submit clicks --detach --parallelism 3 --from savepoint --json)
[[ $submitted =~ \"id\":\ \"([0-9a-f]+)\" ]]
second=${BASH_REMATCH[1]}
until_true wrote ebb,6
tidemill cancel "$second"
until_true is_in "$second" CANCELED
for n in 1 2 3 4 5 6; do wrote "ebb,$n" || { echo "ebb,$n is there $(lines "ebb,$n") times"; exit 1; }; done

# What only a job that ran has.
[[ $(ask "$api/jobs/$job/checkpoints") =~ \"kept\":\[\{\"number\":.*\"uid\":\"process\".*\"bytes\":[1-9] ]]
[[ $(ask "$api/jobs/$job") == *'"savepoint":'* ]]
[[ $(ask "$api/configuration") == *'"storage":{"from":"given"'* ]]

# No token is ever said.
if grep -e "$(cat submits)" -e "$(cat reads)" ./*.log; then exit 1; fi
# Who is told to end does, and well.
for pid in "${pids[3]}" "${pids[0]}"; do
    kill -TERM "$pid"
    wait "$pid"
done
