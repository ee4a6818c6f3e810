//! The keys of the sections that are not bindings, each declared once.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use tidemill_connector_kit::{ByteSize, Key, OptionSpec};

pub const NAME: Key<String> = Key::new("name", "The job's name, if it is not the component's.");
pub const COMPONENT: Key<PathBuf> = Key::new(
    "component",
    "Where `tidemill build` writes the component and `tidemill run` finds it; if absent, \
    target/tidemill/NAME.wasm.",
);
pub const PARALLELISM: Key<u64> = Key::new("parallelism", "Slots: threads that each run a slice of the job.").or("1");
pub const BATCH_ROWS: Key<u64> = Key::new("batch-rows", "Rows per batch to aim at.").or("4096");
pub const MAX_PARALLELISM: Key<u64> =
    Key::new("max-parallelism", "Key groups: the most that parallelism can ever become for this job's state.")
        .or("128");
pub const EXCHANGE: Key<ByteSize> =
    Key::new("exchange", "Bound of each queue between two slots, in bytes.").or("4 MiB");

pub const MEMORY: Key<ByteSize> =
    Key::new("memory", "Memory of one instance of the job's code; there is one per operator and slot.").or("256 MiB");
pub const CALL_TIME: Key<Duration> = Key::new("call-time", "Time of one call of the job's code.").or("5 s");
pub const TRANSFER: Key<ByteSize> = Key::new("transfer", "What one call may hand to the host, in bytes.").or("64 MiB");
pub const EMITTED_ROWS: Key<u64> = Key::new("emitted-rows", "Rows that one call may emit.").or("8388608");

pub const LOCATION: Key<String> = Key::new(
    "location",
    "Where checkpoints are kept: a folder, or s3://BUCKET/PREFIX. Without it there are none, and a failure costs all state.",
)
.required();
pub const INTERVAL: Key<Duration> = Key::new("interval", "How often a checkpoint is begun.").or("10 s");
pub const MIN_PAUSE: Key<Duration> =
    Key::new("min-pause", "The least time between the end of a checkpoint and the beginning of the next.").or("0 s");
pub const TIMEOUT: Key<Duration> = Key::new("timeout", "A checkpoint that takes longer is given up.").or("10 min");
pub const UNALIGNED: Key<bool> = Key::new(
    "unaligned",
    "Whether a checkpoint may turn unaligned: its barriers overtake rows that wait, which are then kept with it, so that \
    it does not wait for them. Without it: if there is an aligned-timeout.",
);
pub const ALIGNED_TIMEOUT: Key<Duration> = Key::new(
    "aligned-timeout",
    "After so long, a checkpoint that not all of the job has passed turns unaligned; `0 s`: at once, which is also what \
    `unaligned = true` means alone.",
);
pub const TOLERABLE_FAILURES: Key<u64> =
    Key::new("tolerable-failures", "How many checkpoints in a row may be given up before that fails the job.").or("0");
pub const RETAINED: Key<u64> = Key::new("retained", "How many of the newest checkpoints are kept.").or("1");

pub const STRATEGY: Key<String> = Key::new(
    "strategy",
    "Whether a job that failed for a passing reason is started again from its newest checkpoint. Without it: \
    exponential-delay for a job with checkpoints, else none.",
)
.one_of(&["none", "fixed-delay", "exponential-delay", "failure-rate"]);
pub const ATTEMPTS: Key<u64> =
    Key::new("attempts", "fixed-delay (1 by default) and exponential-delay (no end): how often in a row.");
pub const DELAY: Key<Duration> =
    Key::new("delay", "fixed-delay and failure-rate: the wait before each start.").or("1 s");
pub const INITIAL_BACKOFF: Key<Duration> = Key::new("initial-backoff", "exponential-delay: the first wait.").or("1 s");
pub const MAX_BACKOFF: Key<Duration> = Key::new("max-backoff", "exponential-delay: the longest wait.").or("1 min");
pub const BACKOFF_MULTIPLIER: Key<f64> =
    Key::new("backoff-multiplier", "exponential-delay: what a wait is multiplied with for the next one.").or("1.5");
pub const RESET_AFTER: Key<Duration> =
    Key::new("reset-after", "exponential-delay: after running so long, the next failure counts as the first.")
        .or("1 h");
pub const JITTER: Key<f64> =
    Key::new("jitter", "exponential-delay: by which share a wait is made longer or shorter.").or("0.1");
pub const MAX_FAILURES: Key<u64> =
    Key::new("max-failures", "failure-rate: how many failures within the interval are accepted.").or("1");
pub const FAILURE_INTERVAL: Key<Duration> = Key::new("interval", "failure-rate: that interval.").or("1 min");

pub const STATE_MEMORY: Key<ByteSize> = Key::new(
    "memory",
    "What the keyed state of the whole job may take of memory. Without it there is no limit; of `rocksdb` it is 1 GiB.",
);

pub const STATE_BACKEND: Key<String> = Key::new(
    "backend",
    "Where keyed state is kept: in `memory`, or by `rocksdb` on a local disk, with what is used in memory.",
)
.or("memory")
.one_of(&["memory", "rocksdb"]);
pub const STATE_PATH: Key<String> = Key::new(
    "path",
    "Of `rocksdb`: a folder on a fast local disk, for working files that may be lost. The system's temporary one if not given.",
);

pub const COMPONENT_BYTES: Key<ByteSize> =
    Key::new("component", "The largest component that is loaded: compiling costs time and memory in proportion.")
        .or("64 MiB");
pub const COMPILE_TIME: Key<Duration> = Key::new("compile-time", "Time of compiling the component.").or("60 s");

pub fn job() -> Vec<OptionSpec> {
    vec![NAME.spec(), COMPONENT.spec(), PARALLELISM.spec(), BATCH_ROWS.spec(), MAX_PARALLELISM.spec(), EXCHANGE.spec()]
}

pub fn checkpoints() -> Vec<OptionSpec> {
    vec![
        LOCATION.spec(),
        INTERVAL.spec(),
        MIN_PAUSE.spec(),
        TIMEOUT.spec(),
        UNALIGNED.spec(),
        ALIGNED_TIMEOUT.spec(),
        TOLERABLE_FAILURES.spec(),
        RETAINED.spec(),
    ]
}

pub fn restart() -> Vec<OptionSpec> {
    vec![
        STRATEGY.spec(),
        ATTEMPTS.spec(),
        DELAY.spec(),
        INITIAL_BACKOFF.spec(),
        MAX_BACKOFF.spec(),
        BACKOFF_MULTIPLIER.spec(),
        RESET_AFTER.spec(),
        JITTER.spec(),
        MAX_FAILURES.spec(),
        FAILURE_INTERVAL.spec(),
    ]
}

pub fn state() -> Vec<OptionSpec> {
    vec![STATE_BACKEND.spec(), STATE_MEMORY.spec(), STATE_PATH.spec()]
}

pub fn limits() -> Vec<OptionSpec> {
    vec![
        MEMORY.spec(),
        CALL_TIME.spec(),
        TRANSFER.spec(),
        EMITTED_ROWS.spec(),
        COMPONENT_BYTES.spec(),
        COMPILE_TIME.spec(),
    ]
}

/// The manifest's own keys, as Markdown.
pub fn documentation() -> String {
    let mut text = String::from("# The manifest, `tidemill.toml`\n\n");
    let sections = [
        ("job", job()),
        ("checkpoints", checkpoints()),
        ("restart", restart()),
        ("state", state()),
        ("limits", limits()),
    ];
    for (section, specs) in sections {
        let _ = write!(text, "`[{section}]`\n\n{}\n", tidemill_connector_kit::options::documentation(&specs));
    }
    text.push_str(
        "`[params]`: names and values that the job's code is given when it opens.\n\n\
         `[sources.NAME]`, `[sinks.NAME]`: binds a source or sink of the job: `connector`, and that connector's options.\n\
         In texts, `${NAME}` stands for an environment variable (and `$${` for `${`).\n\n\
         `[dead-letter]`: a sink for rows that can't be processed. Without it the first such row fails the job.\n\n\
         Relative paths are relative to the manifest.\n",
    );
    text
}
