//! What slots here told their master, and no checkpoint keeps yet: whoever takes the job over is told it again. And what
//! their source readers were given, which a new master can't know.
//!
//! It grows with the checkpoints since the newest complete one, not with rows.

use std::collections::BTreeMap;

use tidemill_rpc::proto::{self, from_worker as says, news};

/// Of one execution.
#[derive(Debug, Default)]
pub struct Held {
    /// In the order in which it was said.
    said: Vec<says::Says>,
    /// By node and index.
    readers: BTreeMap<(u32, u32), Given>,
    /// The newest checkpoint that is complete.
    completed: u64,
}

/// What a reader was given.
#[derive(Debug, Default)]
struct Given {
    /// Splits, each with the epoch of the barrier before it; 0: there was none.
    splits: Vec<(u64, String)>,
    /// The newest.
    barrier: Option<proto::Barrier>,
    /// Whether it was told that there will be no more.
    no_more: bool,
}

impl Held {
    /// A slot says something.
    pub fn said(&mut self, says: &says::Says) {
        let held = match says {
            says::Says::Tasks(tasks) => says::Says::Tasks(proto::Tasks {
                execution: tasks.execution,
                news: tasks.news.iter().map(without_state).collect(),
            }),
            says::Says::Written(written) if written.epoch > self.completed => {
                let (state, in_flight) = Default::default();
                says::Says::Written(proto::Written { state, in_flight, ..written.clone() })
            }
            says::Says::SlotEnded(_) | says::Says::Trouble(_) => says.clone(),
            _ => return,
        };
        self.said.push(held);
    }

    /// A reader is about to be told something. Whether it is new to it: a barrier is said again by who takes over.
    pub fn told(&mut self, reader: (u32, u32), item: &news::Item) -> bool {
        let given = self.readers.entry(reader).or_default();
        let newest = given.barrier.map_or(0, |barrier| barrier.epoch);
        match item {
            news::Item::Splits(found) => {
                given.splits.extend(found.splits.iter().map(|split| (newest, split.id.clone())))
            }
            news::Item::Barrier(barrier) if barrier.epoch <= newest => return false,
            news::Item::Barrier(barrier) => given.barrier = Some(*barrier),
            news::Item::NoMore(_) => given.no_more = true,
            news::Item::Restored(_) | news::Item::Completed(_) => {}
        }
        true
    }

    /// A checkpoint is complete: it keeps what belongs to it.
    pub fn completed(&mut self, epoch: u64) {
        self.completed = epoch;
        self.readers.values_mut().for_each(|given| given.splits.retain(|(after, _)| *after >= epoch));
        self.said.retain_mut(|says| match says {
            says::Says::Tasks(tasks) => {
                tasks.news.retain_mut(|news| {
                    if news.epoch <= epoch {
                        news.prepared = None;
                    }
                    // That a task ended is in no checkpoint.
                    news.epoch > epoch || news.passed.is_none()
                });
                !tasks.news.is_empty()
            }
            says::Says::Written(written) => written.epoch > epoch,
            _ => true,
        });
    }

    /// Everything that was said, in order.
    pub fn all_said(&self) -> impl Iterator<Item = &says::Says> {
        self.said.iter()
    }

    /// What the readers were given. `unfinished`: how many splits each has not read to the end.
    pub fn readers(&self, unfinished: impl Fn((u32, u32)) -> u32) -> Vec<proto::ReaderState> {
        let state = |(reader, given): (&(u32, u32), &Given)| proto::ReaderState {
            reader: Some(proto::SubtaskRef { node: reader.0, index: reader.1 }),
            splits: given.splits.iter().map(|(_, id)| id.clone()).collect(),
            unfinished: unfinished(*reader),
            barrier: given.barrier,
            no_more: given.no_more,
        };
        self.readers.iter().map(state).collect()
    }
}

/// What a task froze is of no use to another master: its checkpoint is given up.
fn without_state(news: &proto::TaskNews) -> proto::TaskNews {
    let passed = news.passed.as_ref().map(|passed| proto::Passed {
        watermark: passed.watermark,
        splits: Vec::new(),
        sink: None,
        writes: passed.writes,
    });
    proto::TaskNews { subtask: news.subtask, epoch: news.epoch, prepared: news.prepared.clone(), passed }
}
