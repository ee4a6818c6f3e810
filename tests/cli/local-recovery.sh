#!/usr/bin/env bash
# Workers that keep copies of checkpoints, and a coordinator that keeps slots: a worker dies, the slots of the others stay where
# they are and read their state there, and those that are lost go into the slots that were kept.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
pids=()
logs=(coordinator.log worker-{1,2,3,4,5}.log)
end() { kill -KILL "$1" 2>/dev/null && wait "$1" 2>/dev/null || true; }
end_all() { for pid in "${pids[@]}"; do end "$pid"; done; }
trap 'end_all; rm -rf "$scratch"' EXIT
cd "$scratch"
# shellcheck source=tests/cli/clusters.bash
. "$root/tests/cli/clusters.bash"

# Ports that the system does not hand out by itself, apart for each process that runs this.
base=$((20000 + $$ % 5000 * 2))
listen=127.0.0.1:$base
export TIDEMILL_CLUSTER=http://127.0.0.1:$((base + 1))
api=$TIDEMILL_CLUSTER/api/v1
overview() { [[ $(curl -sSf "$api/overview" 2>/dev/null) == *"$1"* ]]; }
is_in() { [[ $(tidemill status "$1") == *": $2"* ]]; }
has_checkpoints() { [[ $(tidemill status "$1") =~ checkpoints:\ ([0-9]+) && ${BASH_REMATCH[1]} -gt $2 ]]; }
id_of() { grep -o '"id": "[^"]*"' | cut -d '"' -f 4; }
worker() {
    tidemill worker --slots 2 --coordinator "$listen" --local-recovery always --local-recovery-folder copies >"worker-$1.log" 2>&1 &
    pids+=($!)
}
# figure NAME: of the attempt that runs.
figure() { tidemill status "$job" --json | grep -o "\"$1\": [0-9]*" | cut -d ' ' -f 2; }
# Which workers have the subtasks of the operator that counts.
placed() { tidemill status "$job" --json | tr -d ' \n' | grep -o '"uid":"process".*' | grep -o '"worker":"[^"]*"' | head -n 4; }

printf 'storage: %s\nlisten: %s\nrest: %s\nstandby-slots: 2\n' "$scratch/storage" "$listen" "${TIDEMILL_CLUSTER#http://}" >coordinator.yaml
tidemill coordinator --config coordinator.yaml >coordinator.log 2>&1 &
pids+=($!)
for number in 1 2 3; do worker "$number"; done
until_true overview '"slots":6,'
overview '"standby_slots":2'
tidemill workers | grep -q '^2 of 6 free slots are kept for jobs'

new_clicks '[restart]
strategy = "fixed-delay"
attempts = 100
delay = "10 ms"'
printf '%s\n' {a..z} >in/letters.txt
job=$(tidemill submit clicks --detach --parallelism 4 --json | id_of)
until_true wrote ebb,2
until_true wrote z,1
has() { has_checkpoints "$job" 3; }
until_true has
[[ $(figure restored_bytes) == 0 ]]
copies() { find copies -type f -name 'g*' | wc -l; }
(($(copies) > 0))

# A job that never ran gets none of what is kept.
elsewhere=(--set 'job.name="others"' --set "checkpoints.location='$PWD/others'" --set "sinks.counts.path='$PWD/other-out'")
other=$(tidemill submit clicks "${elsewhere[@]}" --detach --parallelism 1 --json | id_of)
waits() { tidemill status "$other" | grep -q '1 slots are needed, 2 of 6 are free, 2 of these are kept as standby'; }
until_true waits
# Nor one that is to be larger; and it runs on.
tidemill rescale "$job" --parallelism 5 2>refused && exit 1
grep -q 'kept as standby' refused
is_in "$job" RUNNING

# A worker with slots of the job dies. Its slots go into those that were kept.
before=$(placed)
dies=$(head -n 1 <<<"$before" | cut -d '"' -f 4)
end "$(cut -d - -f 2 <<<"$dies")"
restored() { [[ $(figure restarts) == 1 ]] && is_in "$job" RUNNING; }
until_true restored
printf 'ebb\n' >in/2.txt
until_true wrote ebb,3
after=$(placed)
[[ $(wc -l <<<"$after") == 4 ]]
while read -r was is; do
    [[ $is != *"$dies"* ]]
    [[ $was == *"$dies"* || $was == "$is" ]] || { printf 'a slot has moved:\n%s\n' "$before" "$after"; exit 1; }
done < <(paste <(echo "$before") <(echo "$after"))
local_bytes=$(figure restored_local_bytes)
((local_bytes > 0 && local_bytes <= $(figure restored_bytes)))
tidemill logs "$job" | grep -q "restored $(figure restored_bytes) bytes, $local_bytes of them from the machines where they run"
grep -q 'restored [1-9][0-9]* bytes, [1-9][0-9]* of them from this machine' worker-*.log
overview '"free_slots":0,"standby_slots":0'

# What comes is kept first, and what is more than that goes to who waits.
worker 4
until_true overview '"free_slots":2,"standby_slots":2'
is_in "$other" CREATED
worker 5
until_true is_in "$other" RUNNING

# Nothing is left of jobs that are over, nor of a process that ended.
tidemill cancel "$job"
tidemill cancel "$other"
until_true is_in "$job" CANCELED
until_true is_in "$other" CANCELED
no_copies() { (($(copies) == 0)); }
until_true no_copies
