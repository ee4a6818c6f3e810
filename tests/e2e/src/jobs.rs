//! The jobs: what each reads and writes, and its manifest.

use std::fmt::Write as _;
use std::path::Path;

use crate::reference::{self, AUCTIONS, BIDDERS, Outputs, RATE};

/// One of `tests/e2e/jobs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Job {
    /// Stateless rows, value state, two keyed operators in a row, event-time timers.
    Keyed,
    /// Tumbling, sliding and session windows, aggregates of the user's, what is late.
    Windows,
    /// A window join and an interval join.
    Joins,
    /// Files that go on being found, dead letters, processing-time timers.
    Files,
    /// State that all keys share, beside keyed state and without.
    Broadcast,
    /// Operator lists, split and united, and the end of the input.
    Lists,
}

/// A sink of a job.
#[derive(Clone, Copy, Debug)]
pub struct SinkSpec {
    /// Its binding, and its folder.
    pub name: &'static str,
    /// Whether it writes JSON lines; else CSV.
    pub json: bool,
    /// Its columns that are looked at; none: of CSV all that the file has.
    pub columns: &'static [&'static str],
    /// Columns that can name folders.
    pub partition_by: &'static [&'static str],
}

impl SinkSpec {
    /// Its section in the manifest.
    pub fn section(&self) -> String {
        if self.name == "dead-letters" { "dead-letter".to_owned() } else { format!("sinks.{}", self.name) }
    }

    /// The same, of which these columns can name folders.
    const fn by(self, partition_by: &'static [&'static str]) -> Self {
        Self { partition_by, ..self }
    }
}

const fn csv(name: &'static str, columns: &'static [&'static str]) -> SinkSpec {
    SinkSpec { name, json: false, columns, partition_by: &[] }
}

const fn json(name: &'static str, columns: &'static [&'static str]) -> SinkSpec {
    SinkSpec { name, json: true, columns, partition_by: &[] }
}

/// Records per file of the job `files`: enough for a barrier to come in the middle of one.
pub const PER_FILE: u64 = 300;
/// Events per second of real time, while there are kills to come.
const PACE: u64 = 12_000;

/// Whether sinks that can have folders by value do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partitions {
    /// No.
    None,
    /// They do, and the columns that name them are not in the files.
    Dropped {
        /// Files that a slot may have open.
        max_open_files: u64,
    },
    /// They do, and the columns are in the files too.
    Kept {
        /// Files that a slot may have open.
        max_open_files: u64,
    },
}

/// What of a manifest is drawn from the seed.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Input records.
    pub records: u64,
    /// Between checkpoints, in milliseconds.
    pub interval_ms: u64,
    /// Rows per batch.
    pub batch_rows: u64,
    /// Checkpoints that are kept.
    pub retained: u64,
    /// When a part file is closed: at this size, ...
    pub roll_bytes: u64,
    /// ... so many milliseconds after its first row, ...
    pub roll_after_ms: Option<u64>,
    /// ... and after so many milliseconds without one.
    pub roll_idle_ms: Option<u64>,
    /// Whether sinks have folders by value.
    pub partitions: Partitions,
    /// When a checkpoint turns unaligned, in milliseconds.
    pub aligned_timeout_ms: Option<u64>,
}

impl Job {
    /// All.
    pub const ALL: [Self; 6] = [Self::Keyed, Self::Windows, Self::Joins, Self::Files, Self::Broadcast, Self::Lists];

    /// Its name, which is also the feature of its component.
    pub fn name(self) -> &'static str {
        match self {
            Self::Keyed => "keyed",
            Self::Windows => "windows",
            Self::Joins => "joins",
            Self::Files => "files",
            Self::Broadcast => "broadcast",
            Self::Lists => "lists",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|job| job.name() == name)
    }

    /// Its sinks; the dead letters count as one.
    pub fn sinks(self) -> &'static [SinkSpec] {
        const WINDOW: &[&str] = &["key", "start", "end", "rows", "sum"];
        const COUNTS: &[&str] = &["key", "n"];
        const KEYED: [SinkSpec; 4] = [
            csv("pass", &[]),
            json("counts", COUNTS).by(&["key"]),
            csv("ranks", &[]),
            json("blocks", &["key", "second", "rows", "ids"]).by(&["second", "rows"]),
        ];
        const WINDOWS: [SinkSpec; 5] = [
            csv("tumbling", WINDOW).by(&["start"]),
            json("sliding", WINDOW).by(&["start"]),
            csv("sessions", WINDOW).by(&["rows"]),
            json("in-time", &["id", "rows"]).by(&["rows"]),
            csv("late", &[]),
        ];
        const JOINS: [SinkSpec; 2] = [csv("window-join", &[]), json("interval-join", &["bid", "auction"])];
        const FILES: [SinkSpec; 4] = [
            json("pass", &["id", "key", "text"]).by(&["key"]),
            csv("counts", COUNTS).by(&["key"]),
            csv("timed", &[]),
            json("dead-letters", &["reason", "record"]),
        ];
        const BROADCAST: [SinkSpec; 2] = [csv("told", &[]), json("known", &["key", "rows", "auctions"]).by(&["rows"])];
        const LISTS: [SinkSpec; 2] = [csv("held", &[]), json("known", &["id"])];
        match self {
            Self::Lists => &LISTS,
            Self::Broadcast => &BROADCAST,
            Self::Keyed => &KEYED,
            Self::Windows => &WINDOWS,
            Self::Joins => &JOINS,
            Self::Files => &FILES,
        }
    }

    /// Whether its input ends by itself.
    pub fn ends(self) -> bool {
        self != Self::Files
    }

    /// Input records for a run with so many kills.
    pub fn records(self, kills: u64) -> u64 {
        match self {
            Self::Files => (10 + 4 * kills) * PER_FILE,
            _ => 5_000 + 4_500 * kills,
        }
    }

    /// What must come out.
    pub fn expected(self, records: u64) -> Outputs {
        match self {
            Self::Keyed => reference::keyed(records),
            Self::Windows => reference::windows(records),
            Self::Joins => reference::joins(records),
            Self::Broadcast => reference::broadcast(records),
            Self::Lists => reference::lists(records),
            Self::Files => reference::files(records, PER_FILE),
        }
    }

    /// The manifest of a run in a folder.
    pub fn manifest(self, folder: &Path, component: &Path, settings: &Settings) -> String {
        let Settings { records, interval_ms, batch_rows, retained, aligned_timeout_ms, .. } = settings;
        let unaligned = aligned_timeout_ms.map(|ms| format!("aligned-timeout = \"{ms} ms\"\n")).unwrap_or_default();
        let folder = folder.display();
        let mut text = format!(
            "[job]\nname = \"audit-{}\"\ncomponent = '{}'\nbatch-rows = {batch_rows}\n\n\
             [checkpoints]\nlocation = '{folder}/checkpoints'\ninterval = \"{interval_ms} ms\"\nretained = {retained}\n{unaligned}\n\
             [restart]\nstrategy = \"none\"\n",
            self.name(),
            component.display(),
        );
        let mut line = |line: String| _ = writeln!(text, "{line}");
        if self == Self::Files {
            for (source, format) in [("tables", "csv"), ("objects", "json")] {
                line(format!("\n[sources.{source}]\nconnector = \"files\"\npath = '{folder}/in-{source}'"));
                line(format!(
                    "format = \"{format}\"\ndiscover-every = \"20 ms\"\nsplit-bytes = \"4 KiB\"\non-error = \"dead-letter\""
                ));
            }
        } else {
            line(format!("\n[sources.bids]\nconnector = \"bids\"\nrecords = {records}\nauctions = {AUCTIONS}"));
            let mixed = matches!(self, Self::Joins | Self::Broadcast);
            line(format!("bidders = {BIDDERS}\nrate = {RATE}\npace = {PACE}\nmixed = {mixed}"));
        }
        for sink in self.sinks() {
            let section = sink.section();
            let format = if sink.json { "json" } else { "csv" };
            line(format!(
                "\n[{section}]\nconnector = \"files\"\npath = '{folder}/{}'\nformat = \"{format}\"",
                sink.name
            ));
            line(format!("timestamps = \"ms\"\n{}", rolling(sink, settings)));
        }
        text
    }
}

/// When a sink's files are closed, and into which folders they go.
fn rolling(sink: &SinkSpec, settings: &Settings) -> String {
    let mut text = format!("roll-bytes = \"{} B\"\n", settings.roll_bytes);
    for (rule, ms) in [("after", settings.roll_after_ms), ("idle", settings.roll_idle_ms)] {
        if let Some(ms) = ms {
            _ = writeln!(text, "roll-{rule} = \"{ms} ms\"");
        }
    }
    let (max_open_files, keep) = match settings.partitions {
        Partitions::Dropped { max_open_files } => (max_open_files, false),
        Partitions::Kept { max_open_files } => (max_open_files, true),
        Partitions::None => return text,
    };
    if !sink.partition_by.is_empty() {
        _ = writeln!(text, "partition-by = {:?}\nkeep-partition-columns = {keep}", sink.partition_by);
        _ = writeln!(text, "max-open-files = {max_open_files}");
    }
    text
}
