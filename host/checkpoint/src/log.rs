//! The log of a job: numbered entries, each written once and never changed. It alone says what has happened to the job.
//!
//! An attempt at the job starts by claiming the next number with a *begin* of a higher generation; it claims each
//! checkpoint with the next one after that. Since a number has one winner, whoever still believes to run the job finds
//! its next number taken by a `begin`, and is *fenced*. Each entry holds the checksum of the one before, so that an entry
//! which a sleeper writes to where a deleted one was is not taken for a part of the history.
//!
//! Pure: entries in, decisions out.

use serde::{Deserialize, Serialize};

use crate::manifest::Manifest;
use crate::sealed::{self, Damage};
use crate::{checksum, manifest};

/// The version of entries that are written.
pub const LOG_VERSION: u32 = 1;

const FORMAT: &str = "tidemill-log";

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its number: from 1, without gaps.
    pub number: u64,
    /// Which attempt wrote it.
    pub generation: u64,
    /// The checksum of the entry before. `None`: it is the first.
    pub previous: Option<String>,
    /// Makes it different from what anybody else writes, so that its writer knows it again.
    pub nonce: String,
    /// What happened.
    pub event: Event,
}

/// What happened to a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// An attempt started.
    Begin {
        /// From what. `None`: with nothing.
        from: Option<Origin>,
        /// When, in milliseconds UTC.
        at_ms: i64,
    },
    /// A checkpoint is complete. Its number is the entry's.
    Checkpoint(Manifest),
    /// The job was stopped with a savepoint, which is there: it is over.
    Saved {
        /// The checkpoint with which it was stopped.
        from: Option<Origin>,
        /// Where the savepoint is.
        savepoint: String,
        /// When, in milliseconds UTC.
        at_ms: i64,
    },
    /// The job was given up.
    Cancelled {
        /// What the attempt would have gone on from.
        from: Option<Origin>,
        /// When, in milliseconds UTC.
        at_ms: i64,
    },
}

/// What an attempt goes on from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A checkpoint of the job, by its number.
    Checkpoint(u64),
    /// A savepoint, by its location.
    Savepoint(String),
}

/// An entry as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// What it says.
    pub entry: Entry,
    /// Of its bytes, for the entry after it.
    pub checksum: String,
}

impl Entry {
    /// The bytes to store.
    pub fn encode(&self) -> serde_json::Result<Vec<u8>> {
        Ok(sealed::seal(FORMAT, LOG_VERSION, &serde_json::to_vec(self)?))
    }

    /// What an attempt after it goes on from.
    pub fn head(&self) -> Option<Origin> {
        match &self.event {
            Event::Checkpoint(_) => Some(Origin::Checkpoint(self.number)),
            Event::Begin { from, .. } | Event::Saved { from, .. } | Event::Cancelled { from, .. } => from.clone(),
        }
    }
}

/// Reads the entry with this number.
pub fn decode(number: u64, content: &[u8]) -> Result<Stored, Damage> {
    let body = sealed::open(FORMAT, LOG_VERSION, content)?;
    let entry: Entry = serde_json::from_slice(body).map_err(|e| Damage::NotThis(e.to_string()))?;
    if let Event::Checkpoint(found) = &entry.event
        && found.version > manifest::MANIFEST_VERSION
    {
        return Err(Damage::Newer(found.version));
    }
    if entry.number != number {
        return Err(Damage::NotThis(format!("it says that its number is {}", entry.number)));
    }
    Ok(Stored { entry, checksum: checksum::of(content) })
}

/// The name of the entry with this number; names sort as numbers do.
pub fn name(number: u64) -> String {
    format!("{number:020}.json")
}

/// The number of an entry by its name. `None`: it is not an entry.
pub fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".json")?;
    (digits.len() == 20).then(|| digits.parse().ok()).flatten()
}

/// What to start a job from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// If it was interrupted, go on from its newest checkpoint. If it ended (finished, stopped, cancelled) or never ran,
    /// start anew.
    #[default]
    Recover,
    /// Go on from its newest checkpoint, however it ended.
    GoOn,
    /// The same after another attempt, of whose end nobody may have heard: what was stopped with a savepoint is over.
    #[serde(skip)]
    Again,
    /// Start with nothing. The checkpoints so far are deleted after the first new one.
    Anew,
    /// Go on from this. Of the job's checkpoints, those after it are given up.
    At(Origin),
}

/// What starting a job means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Begin, from this.
    Run(Option<Origin>),
    /// It ended with this checkpoint, but what it wrote may not be committed. There is nothing to run.
    Commit(u64),
    /// It was stopped with the savepoint there. There is nothing to run.
    Over(String),
}

/// Decides how to start. `committed`: whether the newest entry is a checkpoint and has its committed marker.
pub fn resume(start: &Start, newest: Option<&Entry>, committed: bool) -> Resume {
    match start {
        Start::Anew => Resume::Run(None),
        Start::At(origin) => Resume::Run(Some(origin.clone())),
        Start::GoOn => Resume::Run(newest.and_then(Entry::head)),
        Start::Again => match newest.map(|entry| &entry.event) {
            Some(Event::Saved { savepoint, .. }) => Resume::Over(savepoint.clone()),
            _ => Resume::Run(newest.and_then(Entry::head)),
        },
        Start::Recover => newest.map_or(Resume::Run(None), |entry| recover(entry, committed)),
    }
}

fn recover(newest: &Entry, committed: bool) -> Resume {
    match &newest.event {
        Event::Checkpoint(manifest) if manifest.kind.is_end() && !committed => Resume::Commit(newest.number),
        Event::Checkpoint(manifest) if manifest.kind.is_end() => Resume::Run(None),
        Event::Saved { .. } | Event::Cancelled { .. } => Resume::Run(None),
        Event::Checkpoint(_) | Event::Begin { .. } => Resume::Run(newest.head()),
    }
}

/// Where the history of a checkpoint goes on, from its newest entry back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Before {
    /// To the entry with this number, which has to have this checksum.
    Entry(u64, String),
    /// To this checkpoint, from which an attempt began; what is between was given up.
    Jump(u64),
    /// It started here.
    Nothing,
}

/// What came before an entry.
pub fn before(entry: &Entry) -> Before {
    match &entry.event {
        Event::Begin { from: Some(Origin::Checkpoint(number)), .. } if *number < entry.number => Before::Jump(*number),
        Event::Begin { .. } => Before::Nothing,
        _ => match (&entry.previous, entry.number.checked_sub(1)) {
            (Some(previous), Some(number)) => Before::Entry(number, previous.clone()),
            _ => Before::Nothing,
        },
    }
}
