# shellcheck shell=bash
# What the tests of clusters share. Sourced in the folder where a test works, with `root` as the repository's.

# until_true COMMAND...: within a minute. `logs`: what is shown if not.
until_true() {
    local end=$((SECONDS + 60))
    until "$@"; do
        ((SECONDS < end)) || { echo "never: $*"; tidemill list; cat "${logs[@]}"; exit 1; }
        read -r -t 0.1 <> <(:) || true
    done
}

# new_clicks [SECTION]: a job in `clicks` that counts the words of files in `in`, writes the counts to `out`, and ends when it
# is stopped.
new_clicks() {
    tidemill new clicks >/dev/null 2>&1
    cat >clicks/tidemill.toml <<END
[job]
name = "clicks"
component = "$root/plugins-examples/word-count/target/tidemill/word-count.wasm"
[checkpoints]
location = "$PWD/checkpoints"
interval = "100 ms"
${1:-}
[sources.lines]
connector = "files"
path = "$PWD/in"
format = "lines"
discover-every = "50 ms"
[sinks.counts]
connector = "files"
path = "$PWD/out"
format = "csv"
END
    tidemill build "$root/plugins-examples/word-count" >/dev/null 2>&1
    mkdir in
    printf 'ebb flood\nebb\n' >in/1.txt
}
# lines LINE: how often it was written; wrote LINE: whether once.
lines() { cat out/* 2>/dev/null | grep -cx "$1" || true; }
wrote() { [[ $(lines "$1") == 1 ]]; }
