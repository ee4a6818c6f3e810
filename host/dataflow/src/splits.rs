//! Finding splits and handing them to readers, off the slots.
//!
//! One [`Enumeration`] per source node; whoever drives the job asks it when it is due. New splits go to the readers
//! that have fewest. Every reader hears of the first discovery, also when it gets nothing, so that a reader without
//! splits knows that it need not hold the watermark back.
//!
//! What was found is the enumerator's to remember, within its own bounds. Here only those splits are known that somebody
//! may still be reading, so that none is read by two at once: memory does not grow with what a job has read.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tidemill_core::Result;
use tidemill_core::connector::{Split, SplitEnumerator, SplitId, Waker};
use tidemill_core::ids::{Epoch, NodeId};
use tidemill_core::time::{Timestamp, Watermark};

use crate::element::Barrier;

/// News for a reader.
#[derive(Debug)]
pub enum News {
    /// Splits to read; at first maybe none.
    Splits(Vec<Split>),
    /// Splits to read on, each with its watermark, and the reader's watermark.
    Restored(Vec<(Split, Watermark)>, Watermark),
    /// A checkpoint begins here: what was said before belongs to it.
    Barrier(Barrier),
    /// There will be no more.
    NoMore,
    /// What this checkpoint covers is committed.
    Completed(Epoch),
}

/// Where a reader gets its news.
#[derive(Debug)]
pub struct Mailbox {
    news: Mutex<VecDeque<News>>,
    filled: AtomicBool,
    /// Splits that were sent and did not end.
    unfinished: AtomicUsize,
    /// Splits that ended since somebody asked.
    finished: AtomicUsize,
    /// Whether the reader was told that there will be no more.
    closed: AtomicBool,
    waker: Waker,
}

impl Mailbox {
    /// For a reader whose slot is woken so.
    pub fn new(waker: Waker) -> Self {
        let (news, filled, unfinished, finished, closed) = Default::default();
        Self { news, filled, unfinished, finished, closed, waker }
    }

    /// The reader has so many splits already, at the other end of what this mailbox stands in for.
    pub fn has_splits(&self, count: usize) {
        self.unfinished.fetch_add(count, Ordering::Relaxed);
    }

    /// The reader was told already that there will be no more splits.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Whether that was said.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// How many splits were sent and did not end.
    pub fn unfinished(&self) -> usize {
        self.unfinished.load(Ordering::Relaxed)
    }

    /// The next news.
    pub fn take(&self) -> Option<News> {
        if self.is_empty() {
            return None;
        }
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        let next = news.pop_front();
        self.filled.store(!news.is_empty(), Ordering::Release);
        next
    }

    /// A split ended.
    pub fn split_finished(&self) {
        self.splits_finished(1);
        self.finished.fetch_add(1, Ordering::Relaxed);
    }

    /// So many splits ended, at the other end of what this mailbox stands in for.
    pub fn splits_finished(&self, count: usize) {
        let less = |unfinished: usize| Some(unfinished.saturating_sub(count));
        _ = self.unfinished.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// How many splits ended since the last call.
    pub fn take_finished(&self) -> usize {
        self.finished.swap(0, Ordering::Relaxed)
    }

    /// Whether there are news.
    pub fn is_empty(&self) -> bool {
        !self.filled.load(Ordering::Acquire)
    }

    /// Says something to the reader.
    pub fn send(&self, item: News) {
        let splits = match &item {
            News::Splits(splits) => splits.len(),
            News::Restored(splits, _) => splits.len(),
            News::NoMore => {
                self.close();
                0
            }
            News::Barrier(_) | News::Completed(_) => 0,
        };
        self.unfinished.fetch_add(splits, Ordering::Relaxed);
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        news.push_back(item);
        self.filled.store(true, Ordering::Release);
        drop(news);
        self.waker.wake();
    }
}

/// Which splits of a source node were found, for a checkpoint.
#[derive(Clone, Debug)]
pub struct Found {
    /// By the enumerator, in the connector's encoding.
    pub snapshot: Vec<u8>,
    /// Those that readers have and that the enumerator has not found (again).
    pub given: Vec<String>,
}

/// Finds the splits of one source node.
pub struct Enumeration {
    node: NodeId,
    enumerator: Box<dyn SplitEnumerator>,
    readers: Vec<Arc<Mailbox>>,
    /// Those that were given to readers and may not be at their end, each with the epoch of the barrier after which that
    /// was. Bounded by what is unfinished and what was found since the newest complete checkpoint.
    unfinished: HashMap<SplitId, Epoch>,
    /// Those that this enumerator has not found: another one gave them to the readers. Bounded by what that one had found
    /// since the newest complete checkpoint, for each time that the job was taken over.
    given: BTreeSet<SplitId>,
    /// Of the newest barrier that was sent.
    barrier: Epoch,
    first: bool,
    /// `None`: there is nothing more to find.
    due: Option<Timestamp>,
}

impl Enumeration {
    /// For these readers. `given`: splits that they have and of which the enumerator may not know.
    pub fn new(
        node: NodeId,
        enumerator: Box<dyn SplitEnumerator>,
        readers: Vec<Arc<Mailbox>>,
        given: BTreeSet<SplitId>,
    ) -> Self {
        let (unfinished, barrier, due) = (HashMap::new(), Epoch(0), Some(Timestamp::MIN));
        Self { node, enumerator, readers, unfinished, given, barrier, first: true, due }
    }

    /// Whose splits.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Begins a checkpoint: what was found up to now, which is what the readers have been told before the barrier.
    pub fn checkpoint(&mut self, barrier: Barrier) -> Result<Found> {
        let found = self.snapshot()?;
        self.barrier = barrier.epoch;
        self.readers.iter().for_each(|reader| reader.send(News::Barrier(barrier)));
        Ok(found)
    }

    /// What was found up to now, for a checkpoint that needs no barrier since every reader has ended.
    pub fn snapshot(&self) -> Result<Found> {
        let given = self.given.iter().map(|split| split.0.clone()).collect();
        Ok(Found { snapshot: self.enumerator.snapshot()?, given })
    }

    /// A checkpoint is committed: tells the readers. `unfinished`: what they had at its barrier and had not read to the end.
    /// Whatever else they were given before it is read.
    pub fn completed(&mut self, epoch: Epoch, unfinished: impl Iterator<Item = SplitId>) {
        self.unfinished.retain(|_, after| *after >= epoch);
        for split in unfinished {
            self.unfinished.entry(split).or_insert(epoch);
        }
        self.readers.iter().for_each(|reader| reader.send(News::Completed(epoch)));
    }

    /// When to call `discover`; `None`: never again.
    pub fn due(&self) -> Option<Timestamp> {
        self.due
    }

    /// Looks for splits and hands them out. May block.
    pub fn discover(&mut self, now: Timestamp) -> Result<()> {
        let found = self.enumerator.discover()?;
        // A job without checkpoints learns only so what was read.
        if self.readers.iter().all(|reader| reader.unfinished() == 0) {
            self.unfinished.clear();
        }
        let mut shares: Vec<Vec<Split>> = self.readers.iter().map(|_| Vec::new()).collect();
        for split in found.splits {
            let was_given = self.given.remove(&split.id);
            match self.unfinished.entry(split.id.clone()) {
                Entry::Occupied(_) => continue,
                Entry::Vacant(place) => _ = place.insert(self.barrier),
            }
            if was_given {
                continue;
            }
            let open = self.readers.iter().zip(&mut shares).filter(|(reader, _)| !reader.is_closed());
            // If all are closed, they have got everything that there was then.
            if let Some((_, share)) = open.min_by_key(|(reader, share)| reader.unfinished() + share.len()) {
                share.push(split);
            }
        }
        // Those of another master may be at their end.
        for (reader, share) in self.readers.iter().zip(shares).filter(|(reader, _)| !reader.is_closed()) {
            if self.first || !share.is_empty() {
                reader.send(News::Splits(share));
            }
            if found.again_after_ms.is_none() {
                reader.send(News::NoMore);
            }
        }
        self.first = false;
        let after = |ms| Timestamp(now.0.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX)));
        self.due = found.again_after_ms.map(after);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tidemill_core::connector::Discovery;
    use tidemill_core::snapshot::SnapshotKind;

    use super::*;

    /// Finds one split at each look: 0, 1, 2.
    struct OneByOne(u8);

    impl SplitEnumerator for OneByOne {
        fn discover(&mut self) -> Result<Discovery> {
            let splits = vec![Split { id: SplitId(self.0.to_string()), description: Vec::new() }];
            self.0 += 1;
            Ok(Discovery { splits, again_after_ms: (self.0 < 3).then_some(1) })
        }

        fn snapshot(&self) -> Result<Vec<u8>> {
            Ok(vec![self.0])
        }

        fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
            self.0 = snapshot[0];
            Ok(())
        }
    }

    /// Finds what it is told, again and again.
    struct Told(Arc<Mutex<Vec<String>>>);

    impl SplitEnumerator for Told {
        fn discover(&mut self) -> Result<Discovery> {
            let split = |id: &String| Split { id: SplitId(id.clone()), description: Vec::new() };
            Ok(Discovery { splits: self.0.lock().unwrap().iter().map(split).collect(), again_after_ms: Some(1) })
        }

        fn snapshot(&self) -> Result<Vec<u8>> {
            Ok(Vec::new())
        }

        fn restore(&mut self, _snapshot: &[u8]) -> Result<()> {
            Ok(())
        }
    }

    fn barrier(epoch: u64) -> Barrier {
        Barrier { epoch: Epoch(epoch), kind: SnapshotKind::Incremental, stops: false }
    }

    fn told(reader: &Mailbox) -> String {
        let mut all = Vec::new();
        while let Some(item) = reader.take() {
            match item {
                News::Splits(splits) => all.extend(splits.into_iter().map(|split| split.id.0)),
                News::NoMore => all.push("no more".to_owned()),
                _ => {}
            }
        }
        all.join(" ")
    }

    fn readers() -> Vec<Arc<Mailbox>> {
        (0..2).map(|_| Arc::new(Mailbox::new(Waker::new(|| ())))).collect()
    }

    /// Splits that another enumerator had found were in the readers of a checkpoint and not among those that were found,
    /// until this one found them again; whoever went on from there gave them out twice.
    #[test]
    fn what_was_given_before_is_kept_until_it_is_found_again_and_not_given_again() {
        let (readers, given) = (readers(), ["0", "1"].map(|id| SplitId(id.to_owned())));
        let mut all = Enumeration::new(NodeId(0), Box::new(OneByOne(0)), readers.clone(), given.into_iter().collect());
        let found = |all: &Enumeration| (all.snapshot().unwrap().snapshot[0], all.snapshot().unwrap().given.join(" "));
        assert_eq!(found(&all), (0, "0 1".to_owned()));
        all.discover(Timestamp(0)).unwrap();
        assert_eq!(found(&all), (1, "1".to_owned()));
        all.discover(Timestamp(1)).unwrap();
        all.discover(Timestamp(2)).unwrap();
        assert_eq!(found(&all), (3, String::new()));
        assert_eq!((told(&readers[0]), told(&readers[1])), ("2 no more".to_owned(), "no more".to_owned()));
    }

    /// A split whose news was lost was given to a reader at its end by the master that took over, since it had least.
    #[test]
    fn a_reader_that_was_told_that_there_is_no_more_is_given_nothing() {
        let readers = readers();
        readers[0].close();
        readers[1].has_splits(5);
        let mut all = Enumeration::new(NodeId(0), Box::new(OneByOne(0)), readers.clone(), BTreeSet::new());
        (0..3).for_each(|at| all.discover(Timestamp(at)).unwrap());
        assert_eq!((told(&readers[0]), told(&readers[1])), (String::new(), "0 1 2 no more".to_owned()));
    }

    /// The names of all splits that were ever found were kept for as long as the process ran.
    #[test]
    fn what_was_read_is_not_kept_however_many_splits_there_were_and_whether_there_are_checkpoints_or_not() {
        for checkpoints in [true, false] {
            let (readers, found) = (readers(), Arc::<Mutex<Vec<String>>>::default());
            let mut all = Enumeration::new(NodeId(0), Box::new(Told(found.clone())), readers.clone(), BTreeSet::new());
            let mut reading: VecDeque<SplitId> = VecDeque::new();
            for round in 1..1_000_u64 {
                let new: Vec<String> = (0..10).map(|n| format!("{round}-{n}")).collect();
                found.lock().unwrap().clone_from(&new);
                all.discover(Timestamp(0)).unwrap();
                let given = readers.iter().map(|reader| told(reader)).collect::<Vec<_>>().join(" ");
                assert_eq!(given.split_whitespace().count(), 10, "round {round}");
                reading.extend(new.into_iter().map(SplitId));
                // With checkpoints, somebody always has something to read.
                let ended = reading.len() - if checkpoints { 5 } else { 0 };
                reading.drain(..ended);
                readers.iter().for_each(|reader| reader.splits_finished(reader.unfinished()));
                if checkpoints {
                    readers[0].has_splits(reading.len());
                    all.checkpoint(barrier(round)).unwrap();
                    all.completed(Epoch(round), reading.iter().cloned());
                }
                assert!(all.unfinished.len() <= 25 && all.given.is_empty(), "{}", all.unfinished.len());
            }
        }
    }

    #[test]
    fn a_split_that_may_be_unfinished_is_not_given_again_and_one_that_was_read_is_new() {
        let (readers, found) = (readers(), Arc::new(Mutex::new(vec!["a".to_owned(), "b".to_owned()])));
        let mut all = Enumeration::new(NodeId(0), Box::new(Told(found.clone())), readers.clone(), BTreeSet::new());
        let given = |all: &mut Enumeration| {
            all.discover(Timestamp(0)).unwrap();
            let given = readers.iter().map(|reader| told(reader)).collect::<Vec<_>>().join(" ");
            let mut given: Vec<&str> = given.split_whitespace().collect();
            given.sort_unstable();
            given.join(" ")
        };
        assert_eq!(given(&mut all), "a b");
        all.checkpoint(barrier(1)).unwrap();
        found.lock().unwrap().push("c".to_owned());
        assert_eq!(given(&mut all), "c");
        // `c` came after the barrier, so that checkpoint says nothing of it.
        all.completed(Epoch(1), ["b"].into_iter().map(|id| SplitId(id.to_owned())));
        assert_eq!(given(&mut all), "a");
        all.checkpoint(barrier(2)).unwrap();
        // A checkpoint that is given up says nothing either.
        all.checkpoint(barrier(3)).unwrap();
        assert_eq!(given(&mut all), "");
        all.completed(Epoch(3), ["b", "c"].into_iter().map(|id| SplitId(id.to_owned())));
        assert_eq!(given(&mut all), "a");
        all.checkpoint(barrier(4)).unwrap();
        all.completed(Epoch(4), std::iter::empty());
        assert_eq!(given(&mut all), "a b c");
    }
}
