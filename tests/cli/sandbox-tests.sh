#!/usr/bin/env bash
# The native tests of an example, run with its job in the sandbox, as `tidemill test --sandbox` does. Here in the profile in
# which the example's tests have been compiled already.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
# shellcheck source=scripts/env.sh
. scripts/env.sh
for example in arrival-alerts bundles flight-delays limits visitors word-count; do
    tidemill build "$root/plugins-examples/$example"
    TIDEMILL_TEST_COMPONENT=$root/plugins-examples/$example/target/tidemill/$example.wasm \
        TIDEMILL_TEST_SERVER=$(command -v tidemill) \
        cargo test --release --manifest-path "$root/plugins-examples/Cargo.toml" --package "$example" \
        --target-dir "$TIDEMILL_GUEST_TARGET_DIR"
done
