#!/usr/bin/env bash
# What a coordinator that is killed leaves to the next one, and what the next one does where it can't read it.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
cd "$scratch"
# shellcheck source=tests/cli/clusters.bash
. "$root/tests/cli/clusters.bash"
export XDG_STATE_HOME=$scratch/state XDG_CONFIG_HOME=$scratch/config
unset TIDEMILL_CLUSTER
logs=(state/tidemill/cluster/{coordinator,worker-1}.log)
trap 'tidemill cluster stop >/dev/null 2>&1 || true; rm -rf "$scratch"' EXIT

# pid NAME: of a process that runs.
pid() { tidemill cluster status --json | tr -d ' \n' | grep -o "\"name\":\"$1\",\"pid\":[0-9]*,\"state\":\"running\"" | grep -o '"pid":[0-9]*' | cut -d : -f 2; }
ended() { [[ ! -e /proc/$1 || $(cut -d ')' -f 2 "/proc/$1/stat") == ' Z '* ]]; }
kill_coordinator() {
    local pid
    pid=$(pid coordinator)
    kill -KILL "$pid"
    until_true ended "$pid"
}
is_in() { [[ $(tidemill status "$1") == *": $2"* ]]; }
all_are_free() { [[ $(tidemill workers | grep -c ' 2 of 2 ') == 2 ]]; }

tidemill cluster start --workers 1 --slots 2 --port 0 --rest-port 0 --json >started
api=http://$(grep -o '"rest": "[^"]*"' started | cut -d '"' -f 4)
tidemill context add here --cluster "$api"
new_clicks
job=$(tidemill submit clicks --detach --json | grep -o '"id": "[^"]*"' | cut -d '"' -f 4)
until_true wrote ebb,2
until_true is_in "$job" RUNNING
has_log() { compgen -G "state/tidemill/cluster/storage/logs/$job/*.log" >/dev/null; }
until_true has_log

# Operations outlive it: what was done is answered, what the job was told goes on, and of the rest it is said that it failed.
field() { grep -o "\"$2\":\"[^\"]*\"" <<<"$1" | head -n 1 | cut -d '"' -f 4; }
begin() { field "$(curl -sS --json "$2" "$api/api/v1/jobs/$job/$1")" id; }
operation_is() { [[ $(field "$(curl -sS "$api/api/v1/operations/$1")" state) == "$2" ]]; }
saved=$(begin savepoints "{\"location\": \"$scratch/saved\"}")
until_true operation_is "$saved" COMPLETED
# A worker that stands still takes no savepoint.
kill -STOP "$(pid worker-1)"
saving=$(begin savepoints "{\"location\": \"$scratch/saving\"}")
operation_is "$saving" RUNNING
kill_coordinator
kill -CONT "$(pid worker-1)"
until_true tidemill cluster start --workers 1
operation_is "$saved" COMPLETED
[[ $(curl -sS "$api/api/v1/operations/$saved") == *"\"location\":\"$scratch/saved\""* ]]
until_true operation_is "$saving" FAILED
curl -sS "$api/api/v1/operations/$saving" | grep -q 'the coordinator was replaced before it was finished.*Ask again'
until_true is_in "$job" RUNNING
# There are not enough slots for it yet. Who waits for it goes on waiting, and is answered.
tidemill rescale "$job" --parallelism 3 --wait 2>rescaled &
waiting=$!
is_rescaling() { [[ $(curl -sS "$api/api/v1/operations") == *'"kind":"RESCALE"'*'"state":"RUNNING"'* ]]; }
until_true is_rescaling
kill_coordinator
until_true tidemill cluster start --workers 1
is_rescaling
tidemill cluster start --workers 2 --slots 2
wait "$waiting"
grep -q 'rescaled.*to 3 slots' rescaled
until_true is_in "$job" RUNNING
tidemill rescale "$job" --parallelism 1 --wait

# What was logged before is there too: nothing but its last seconds is lost.
tidemill logs "$job" >logged
[[ $(grep -c 'all its slots run' logged) -ge 2 ]]
head -n 1 logged | grep -q 'it is deployed: 1 slots on worker-'

# Its log of checkpoints is of a newer version, as far as this one can see. The coordinator starts, and says so; it changes
# nothing, and its slots are free for others.
kill_coordinator
newest=$(find checkpoints -path '*/log/*.json' | sort | tail -n 1)
cp "$newest" entry
sed '1s/"version":1/"version":999/' entry >"$newest"
until_true tidemill cluster start --workers 1
until_true is_in "$job" FAILED_TO_RECOVER
tidemill status "$job" >status
for words in "$newest" 'version 999' "tidemill cancel $job"; do grep -qF "$words" status; done
tidemill list | grep -q "$job.*FAILED_TO_RECOVER"
until_true all_are_free
tidemill submit clicks --detach 2>refused && exit 1
grep -q "$job" refused
[[ $(find checkpoints -path '*/log/*.json' | sort | tail -n 1) == "$newest" && ! -e $(find state -name "$job.end") ]]

# One that can read it goes on with it, as if nothing had been.
kill_coordinator
cp entry "$newest"
until_true tidemill cluster start --workers 1
until_true is_in "$job" RUNNING
printf 'ebb\n' >in/2.txt
until_true wrote ebb,3
wrote ebb,2

# Where none ever can, it is cancelled: it is off the list, and its checkpoints are there.
kill_coordinator
kept=$(find state -name "$job.job")
printf '{' >"$kept"
until_true tidemill cluster start --workers 1
until_true is_in "$job" FAILED_TO_RECOVER
tidemill status "$job" | grep -qF "$kept can't be read"
tidemill cancel "$job" 2>cancelled
grep -q 'off the list.*checkpoints' cancelled
tidemill list | grep "$job" && exit 1
tidemill status "$job" 2>refused && exit 1
grep -q "no job '$job'" refused
[[ -e $kept && -n $(find checkpoints -path '*/log/*.json') ]]
