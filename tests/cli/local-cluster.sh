#!/usr/bin/env bash
# `tidemill cluster start|status|stop`: processes of this machine, as a new user has them.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
cd "$scratch"
# shellcheck source=tests/cli/clusters.bash
. "$root/tests/cli/clusters.bash"
export XDG_STATE_HOME=$scratch/state XDG_CONFIG_HOME=$scratch/config
unset TIDEMILL_CLUSTER
logs=(state/tidemill/cluster/{coordinator,worker-1,worker-2}.log)
trap 'tidemill cluster stop >/dev/null 2>&1 || true; rm -rf "$scratch"' EXIT

# pid NAME: of a process that runs.
pid() { tidemill cluster status --json | tr -d ' \n' | grep -o "\"name\":\"$1\",\"pid\":[0-9]*,\"state\":\"running\"" | grep -o '"pid":[0-9]*' | cut -d : -f 2; }
ended() { [[ ! -e /proc/$1 || $(cut -d ')' -f 2 "/proc/$1/stat") == ' Z '* ]]; }

tidemill cluster stop 2>refused && exit 1
grep -q 'no cluster was started' refused
tidemill cluster start --workers 2 --slots 2 --port 0 --rest-port 0 --json >started
rest=$(grep -o '"rest": "[^"]*"' started | cut -d '"' -f 4)
tidemill context add here --cluster "http://$rest"
[[ $(tidemill workers | grep -c worker-) == 2 ]]

# Again: nothing is started, and what runs is not moved.
first=$(pid worker-1) coordinator=$(pid coordinator)
tidemill cluster start --workers 2 2>again
grep -q 'running' again
[[ $(pid worker-1) == "$first" && $(pid coordinator) == "$coordinator" ]]
tidemill cluster start --storage elsewhere 2>refused && exit 1
grep -q 'runs already' refused
tidemill cluster start --folder other --rest-port "${rest#*:}" --port 0 2>refused && exit 1
grep -q "port ${rest#*:} of this machine can't be listened on" refused

new_clicks
job=$(tidemill submit clicks --detach --parallelism 2 --json | grep -o '"id": "[^"]*"' | cut -d '"' -f 4)
until_true wrote ebb,2

# Who follows what is logged of it goes on over all that follows here.
tidemill logs -f "$job" >followed 2>lost &
following=$!

# A job that logs, to its end. An operator is named in more than one way; what is no operator is refused.
tidemill new talks >/dev/null
sed -i 's/|message, out| message/|message, out| {\n tidemill::warn!("heard \\u{1b}[31m{}", message.text);\n message/; s/for_each(|word| out.emit(Word { word }))/&\n}/' talks/src/lib.rs
sed -i 's/"print"/"blackhole"/' talks/tidemill.toml
tidemill build talks >/dev/null 2>&1
tidemill submit talks 2>/dev/null
talk=$(tidemill list | awk '/talks/ {print $1}')
tidemill logs "$talk" >logged
grep -q 'WARN  worker-.*/0: heard \\u{1b}\[31m' logged
grep -q 'INFO  engine: it is over: FINISHED' logged
tidemill logs "$talk" --task "$(grep -o '[^ ]*/0: heard' logged | head -n 1 | cut -d : -f 1)" --limit 2 --json >entries
[[ $(grep -c '"level":"WARN".*"message":"heard' entries) == 2 && $(wc -l <entries) == 2 ]]
tidemill logs "$talk" --task nobody 2>refused && exit 1
grep -q "no operator 'nobody'" refused
tidemill logs nothing 2>refused && exit 1
grep -q "no job 'nothing'" refused

# A worker dies; the job goes on; another comes in its place.
kill -KILL "$first"
until_true ended "$first"
printf 'ebb\n' >in/2.txt
until_true wrote ebb,3
tidemill cluster status >status
grep -q 'worker-1 *gone' status
tidemill cluster start --workers 2
[[ $(pid worker-1) != "$first" ]]

# Nothing is left, also of a coordinator that was killed; the job goes on with the cluster.
kill -KILL "$(pid coordinator)"
second=$(pid worker-1)
tidemill cluster stop
until_true ended "$second"
tidemill cluster start --workers 1
grep -q "$rest" <(tidemill cluster status)
printf 'ebb\n' >in/3.txt
until_true wrote ebb,4
tidemill status --watch "$job" >watched &
watching=$!
tidemill stop --job "$job" --savepoint savepoint
wait "$watching"
tail -n 20 watched | grep -q FINISHED
wait "$following"
for words in 'all its slots run' 'ERROR' 'is started again' 'it is over: FINISHED'; do grep -q "$words" followed; done
grep -q 'trying again' lost
last=$(pid coordinator)
tidemill cluster stop 2>stopped
grep -q '2 processes' stopped
ended "$last"
