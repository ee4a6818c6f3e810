//! Logs of jobs in the storage, beside the jobs: *segments* of some entries each, a line of JSON per entry.
//!
//! A store has no way to add to what is there. So the newest segment of a job is written again with what came since, under
//! a name that says how far it goes, and the shorter one is deleted; when it has its size, the next one begins. Whoever reads
//! takes the longest of those that begin alike, so nothing depends on that deletion.
//!
//! Invariant: of each job no more is kept than is set, by size and by age.

use std::collections::BTreeMap;

use tidemill_core::Result;

use super::LogFilter;
use crate::storage::Storage;
use crate::view::LogEntryView;

const FOLDER: &str = "logs";

/// How much is kept of what jobs log, and when it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// So often what is new is written: what is lost with a coordinator is not older.
    pub every_ms: u64,
    /// So much of each job; 0: nothing.
    pub size_bytes: u64,
    /// Nothing that was written before so long.
    pub age_ms: i64,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { every_ms: 5_000, size_bytes: 16 << 20, age_ms: 7 * 24 * 60 * 60 * 1_000 }
    }
}

/// Entries that follow each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    pub entries: Vec<LogEntryView>,
    /// The name of the shorter one that this takes the place of.
    pub replaces: Option<String>,
    /// Whether nothing more is to come into it.
    pub is_full: bool,
}

/// What was found of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Archived {
    /// Those that were wanted, the oldest first.
    pub entries: Vec<LogEntryView>,
    /// The number of the oldest after which was asked, wanted or not.
    pub oldest: Option<u64>,
}

/// What a segment's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name {
    first: u64,
    last: u64,
    written_ms: i64,
}

/// Writes a segment; with its name.
pub fn write(storage: &Storage, job: &str, segment: &Segment, now_ms: i64) -> Result<String> {
    let of = |entry: Option<&LogEntryView>| entry.map_or(0, |entry| entry.sequence);
    let (first, last) = (of(segment.entries.first()), of(segment.entries.last()));
    let name = Name { first, last, written_ms: now_ms }.text();
    let mut content = Vec::new();
    for entry in &segment.entries {
        serde_json::to_writer(&mut content, entry)
            .map_err(|e| tidemill_core::Error::internal(format!("an entry of a log: {e}")))?;
        content.push(b'\n');
    }
    storage.keep_bytes(&path(job, &name), &content)?;
    if let Some(shorter) = segment.replaces.as_ref().filter(|shorter| **shorter != name) {
        storage.delete_all(&[path(job, shorter)])?;
    }
    Ok(name)
}

/// Deletes what is too much or too old of a job's.
pub fn prune(storage: &Storage, job: &str, settings: &LogSettings, now_ms: i64) -> Result<()> {
    let all = list(storage, job)?;
    let longest = longest(&all);
    let is_kept = |name: &Name| longest.get(&name.first).is_some_and(|(kept, _)| kept == name);
    let oldest_ms = now_ms.saturating_sub(settings.age_ms);
    let mut room = settings.size_bytes;
    let mut gone = Vec::new();
    for (name, bytes) in all.iter().rev() {
        let fits = room.checked_sub(*bytes);
        match fits {
            Some(left) if is_kept(name) && name.written_ms >= oldest_ms => room = left,
            _ => {
                gone.push(path(job, &name.text()));
                // Nothing older is kept than what is gone for want of room.
                room = if fits.is_none() { 0 } else { room };
            }
        }
    }
    storage.delete_all(&gone)
}

/// Deletes all of a job's.
pub fn forget(storage: &Storage, job: &str) -> Result<()> {
    let all: Vec<String> = list(storage, job)?.iter().map(|(name, _)| path(job, &name.text())).collect();
    storage.delete_all(&all)
}

/// The newest entries of a job below a number that a filter takes; at most `limit`.
pub fn newest(storage: &Storage, job: &str, below: u64, limit: usize, filter: &LogFilter) -> Result<Archived> {
    let mut newest = Vec::new();
    for (name, _) in longest(&list(storage, job)?).values().rev().filter(|(name, _)| name.first < below) {
        let entries = read(storage, job, name)?;
        newest.extend(entries.into_iter().rev().filter(|entry| entry.sequence < below && filter.takes(entry)));
        if newest.len() >= limit {
            break;
        }
    }
    newest.truncate(limit);
    newest.reverse();
    Ok(Archived { entries: newest, oldest: None })
}

/// The oldest entries of a job after a number and below another that a filter takes; at most `limit`.
pub fn between(
    storage: &Storage,
    job: &str,
    (after, below): (u64, u64),
    limit: usize,
    filter: &LogFilter,
) -> Result<Archived> {
    let mut found = Archived::default();
    for (name, _) in longest(&list(storage, job)?).values().filter(|(name, _)| name.last > after && name.first < below)
    {
        for entry in read(storage, job, name)? {
            if entry.sequence <= after || entry.sequence >= below {
                continue;
            }
            found.oldest.get_or_insert(entry.sequence);
            if filter.takes(&entry) {
                found.entries.push(entry);
            }
        }
        if found.entries.len() >= limit {
            break;
        }
    }
    found.entries.truncate(limit);
    Ok(found)
}

/// The segments of a job with their sizes, the oldest first.
fn list(storage: &Storage, job: &str) -> Result<Vec<(Name, u64)>> {
    let listed = storage.sizes(&format!("{FOLDER}/{job}"))?;
    let mut all: Vec<(Name, u64)> =
        listed.into_iter().filter_map(|(name, bytes)| Some((Name::of(&name)?, bytes))).collect();
    all.sort_unstable_by_key(|(name, _)| (name.first, name.last));
    Ok(all)
}

/// Of those that begin alike, the longest.
fn longest(all: &[(Name, u64)]) -> BTreeMap<u64, (Name, u64)> {
    all.iter().map(|of| (of.0.first, *of)).collect()
}

/// What can't be read of it is left out.
fn read(storage: &Storage, job: &str, name: &Name) -> Result<Vec<LogEntryView>> {
    let content = storage.bytes(&path(job, &name.text()))?.unwrap_or_default();
    let lines = content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let entries = lines.filter_map(|line| serde_json::from_slice::<LogEntryView>(line).ok());
    Ok(entries.map(|entry| LogEntryView { job: job.to_owned(), ..entry }).collect())
}

fn path(job: &str, name: &str) -> String {
    format!("{FOLDER}/{job}/{name}")
}

impl Name {
    fn text(&self) -> String {
        let Self { first, last, written_ms } = self;
        format!("{first:016x}-{last:016x}-{written_ms}.log")
    }

    /// `None`: that is none.
    fn of(text: &str) -> Option<Self> {
        let mut parts = text.strip_suffix(".log")?.splitn(3, '-');
        let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
        let (first, last) = (number()?, number()?);
        Some(Self { first, last, written_ms: parts.next()?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tidemill_blobs::Memory;
    use tidemill_core::log::Level;

    use super::super::{JobLog, entry};
    use super::*;

    const SETTINGS: LogSettings = LogSettings { every_ms: 1, size_bytes: 1 << 20, age_ms: 1_000 };

    fn storage() -> Storage {
        Storage::new("/here", Arc::new(Memory::default()))
    }

    /// Writes what is new of a log.
    fn flush(storage: &Storage, log: &JobLog, now_ms: i64) {
        while let Some(segment) = log.to_write() {
            let name = write(storage, "j", &segment, now_ms).unwrap();
            log.wrote(&segment, name);
        }
    }

    fn texts(found: &Archived) -> Vec<&str> {
        found.entries.iter().map(|entry| entry.message.as_str()).collect()
    }

    fn say(log: &JobLog, numbers: std::ops::Range<u64>) {
        numbers.for_each(|n| log.say(0, Level::Info, &n.to_string()));
    }

    #[test]
    fn what_is_new_is_added_to_the_newest_segment() {
        let (storage, log) = (storage(), JobLog::new(1, false));
        for n in 0..5 {
            say(&log, n..n + 1);
            flush(&storage, &log, 7);
            assert_eq!(list(&storage, "j").unwrap().len(), 1);
        }
        assert_eq!(log.to_write(), None);
        let all = newest(&storage, "j", u64::MAX, 10, &LogFilter::default()).unwrap();
        assert_eq!(texts(&all), ["0", "1", "2", "3", "4"]);
        assert_eq!((all.entries[4].sequence, all.entries[4].job.as_str()), (1_004, "j"));
        assert_eq!(texts(&newest(&storage, "j", 1_004, 2, &LogFilter::default()).unwrap()), ["2", "3"]);
        let found = between(&storage, "j", (1_001, 1_004), 9, &LogFilter::default()).unwrap();
        assert_eq!((texts(&found), found.oldest), (vec!["2", "3"], Some(1_002)));
        let found = between(&storage, "j", (0, u64::MAX), 2, &LogFilter::default()).unwrap();
        assert_eq!(texts(&found), ["0", "1"]);
        let of_none = LogFilter::of_task("none", &[]).unwrap();
        assert_eq!(between(&storage, "j", (1_001, 1_004), 9, &of_none).unwrap().oldest, Some(1_002));
    }

    /// The next coordinator numbers on; one that was killed may have left the shorter segment too.
    #[test]
    fn segments_of_more_than_one_coordinator_are_read_as_one() {
        let storage = storage();
        let (first, second) = (JobLog::new(1, false), JobLog::new(2, true));
        say(&first, 0..1);
        let shorter = first.to_write().unwrap();
        write(&storage, "j", &shorter, 7).unwrap();
        say(&first, 1..3);
        flush(&storage, &first, 7);
        say(&second, 3..4);
        flush(&storage, &second, 7);
        assert_eq!(list(&storage, "j").unwrap().len(), 3);
        assert_eq!(texts(&newest(&storage, "j", u64::MAX, 9, &LogFilter::default()).unwrap()), ["0", "1", "2", "3"]);
        prune(&storage, "j", &SETTINGS, 8).unwrap();
        assert_eq!(list(&storage, "j").unwrap().len(), 2);
    }

    #[test]
    fn what_is_kept_is_bounded_by_size_and_age() {
        let (storage, log) = (storage(), JobLog::new(1, false));
        for n in 0..10_000 {
            say(&log, n..n + 1);
            if n % 100 == 0 {
                flush(&storage, &log, n as i64);
            }
        }
        flush(&storage, &log, 10_000);
        let all = list(&storage, "j").unwrap();
        assert!(all.len() >= 10 && all.iter().all(|(_, bytes)| *bytes < 1 << 20), "{all:?}");
        assert_eq!(newest(&storage, "j", u64::MAX, usize::MAX, &LogFilter::default()).unwrap().entries.len(), 10_000);
        let size_bytes = all.iter().rev().take(3).map(|(_, bytes)| bytes).sum();
        let settings = LogSettings { size_bytes, age_ms: 1_000_000, ..SETTINGS };
        prune(&storage, "j", &settings, 10_000).unwrap();
        assert_eq!(list(&storage, "j").unwrap(), all[all.len() - 3..]);
        prune(&storage, "j", &SETTINGS, 20_000).unwrap();
        assert_eq!(list(&storage, "j").unwrap(), []);
        say(&log, 0..1);
        flush(&storage, &log, 20_000);
        forget(&storage, "j").unwrap();
        assert_eq!(list(&storage, "j").unwrap(), []);
    }

    #[test]
    fn what_is_damaged_is_left_out() {
        let (storage, log) = (storage(), JobLog::new(1, false));
        say(&log, 0..2);
        flush(&storage, &log, 7);
        let line = serde_json::to_string(&entry(1, Level::Info, "third")).unwrap();
        storage
            .keep_bytes("logs/j/0000000000001000-0000000000001001-7.log", format!("{line}\n{{\"se").as_bytes())
            .unwrap();
        storage.keep_bytes("logs/j/other", b"x").unwrap();
        assert_eq!(texts(&newest(&storage, "j", u64::MAX, 9, &LogFilter::default()).unwrap()), ["0", "1", "third"]);
    }
}
