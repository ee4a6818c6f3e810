# shellcheck shell=sh
# Where builds go; sourced by the Makefile and by every script here, so that the rule is written once. Plain sh.
#
# A developer's own CARGO_TARGET_DIR wins; otherwise builds stay in ./target. On a CI machine, whose clones are thrown
# away, they go to the cache folder, so that the next clone does not compile the engine again.
#
# CARGO_TARGET_DIR           for the workspace
# TIDEMILL_GUEST_TARGET_DIR  for the wasm guests, which are workspaces of their own: one folder for all of them
#
# tidemill_features          what tests, lint and releases are built with, and the demo goes without: state on disk, whose
#                            C++ takes ten minutes of two cores to compile
#
# The caller's working directory must be the root of the repository.

if [ -n "${CI:-}" ] && [ "${CI:-}" != "false" ]; then
    tidemill_cache="${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/tidemill"
    : "${CARGO_TARGET_DIR:=$tidemill_cache/target}"
    : "${TIDEMILL_GUEST_TARGET_DIR:=$tidemill_cache/guests}"
    unset tidemill_cache
else
    : "${CARGO_TARGET_DIR:=$PWD/target}"
    : "${TIDEMILL_GUEST_TARGET_DIR:=$PWD/target/guests}"
fi
# Guests are built from other folders than the root, where a relative path would mean something else.
case $CARGO_TARGET_DIR in /*) ;; *) CARGO_TARGET_DIR="$PWD/$CARGO_TARGET_DIR" ;; esac
case $TIDEMILL_GUEST_TARGET_DIR in /*) ;; *) TIDEMILL_GUEST_TARGET_DIR="$PWD/$TIDEMILL_GUEST_TARGET_DIR" ;; esac
export CARGO_TARGET_DIR TIDEMILL_GUEST_TARGET_DIR
# shellcheck disable=SC2034 # for those that source this
tidemill_features=tidemill-cli/rocksdb,tidemill-bench/rocksdb,tidemill-dataflow/rocksdb
