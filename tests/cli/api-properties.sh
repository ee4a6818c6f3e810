#!/usr/bin/env bash
# What schemathesis makes up from the API's own description is answered, and never with a defect of the server (5xx): from a
# fixed seed, some examples for each operation. Without PyPI (or what was installed from there before) it is left out, loudly.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
cd "$scratch"
folder=(--folder "$scratch/cluster")
trap 'tidemill cluster stop "${folder[@]}" >/dev/null 2>&1 || true; rm -rf "$scratch"' EXIT

readonly wanted=schemathesis==4.32.5
readonly venv=${XDG_CACHE_HOME:-$HOME/.cache}/tidemill/schemathesis-${wanted##*=}
if [[ ! -e $venv/done ]]; then
    rm -rf "$venv"
    if ! { python3 -m venv "$venv" && timeout 180 "$venv/bin/pip" install --quiet "$wanted"; }; then
        echo "SKIPPED: $wanted can't be installed here; the API was not tried with made-up requests" >&2
        exit 0
    fi
    touch "$venv/done"
fi

tidemill cluster start --workers 1 --port 0 --rest-port 0 "${folder[@]}"
TIDEMILL_CLUSTER=$(tidemill cluster status --json "${folder[@]}" | sed -n 's/.*"api": "\([^"]*\)".*/\1/p')
export TIDEMILL_CLUSTER

# Things that are there: a component, and a job of it that waits for more slots than there are.
example=$root/plugins-examples/word-count
tidemill build "$example" >/dev/null 2>&1
job=$(tidemill submit "$example" --parallelism 100 --detach --json)
value() { sed -n "s/.*\"$1\": \"\([^\"]*\)\".*/\1/p" <<<"$job"; }
cat >schemathesis.toml <<END
[[operations]]
include-path-regex = "/artifacts/"
parameters = { "path.id" = "$(value artifact)" }
[[operations]]
include-path-regex = "/jobs/"
parameters = { "path.id" = "$(value id)" }
END
"$venv/bin/schemathesis" --config-file schemathesis.toml run "$TIDEMILL_CLUSTER/api/v1/openapi.json" \
    --seed 1 --max-examples 50 --workers 2 --no-color --generation-database none \
    --checks not_a_server_error,response_schema_conformance,content_type_conformance,status_code_conformance
curl -fsS "$TIDEMILL_CLUSTER/ready"
