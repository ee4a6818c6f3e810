//! Which files were read or are being read: what a checkpoint keeps of the enumerator.
//!
//! Names are remembered up to a limit. Beyond it, first those are forgotten whose files are gone. If that is not enough,
//! the files that were modified longest ago are forgotten, and from then on whatever was modified no later counts as
//! read. So what is kept is bounded, and the price is known: in a folder with more files than the limit, a new file with
//! an old modification time is passed over. To read it twice would be no better, and could not be told from it.
//!
//! Invariant: a file that is there and was reported is never reported again while its modification time stays.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::find::Found;

/// Files modified within this time of the newest one are never forgotten while they are there: copying many files takes
/// a while, file systems round times, and clocks of machines differ. One hour.
const NEVER_FORGOTTEN_NS: i64 = 3_600_000_000_000;

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, from = "Kept")]
pub(crate) struct Seen {
    /// When each was modified, in nanoseconds since 1970.
    files: BTreeMap<PathBuf, i64>,
    /// What was modified then or earlier counts as read.
    forgotten_to_ns: Option<i64>,
}

/// As checkpoints have it. Earlier ones have names only, all of them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    files: Files,
    #[serde(default)]
    forgotten_to_ns: Option<i64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Files {
    Modified(BTreeMap<PathBuf, i64>),
    Names(BTreeSet<PathBuf>),
}

impl From<Kept> for Seen {
    fn from(kept: Kept) -> Self {
        let files = match kept.files {
            Files::Modified(files) => files,
            // The times are put in when the files are seen next; those that are gone are forgotten first.
            Files::Names(names) => names.into_iter().map(|name| (name, i64::MIN)).collect(),
        };
        Self { files, forgotten_to_ns: kept.forgotten_to_ns }
    }
}

impl Seen {
    /// The files among those there now that were not seen before. They have been seen then.
    pub(crate) fn update(&mut self, there: Vec<Found>, limit: usize) -> Vec<Found> {
        let mut new = Vec::new();
        let mut names = HashSet::with_capacity(there.len());
        for file in there {
            names.insert(file.path.clone());
            let known = self.files.contains_key(&file.path);
            if !known && self.forgotten_to_ns.is_some_and(|to| file.modified_ns <= to) {
                continue;
            }
            self.files.insert(file.path.clone(), file.modified_ns);
            if !known {
                new.push(file);
            }
        }
        self.forget_gone(&names, limit);
        self.forget_old(limit);
        new
    }

    /// Forgets files that are not there any more, the oldest first, until there are no more than the limit.
    fn forget_gone(&mut self, there: &HashSet<PathBuf>, limit: usize) {
        let Some(over) = self.over(limit) else { return };
        let is_gone = |path: &Path| !there.contains(path);
        let mut gone: Vec<(i64, PathBuf)> =
            self.files.iter().filter(|(path, _)| is_gone(path)).map(|(path, ns)| (*ns, path.clone())).collect();
        gone.sort();
        gone.iter().take(over).for_each(|(_, path)| _ = self.files.remove(path));
    }

    /// Forgets files that were modified longest ago, and remembers up to when.
    fn forget_old(&mut self, limit: usize) {
        let (Some(over), Some(newest)) = (self.over(limit), self.files.values().max()) else { return };
        let latest = newest.saturating_sub(NEVER_FORGOTTEN_NS);
        let mut old: Vec<i64> = self.files.values().copied().filter(|ns| *ns <= latest).collect();
        old.sort_unstable();
        let Some(to) = old.get(over.min(old.len()).saturating_sub(1)).copied() else { return };
        self.files.retain(|_, ns| *ns > to);
        self.forgotten_to_ns = self.forgotten_to_ns.max(Some(to));
    }

    /// How many there are too many.
    fn over(&self, limit: usize) -> Option<usize> {
        self.files.len().checked_sub(limit).filter(|over| *over > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = NEVER_FORGOTTEN_NS;

    fn file(name: &str, modified_ns: i64) -> Found {
        Found { path: PathBuf::from(name), bytes: 1, modified_ns }
    }

    fn update(seen: &mut Seen, there: &[(&str, i64)], limit: usize) -> Vec<String> {
        // As after a restart each time.
        *seen = serde_json::from_slice(&serde_json::to_vec(seen).unwrap()).unwrap();
        let new = seen.update(there.iter().map(|(name, ns)| file(name, *ns)).collect(), limit);
        new.iter().map(|f| f.path.display().to_string()).collect()
    }

    #[test]
    fn each_file_is_reported_once_while_there_are_few() {
        let mut seen = Seen::default();
        assert_eq!(update(&mut seen, &[("a", 5 * HOUR), ("b", 0)], 3), ["a", "b"]);
        // An old one comes late, one is gone, one was touched.
        assert_eq!(update(&mut seen, &[("a", 6 * HOUR), ("c", -HOUR)], 3), ["c"]);
        assert_eq!(update(&mut seen, &[("a", 6 * HOUR), ("b", 0), ("c", -HOUR)], 3), [""; 0], "b is back");
    }

    #[test]
    fn what_is_kept_stays_bounded_however_many_files_come_and_go() {
        let mut seen = Seen::default();
        for n in 0..1_000_i64 {
            let (before, now) = (format!("f{}", n - 1), format!("f{n}"));
            let expected = if n == 0 { vec![before.clone(), now.clone()] } else { vec![now.clone()] };
            assert_eq!(update(&mut seen, &[(&before, (n - 1) * HOUR), (&now, n * HOUR)], 10), expected);
            assert!(seen.files.len() <= 10);
        }
        assert_eq!(seen.forgotten_to_ns, None, "none was forgotten that is there");
    }

    #[test]
    fn files_that_stay_are_forgotten_by_their_age_and_never_read_again() {
        let mut seen = Seen::default();
        let names: Vec<String> = (0..100).map(|n| format!("f{n:02}")).collect();
        let all: Vec<(&str, i64)> = names.iter().zip(0..).map(|(name, n)| (name.as_str(), n * HOUR)).collect();
        let mut reported = Vec::new();
        for end in 1..=all.len() {
            reported.extend(update(&mut seen, &all[..end], 10));
            assert!(seen.files.len() <= 10);
        }
        assert_eq!(reported, names);
        assert_eq!(seen.forgotten_to_ns, Some(89 * HOUR));
        // The documented price: new, but older than what was forgotten. And the one that is not.
        let mut more = all.clone();
        more.extend([("late", 89 * HOUR), ("new", 89 * HOUR + 1)]);
        assert_eq!(update(&mut seen, &more, 10), ["new"]);
    }

    /// A look falls into the middle of a copy whose files all have one time: none of the rest may be lost.
    #[test]
    fn files_as_new_as_the_newest_are_kept_beyond_the_limit() {
        let mut seen = Seen::default();
        assert_eq!(update(&mut seen, &[("a", HOUR), ("b", HOUR), ("c", HOUR)], 1).len(), 3);
        let there = [("a", HOUR), ("b", HOUR), ("c", HOUR), ("d", HOUR), ("e", 1)];
        assert_eq!(update(&mut seen, &there, 1), ["d", "e"]);
        assert_eq!(seen.files.len(), 5);
        // Later they are old like others.
        let there = [("a", HOUR), ("b", HOUR), ("c", HOUR), ("d", HOUR), ("e", 1), ("f", 3 * HOUR)];
        assert_eq!(update(&mut seen, &there, 1), ["f"]);
        assert_eq!((seen.files.len(), seen.forgotten_to_ns), (1, Some(HOUR)));
        assert_eq!(update(&mut seen, &there, 1), [""; 0]);
    }

    /// Checkpoints of before had names only.
    #[test]
    fn names_without_times_are_gone_on_with() {
        let mut seen: Seen = serde_json::from_str(r#"{"files":["a","b","gone"]}"#).unwrap();
        assert_eq!(update(&mut seen, &[("a", HOUR), ("b", 5 * HOUR), ("c", 9 * HOUR)], 2), ["c"]);
        assert_eq!((seen.files.len(), seen.forgotten_to_ns), (2, Some(HOUR)));
        assert!(serde_json::from_str::<Seen>(r#"{"files":["a"],"more":1}"#).is_err());
    }
}
