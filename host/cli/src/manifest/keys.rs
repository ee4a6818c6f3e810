//! The keys of `[job]` and `[limits]`, each declared once.

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

pub fn job() -> Vec<OptionSpec> {
    vec![NAME.spec(), COMPONENT.spec(), PARALLELISM.spec(), BATCH_ROWS.spec(), MAX_PARALLELISM.spec(), EXCHANGE.spec()]
}

pub fn limits() -> Vec<OptionSpec> {
    vec![MEMORY.spec(), CALL_TIME.spec(), TRANSFER.spec(), EMITTED_ROWS.spec()]
}

/// The manifest's own keys, as Markdown.
pub fn documentation() -> String {
    let mut text = String::from("# The manifest, `tidemill.toml`\n\n");
    for (section, specs) in [("job", job()), ("limits", limits())] {
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
