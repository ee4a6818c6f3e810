#!/usr/bin/env bash
# Kills jobs of every stateful kind in real processes, and breaks what is below them; nothing may be lost or there twice.
# Scenarios that once failed are among them. `tests/long/audit` does the same for longer.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
"$root/tests/e2e/audit" --kills 20 --replay "$root/tests/e2e/seeds"
"$root/tests/e2e/audit" --kills 12 --seed 2 --backend rocksdb
"$root/tests/e2e/audit" --kills 12 --seed 3 --store s3 --sink s3
"$root/tests/e2e/audit" --cluster 3 --kills 12 --seed 4
TIDEMILL_WORKER_LOCAL_RECOVERY=always "$root/tests/e2e/audit" --cluster 3 --kills 12 --seed 6 --backend rocksdb
probe=tidemill-probe-$$
if ip netns add "$probe" 2>/dev/null; then
    ip netns delete "$probe"
    "$root/tests/e2e/audit" --cluster 3 --links --kills 8 --seed 5
else
    echo "SKIPPED cut links: this machine lets nobody make network namespaces"
fi
"$root/tests/e2e/audit" --faults
"$root/tests/e2e/audit" --faults --backend rocksdb
