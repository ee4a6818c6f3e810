#!/usr/bin/env bash
# The example jobs, as components in the sandbox, against answers that were computed independently.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
examples=$root/plugins-examples
expected=$examples/data/expected

# same EXPECTED FOLDER: the part files of a sink hold these rows, in any order.
same() {
    diff <(tail -n +2 "$1" | sort) <(cat "$2"/*.csv | sed 's/\.000Z/Z/g' | grep -v -x -F "$(head -n 1 "$1")" | sort) >"$scratch/diff" || {
        echo "$2 differs from $1:"
        head -20 "$scratch/diff"
        exit 1
    }
}

for slots in 1 2; do
    cd "$examples/flight-delays"
    if ((slots == 1)); then tidemill build; fi
    tidemill run --parallelism "$slots" >"$scratch/late"
    test ! -s "$scratch/late" || { echo "nothing may be late"; exit 1; }
    same "$expected/departures-per-origin-hour.csv" out/per-hour
    same "$expected/delay-per-carrier-day.csv" out/per-carrier

    cd "$examples/arrival-alerts"
    if ((slots == 1)); then tidemill build; fi
    tidemill run --parallelism "$slots"
    same "$expected/arrival-alerts.csv" out/alerts
done

cd "$examples/word-count"
tidemill build
tidemill run >"$scratch/counts"
grep -qx 'the,4' "$scratch/counts"

cd "$examples/limits"
tidemill build
# Rules and readings come in any order, so that only the run is looked at.
tidemill run --parallelism 2 <readings.csv >/dev/null

cd "$examples/visitors"
tidemill build
tidemill run >"$scratch/visits"
grep -qx 'ada,/home,2,/home > /books > /home' "$scratch/visits"
test "$(grep -c , "$scratch/visits")" = "$((6 + $(grep -c '^visitor,' "$scratch/visits" || true)))"

cd "$examples/bundles"
tidemill build
tidemill run >"$scratch/bundles"
grep -qx '4,ada: hello; bob: how are you?; ada: fine; dan: what did I miss?' "$scratch/bundles"
grep -qx '2,ada: little; bob: nothing' "$scratch/bundles"
cat out/refused/* | grep -q 'cleo says nothing'
