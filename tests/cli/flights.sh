#!/usr/bin/env bash
# The example jobs on all flights of 2013, against answers that were computed without the engine. The file is not in the
# repository: it is looked for where TIDEMILL_FLIGHTS_ZIP says, or at ../shared/data/flights.csv.zip.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
zip=${TIDEMILL_FLIGHTS_ZIP:-$root/../shared/data/flights.csv.zip}
if [[ ! -e $zip ]]; then
    echo "SKIPPED: there is no $zip; TIDEMILL_FLIGHTS_ZIP may name another"
    exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
expected=$root/plugins-examples/data/expected/whole-file.json

# In the file the months follow each other as 1, 10, 11, 12, 2, ...; in the order of the calendar the disorder is that of
# the flights, and the 30 hours that the jobs allow for are enough.
python3 -c 'import sys, zipfile
z = zipfile.ZipFile(sys.argv[1])
sys.stdout.buffer.write(z.read(z.namelist()[0]))' "$zip" >"$scratch/file-order.csv"
{
    head -n 1 "$scratch/file-order.csv"
    tail -n +2 "$scratch/file-order.csv" | LC_ALL=C sort -s -t, -k2,2n
} >"$scratch/flights.csv"

# same ANSWER HEADER FOLDER SORT...: the part files of a sink hold the rows of an answer, by the digest of them sorted.
same() {
    local answer=$1 header=$2 folder=$3 wanted
    shift 3
    wanted=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["sha256"][sys.argv[2]])' "$expected" "$answer")
    {
        echo "$header"
        cat "$folder"/*.csv | sed 's/\.000Z/Z/g' | grep -v -x -F "$header" | LC_ALL=C sort -t, "$@"
    } >"$scratch/$answer"
    if [[ $(sha256sum <"$scratch/$answer" | cut -d' ' -f1) != "$wanted" ]]; then
        echo "$answer is another one ($(wc -l <"$scratch/$answer") lines); $expected has its digest"
        exit 1
    fi
}

for slots in 1 2; do
    cd "$root/plugins-examples/flight-delays"
    if ((slots == 1)); then tidemill build; fi
    tidemill run --parallelism "$slots" --set "sources.flights.path=$scratch/flights.csv" \
        --set "sinks.per-hour.path=$scratch/per-hour" --set "sinks.per-carrier.path=$scratch/per-carrier" >"$scratch/late"
    test ! -s "$scratch/late" || { echo "nothing may be late"; exit 1; }
    same departures-per-origin-hour.csv origin,window_start,flights "$scratch/per-hour" -k1,1 -k2,2
    same delay-per-carrier-day.csv carrier,window_start,flights,mean_delay "$scratch/per-carrier" -k1,1 -k2,2

    cd "$root/plugins-examples/arrival-alerts"
    if ((slots == 1)); then tidemill build; fi
    tidemill run --parallelism "$slots" --set "sources.flights.path=$scratch/flights.csv" \
        --set "sinks.alerts.path=$scratch/alerts"
    same arrival-alerts.csv carrier,flight,tailnum,scheduled,departed,deadline "$scratch/alerts" \
        -k6,6 -k1,1 -k2,2n -k3,3
done
echo "all 336,776 flights: the same answers at 1 and 2 slots"
