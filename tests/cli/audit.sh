#!/usr/bin/env bash
# Kills jobs of every stateful kind in real processes, and breaks what is below them; nothing may be lost or there twice.
# Then the scenarios that once failed. `tests/long/audit` does the same for longer.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
"$root/tests/e2e/audit" --kills 40
"$root/tests/e2e/audit" --faults
while IFS= read -r line; do
    read -ra arguments <<<"${line%%#*}"
    if ((${#arguments[@]})); then "$root/tests/e2e/audit" "${arguments[@]}"; fi
done <"$root/tests/e2e/seeds"
