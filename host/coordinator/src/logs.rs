//! What was logged of a job, by its own code and by the engine: the newest of it, in memory; of which the storage gets what is
//! new every few seconds ([`archive`]), from a thread of its own ([`writer`]).
//!
//! Nothing waits for the storage, and nothing is held for it but what is in memory anyway: what has left there before it was
//! written is counted, and gone.
//!
//! Invariant: entries are numbered in the order in which they came, also over coordinators that come after each other, so
//! whoever has seen one can ask for those after it.

pub mod archive;
mod writer;

use std::collections::VecDeque;
use std::sync::Mutex;

use tidemill_core::log::{Level, MESSAGE_BYTES, NAME_BYTES, bounded};
use tidemill_core::{Error, Result};
use tidemill_rpc::proto;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use self::archive::{Archived, Segment};
use crate::lock;
use crate::view::{LogEntryView, LogLevel, LogsView, VertexView};

/// So many entries of a job are kept.
const ENTRIES: usize = 5_000;
/// So many bytes of them, about.
const BYTES: usize = 1 << 20;
/// So many of them have a segment of those in the storage, or so many bytes: few enough that what is in memory has all of it.
const SEGMENT_ENTRIES: usize = ENTRIES / 5;
const SEGMENT_BYTES: usize = BYTES / 4;
/// What an entry takes beside its texts.
const OVERHEAD: usize = 128;
/// No message of a worker has more; the rest is counted as dropped.
const AT_ONCE: usize = 2_000;
/// Numbers begin at the time in milliseconds, times this: later coordinators number on, unless one has numbered more
/// entries of a job than a thousand per millisecond. They stay below 2^53, which is where JSON is read as floats.
const PER_MS: u64 = 1_000;

/// See the module.
pub struct JobLog {
    kept: Mutex<Kept>,
    news: Notify,
}

struct Kept {
    entries: VecDeque<LogEntryView>,
    bytes: usize,
    /// The number of the next one.
    next: u64,
    /// The number of the first that there was.
    first: u64,
    dropped: u64,
    /// Whether there were some before this coordinator, which the storage may have.
    earlier: bool,
    stored: Stored,
}

/// What of it is in the storage.
struct Stored {
    /// The number of the first that is not.
    next: u64,
    /// Where the newest segment begins, and its name, if it is there.
    open: u64,
    name: Option<String>,
    /// How many were gone before they were written.
    missing: u64,
}

/// What is in memory of what was asked for.
pub struct Recent {
    /// That.
    pub view: LogsView,
    /// Where the storage may have more of it: after the one, if that was asked for, and below the other number.
    pub older: Option<(Option<u64>, u64)>,
}

/// Which entries are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// Those of an operator: nodes of the plan, or a name.
    operator: Option<(Vec<u32>, String)>,
    subtask: Option<u32>,
}

impl LogFilter {
    /// Those of `OPERATOR` or `OPERATOR/SUBTASK`, where the operator is named by its number in the plan, its uid or its
    /// name. An error: these operators are the job's, and this is none of them. While nothing is known of them, any name
    /// will do.
    pub fn of_task(task: &str, vertices: &[VertexView]) -> Result<Self> {
        if let Some(nodes) = find(task, vertices) {
            return Ok(Self { operator: Some((nodes, task.to_owned())), subtask: None });
        }
        let split = task.rsplit_once('/').and_then(|(name, index)| Some((name, index.parse::<u32>().ok()?)));
        let (name, subtask) = split.map_or((task, None), |(name, index)| (name, Some(index)));
        let nodes = match find(name, vertices) {
            Some(nodes) => nodes,
            None if vertices.is_empty() => name.parse().into_iter().collect(),
            None => return Err(no_operator(name, vertices)),
        };
        let subtasks = nodes.iter().filter_map(|node| vertices.get(*node as usize)).map(|of| of.subtasks.len()).max();
        if let (Some(index), Some(subtasks)) = (subtask, subtasks)
            && index as usize >= subtasks
        {
            return Err(Error::invalid(format!("operator '{}' has no subtask {index}", bounded(name, NAME_BYTES)))
                .mend(format!("It has {subtasks}, from 0 to {}.", subtasks.saturating_sub(1))));
        }
        Ok(Self { operator: Some((nodes, name.to_owned())), subtask })
    }

    fn takes(&self, entry: &LogEntryView) -> bool {
        let of_operator = self.operator.as_ref().is_none_or(|(nodes, name)| {
            entry.node.is_some_and(|node| nodes.contains(&node)) || entry.operator.as_ref() == Some(name)
        });
        of_operator && self.subtask.is_none_or(|index| entry.subtask == Some(index))
    }
}

/// The nodes that are meant.
fn find(name: &str, vertices: &[VertexView]) -> Option<Vec<u32>> {
    let number = name.parse::<u32>().ok().filter(|node| (*node as usize) < vertices.len());
    let named = (0..).zip(vertices).filter(|(_, of)| of.uid == name || of.name == name).map(|(node, _)| node);
    let mut nodes: Vec<u32> = named.collect();
    if nodes.is_empty() {
        nodes.extend(number);
    }
    (!nodes.is_empty()).then_some(nodes)
}

fn no_operator(name: &str, vertices: &[VertexView]) -> Error {
    /// So many are named.
    const NAMED: usize = 20;
    let names: Vec<String> = vertices.iter().take(NAMED).map(|of| bounded(&of.name, NAME_BYTES)).collect();
    let more = if vertices.len() > NAMED { ", ..." } else { "" };
    Error::invalid(format!("the job has no operator '{}'", bounded(name, NAME_BYTES)))
        .mend(format!("Name one by its name, uid or number, maybe with /SUBTASK: {}{more}.", names.join(", ")))
}

impl JobLog {
    /// Of a job that this coordinator has since this time; `earlier`: and another one had before.
    pub fn new(now_ms: i64, earlier: bool) -> Self {
        let next = now_ms.unsigned_abs().saturating_mul(PER_MS);
        let stored = Stored { next, open: next, name: None, missing: 0 };
        let kept = Kept { entries: VecDeque::new(), bytes: 0, next, first: next, dropped: 0, earlier, stored };
        Self { kept: Mutex::new(kept), news: Notify::new() }
    }

    /// The engine says something of the job.
    pub fn say(&self, now_ms: i64, level: Level, text: &str) {
        lock(&self.kept).push(entry(now_ms, level, text));
        self.news.notify_waiters();
    }

    /// A worker says what was logged there.
    pub fn hear(&self, now_ms: i64, worker: &str, logs: proto::Logs) {
        let worker = Some(bounded(worker, NAME_BYTES));
        let mut kept = lock(&self.kept);
        let dropped = logs.dropped.saturating_add(logs.entries.len().saturating_sub(AT_ONCE) as u64);
        if dropped > 0 {
            kept.dropped = kept.dropped.saturating_add(dropped);
            let text = format!("{dropped} messages were dropped on this worker: the job logs more than is kept");
            kept.push(LogEntryView { worker: worker.clone(), ..entry(now_ms, Level::Warn, &text) });
        }
        for said in logs.entries.into_iter().take(AT_ONCE) {
            let level = Level::ALL.get(said.level as usize).copied().unwrap_or(Level::Info);
            kept.push(LogEntryView {
                node: said.subtask.map(|subtask| subtask.node),
                operator: Some(bounded(&said.operator, NAME_BYTES)),
                subtask: said.subtask.map(|subtask| subtask.index),
                worker: worker.clone(),
                ..entry(said.at_ms, level, &said.message)
            });
        }
        drop(kept);
        self.news.notify_waiters();
    }

    /// The newest entries, or the oldest after one, as far as they are kept; at most `limit`. A number that no entry has
    /// yet is that of a coordinator whose clock was ahead: then it is all.
    pub fn read(&self, job: &str, after: Option<u64>, limit: usize, filter: &LogFilter) -> Recent {
        let kept = lock(&self.kept);
        let newest = kept.next.saturating_sub(1);
        let after = after.map(|after| if after > newest { 0 } else { after });
        let wanted = |entry: &&LogEntryView| entry.sequence > after.unwrap_or(0) && filter.takes(entry);
        let mut entries: Vec<LogEntryView> = match after {
            Some(_) => kept.entries.iter().filter(wanted).take(limit).cloned().collect(),
            None => kept.entries.iter().rev().filter(wanted).take(limit).cloned().collect(),
        };
        if after.is_none() {
            entries.reverse();
        }
        entries.iter_mut().for_each(|entry| job.clone_into(&mut entry.job));
        // What was left out for the limit comes next time.
        let cut = after.is_some() && entries.len() == limit;
        let next = entries.last().filter(|_| cut).map_or(newest, |last| last.sequence);
        let oldest = kept.entries.front().map_or(kept.next, |entry| entry.sequence);
        let missed = after.filter(|after| *after + 1 >= kept.first).map_or(0, |after| oldest.saturating_sub(after + 1));
        let is_older = match after {
            Some(after) => after + 1 < oldest,
            None => entries.len() < limit,
        };
        let older = (is_older && (kept.earlier || oldest > kept.first)).then_some((after, oldest));
        let (dropped, not_stored) = (kept.dropped, kept.stored.missing);
        let view = LogsView { entries, next, missed, dropped, not_stored, incomplete: None, over: false };
        Recent { view, older }
    }

    /// What is to be written next, if there is anything new. What has left memory before that is counted.
    pub fn to_write(&self) -> Option<Segment> {
        let mut kept = lock(&self.kept);
        let oldest = kept.entries.front().map_or(kept.next, |entry| entry.sequence);
        let stored = &mut kept.stored;
        if oldest > stored.next {
            stored.missing = stored.missing.saturating_add(oldest - stored.next);
            stored.next = oldest;
        }
        // What is in the storage of the newest segment stays as it is.
        if oldest > stored.open {
            (stored.open, stored.name) = (stored.next, None);
        }
        let (open, new, replaces) = (stored.open, stored.next, stored.name.clone());
        let (mut entries, mut bytes, mut is_full) = (Vec::new(), 0, false);
        for entry in kept.entries.iter().filter(|entry| entry.sequence >= open) {
            bytes += cost(entry);
            entries.push(entry.clone());
            is_full = bytes >= SEGMENT_BYTES || entries.len() >= SEGMENT_ENTRIES;
            if is_full {
                break;
            }
        }
        let has_news = entries.last().is_some_and(|last| last.sequence >= new);
        has_news.then_some(Segment { entries, replaces, is_full })
    }

    /// It was written, under this name.
    pub fn wrote(&self, segment: &Segment, name: String) {
        let Some(last) = segment.entries.last() else { return };
        let mut kept = lock(&self.kept);
        kept.stored.next = last.sequence.saturating_add(1);
        match segment.is_full {
            true => (kept.stored.open, kept.stored.name) = (kept.stored.next, None),
            false => kept.stored.name = Some(name),
        }
    }

    /// Done when there is something that was not there when this was called.
    pub fn news(&self) -> Notified<'_> {
        self.news.notified()
    }

    /// Somebody may wait for what does not come any more.
    pub fn wake(&self) {
        self.news.notify_waiters();
    }

    /// Forgets all entries.
    pub fn clear(&self) {
        let mut kept = lock(&self.kept);
        (kept.entries, kept.bytes) = Default::default();
    }
}

impl Kept {
    fn push(&mut self, mut entry: LogEntryView) {
        entry.sequence = self.next;
        self.next = self.next.saturating_add(1);
        self.bytes += cost(&entry);
        self.entries.push_back(entry);
        while self.entries.len() > ENTRIES || self.bytes > BYTES {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.bytes -= cost(&oldest);
        }
    }
}

impl LogsView {
    /// The same after what the storage has of it. `after`: the number after which was asked.
    pub(crate) fn after(self, after: Option<u64>, older: Archived, limit: usize) -> Self {
        let mut entries = older.entries;
        entries.extend(self.entries);
        let is_cut = after.is_some() && entries.len() >= limit;
        entries.truncate(limit);
        let next = entries.last().filter(|_| is_cut).map_or(self.next, |last| last.sequence);
        let missed = match (after, older.oldest) {
            (Some(after), Some(oldest)) => self.missed.min(oldest.saturating_sub(after + 1)),
            _ => self.missed,
        };
        Self { entries, next, missed, ..self }
    }
}

fn cost(entry: &LogEntryView) -> usize {
    let texts = [Some(&entry.message), entry.operator.as_ref(), entry.worker.as_ref()];
    OVERHEAD + texts.into_iter().flatten().map(String::len).sum::<usize>()
}

fn entry(at_ms: i64, level: Level, text: &str) -> LogEntryView {
    LogEntryView {
        sequence: 0,
        at_ms,
        level: LogLevel::from(level),
        job: String::new(),
        node: None,
        operator: None,
        subtask: None,
        worker: None,
        message: bounded(text, MESSAGE_BYTES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::SubtaskView;

    fn said(texts: &[&str], dropped: u64) -> proto::Logs {
        let entry = |(index, text): (u32, &&str)| proto::LogEntry {
            at_ms: 7,
            level: 9,
            subtask: Some(proto::SubtaskRef { node: 1, index }),
            operator: "map".to_owned(),
            message: (*text).to_owned(),
        };
        proto::Logs { job: "j".to_owned(), entries: (0..).zip(texts).map(entry).collect(), dropped }
    }

    impl JobLog {
        fn view(&self, job: &str, after: Option<u64>, limit: usize, filter: &LogFilter) -> LogsView {
            self.read(job, after, limit, filter).view
        }
    }

    fn messages(view: &LogsView) -> Vec<&str> {
        view.entries.iter().map(|entry| entry.message.as_str()).collect()
    }

    fn vertices() -> Vec<VertexView> {
        let subtask: SubtaskView =
            serde_json::from_str(r#"{"worker": null, "records_in": 0, "records_out": 0, "watermark": null}"#).unwrap();
        let vertex = |uid: &str, name: &str| VertexView {
            uid: uid.to_owned(),
            name: name.to_owned(),
            kind: "transform".to_owned(),
            subtasks: vec![subtask.clone(); 2],
        };
        vec![vertex("in", "in"), vertex("m", "map"), vertex("out", "a/1")]
    }

    #[test]
    fn entries_are_read_from_the_end_or_after_one() {
        let log = JobLog::new(1, false);
        log.say(5, Level::Info, "begins");
        log.hear(6, "w", said(&["a", "b\u{1b}c"], 0));
        let all = log.view("j", None, 10, &LogFilter::default());
        assert_eq!(messages(&all), ["begins", "a", "b\\u{1b}c"]);
        assert_eq!((all.entries[0].sequence, all.next, all.missed), (1_000, 1_002, 0));
        assert_eq!((all.entries[1].worker.as_deref(), all.entries[1].job.as_str()), (Some("w"), "j"));
        assert_eq!(messages(&log.view("j", None, 1, &LogFilter::default())), ["b\\u{1b}c"]);
        let page = log.view("j", Some(0), 2, &LogFilter::default());
        assert_eq!((messages(&page), page.next), (vec!["begins", "a"], 1_001));
        let rest = log.view("j", Some(page.next), 2, &LogFilter::default());
        assert_eq!((messages(&rest), rest.next), (vec!["b\\u{1b}c"], 1_002));
        assert_eq!(messages(&log.view("j", Some(1_002), 2, &LogFilter::default())), [""; 0]);
        assert_eq!(messages(&log.view("j", Some(9_999), 9, &LogFilter::default())).len(), 3, "of another coordinator");
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_missed_is_counted() {
        let log = JobLog::new(1, false);
        (0..ENTRIES + 10).for_each(|n| log.say(0, Level::Info, &n.to_string()));
        let all = log.view("j", Some(999), usize::MAX, &LogFilter::default());
        assert_eq!((all.entries.len(), all.missed), (ENTRIES, 10));
        assert_eq!(log.view("j", Some(0), 1, &LogFilter::default()).missed, 0, "nothing is known of before");
        (0..1_000).for_each(|_| log.say(0, Level::Info, &"x".repeat(1 << 20)));
        assert!(lock(&log.kept).bytes <= BYTES && lock(&log.kept).entries.len() > 50);
        log.clear();
        assert_eq!(log.view("j", None, 9, &LogFilter::default()).entries.len(), 0);
    }

    #[test]
    fn what_a_worker_dropped_is_said() {
        let log = JobLog::new(1, false);
        log.hear(6, "w", said(&["a"], 41));
        let view = log.view("j", None, 9, &LogFilter::default());
        assert!(view.entries[0].message.starts_with("41 messages were dropped"), "{view:?}");
        assert_eq!((view.dropped, view.entries[0].worker.as_deref()), (41, Some("w")));
        log.hear(6, "w", said(&["x"; AT_ONCE + 5], 0));
        assert_eq!(log.view("j", None, 9, &LogFilter::default()).dropped, 46);
    }

    #[test]
    fn tasks_are_named_in_many_ways() {
        let log = JobLog::new(1, false);
        log.say(5, Level::Info, "of the engine");
        log.hear(6, "w", said(&["a", "b"], 0));
        for (task, expected) in [
            ("map", vec!["a", "b"]),
            ("m", vec!["a", "b"]),
            ("1", vec!["a", "b"]),
            ("1/1", vec!["b"]),
            ("map/0", vec!["a"]),
        ] {
            let filter = LogFilter::of_task(task, &vertices()).unwrap();
            assert_eq!(messages(&log.view("j", None, 9, &filter)), expected, "{task}");
            let unknown = LogFilter::of_task(task, &[]);
            let unknown = log.view("j", None, 9, &unknown.unwrap());
            assert!(task == "m" || messages(&unknown) == expected, "{task}, before operators are known");
        }
        assert_eq!(LogFilter::of_task("a/1", &vertices()).unwrap().subtask, None, "that is its name");
        for (task, words) in [("none", "in, map, a/1"), ("7", "no operator '7'"), ("map/2", "from 0 to 1"), ("", "''")]
        {
            let refused = LogFilter::of_task(task, &vertices()).unwrap_err().to_string();
            assert!(refused.contains(words), "{refused}");
        }
    }

    /// However slow the storage is: nothing is held for it.
    #[test]
    fn what_is_gone_before_it_is_written_is_counted() {
        let log = JobLog::new(1, false);
        log.say(0, Level::Info, "first");
        let first = log.to_write().unwrap();
        assert_eq!((first.entries.len(), first.is_full), (1, false));
        log.wrote(&first, "first".to_owned());
        assert_eq!(log.to_write(), None);
        log.say(0, Level::Info, "second");
        assert_eq!(log.to_write().unwrap().replaces.as_deref(), Some("first"));
        (0..ENTRIES + 6).for_each(|n| log.say(0, Level::Info, &n.to_string()));
        let after = log.to_write().unwrap();
        assert_eq!((after.replaces.as_deref(), after.is_full, after.entries.len()), (None, true, SEGMENT_ENTRIES));
        assert_eq!(after.entries[0].message, "6", "the second, and six of those that came then, are gone");
        assert_eq!(log.view("j", None, 1, &LogFilter::default()).not_stored, 7);
        log.wrote(&after, "after".to_owned());
        assert_eq!(log.to_write().unwrap().entries[0].message, (6 + SEGMENT_ENTRIES).to_string());
        log.clear();
        assert_eq!(log.to_write(), None);
        assert_eq!(log.view("j", None, 1, &LogFilter::default()).not_stored, 7 + (ENTRIES - SEGMENT_ENTRIES) as u64);
    }

    #[test]
    fn the_storage_is_asked_only_for_what_it_may_have() {
        let none = LogFilter::default();
        let log = JobLog::new(1, false);
        log.say(0, Level::Info, "x");
        assert_eq!(log.read("j", None, 9, &none).older, None);
        assert_eq!(log.read("j", Some(0), 9, &none).older, None);
        (0..ENTRIES).for_each(|_| log.say(0, Level::Info, "y"));
        assert_eq!(log.read("j", None, 9, &none).older, None, "there are enough");
        assert_eq!(log.read("j", None, ENTRIES + 1, &none).older, Some((None, 1_001)));
        assert_eq!(log.read("j", Some(999), 9, &none).older, Some((Some(999), 1_001)));
        assert_eq!(log.read("j", Some(1_000), 9, &none).older, None);
        let later = JobLog::new(2, true);
        assert_eq!(later.read("j", None, 9, &none).older, Some((None, 2_000)));
        assert_eq!(later.read("j", Some(1_500), 9, &none).older, Some((Some(1_500), 2_000)));
    }
}
