//! Between messages and the engine's types.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidemill_core::connector::{Committable, Split, SplitId};
use tidemill_core::ids::{Epoch, NodeId, SubtaskId, SubtaskIndex};
use tidemill_core::snapshot::SnapshotKind;
use tidemill_core::time::Watermark;
use tidemill_core::{Error, ErrorKind, Result};
use tidemill_dataflow::driver::SlotEvent;
use tidemill_dataflow::element::Barrier;
use tidemill_dataflow::slice::{CommitTarget, Prepared};
use tidemill_dataflow::snapshot::{Frozen, TaskEvent, TaskSnapshot, Written};
use tidemill_dataflow::splits::News;

use crate::proto::{self, from_worker as says, news, slot_ended, to_worker as tells};

/// What a worker says, as a message.
pub fn from_worker(says: says::Says) -> proto::FromWorker {
    proto::FromWorker { says: Some(says) }
}

/// What a worker is told, as a message.
pub fn to_worker(tells: tells::Says) -> proto::ToWorker {
    proto::ToWorker { says: Some(tells) }
}

/// An error as a message.
pub fn failure(error: &Error) -> proto::Failure {
    let kind = match error.kind() {
        ErrorKind::Retry => "retry",
        ErrorKind::Lost => "lost",
        ErrorKind::Fenced => "fenced",
        ErrorKind::Invalid => "invalid",
        ErrorKind::UserCode => "user-code",
        ErrorKind::Limit => "limit",
        ErrorKind::Full => "full",
        ErrorKind::Internal => "internal",
    };
    proto::Failure { kind: kind.to_owned(), text: error.text() }
}

/// And back. An unknown kind is a defect.
pub fn failure_of(failure: proto::Failure) -> Error {
    let kind = match failure.kind.as_str() {
        "retry" => ErrorKind::Retry,
        "lost" => ErrorKind::Lost,
        "fenced" => ErrorKind::Fenced,
        "invalid" => ErrorKind::Invalid,
        "user-code" => ErrorKind::UserCode,
        "limit" => ErrorKind::Limit,
        "full" => ErrorKind::Full,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, failure.text)
}

/// Names a subtask within its job.
pub fn subtask_of(reference: Option<proto::SubtaskRef>) -> Result<(NodeId, SubtaskIndex)> {
    let reference = need(reference, "the subtask")?;
    Ok((NodeId(reference.node), SubtaskIndex(reference.index)))
}

/// A barrier as a message.
pub fn barrier(barrier: Barrier) -> proto::Barrier {
    let portable = barrier.kind == SnapshotKind::Portable;
    proto::Barrier { epoch: barrier.epoch.0, portable, stops: barrier.stops }
}

impl From<proto::Barrier> for Barrier {
    fn from(barrier: proto::Barrier) -> Self {
        let kind = if barrier.portable { SnapshotKind::Portable } else { SnapshotKind::Incremental };
        Self { epoch: Epoch(barrier.epoch), kind, stops: barrier.stops }
    }
}

/// News for a reader as a message.
pub fn news(execution: u64, node: NodeId, index: u32, item: News) -> proto::News {
    let item = match item {
        News::Splits(found) => {
            let splits = found.into_iter().map(|s| split(s, Watermark::MIN)).collect();
            news::Item::Splits(proto::Splits { splits, watermark: Watermark::MIN.0 })
        }
        News::Restored(found, watermark) => {
            let splits = found.into_iter().map(|(s, watermark)| split(s, watermark)).collect();
            news::Item::Restored(proto::Splits { splits, watermark: watermark.0 })
        }
        News::Barrier(of) => news::Item::Barrier(barrier(of)),
        News::NoMore => news::Item::NoMore(true),
        News::Completed(epoch) => news::Item::Completed(epoch.0),
    };
    proto::News { execution, reader: Some(proto::SubtaskRef { node: node.0, index }), item: Some(item) }
}

/// And back.
pub fn news_of(item: Option<news::Item>) -> Result<News> {
    Ok(match need(item, "what is news")? {
        news::Item::Splits(found) => News::Splits(found.splits.into_iter().map(|s| split_of(s).0).collect()),
        news::Item::Restored(found) => {
            News::Restored(found.splits.into_iter().map(split_of).collect(), Watermark(found.watermark))
        }
        news::Item::Barrier(barrier) => News::Barrier(barrier.into()),
        news::Item::NoMore(_) => News::NoMore,
        news::Item::Completed(epoch) => News::Completed(Epoch(epoch)),
    })
}

/// What slots say, as a message.
pub fn slot_event(execution: u64, event: SlotEvent) -> Result<says::Says> {
    let ended = |slot, how: slot_ended::How, failure| {
        says::Says::SlotEnded(proto::SlotEnded { execution, slot, how: how.into(), failure })
    };
    Ok(match event {
        SlotEvent::Tasks(news) => {
            let news = news.into_iter().map(task_news).collect();
            says::Says::Tasks(proto::Tasks { execution, news })
        }
        SlotEvent::Written { subtask, epoch, outcome } => {
            let (failed, written) = match outcome {
                Ok(written) => (None, Some(written)),
                Err(error) => (Some(failure(&error)), None),
            };
            let state = written.as_ref().and_then(|written| written.state.as_ref());
            let in_flight = written.as_ref().and_then(|written| written.in_flight.as_ref());
            let broadcast = written.as_ref().map(|written| &written.broadcast).filter(|states| !states.is_empty());
            says::Says::Written(proto::Written {
                execution,
                subtask: Some(reference(&subtask)),
                epoch: epoch.0,
                failure: failed,
                state: state.map(json).transpose()?.unwrap_or_default(),
                in_flight: in_flight.map(json).transpose()?.unwrap_or_default(),
                broadcast: broadcast.map(json).transpose()?.unwrap_or_default(),
            })
        }
        SlotEvent::Finished(slot) => ended(slot, slot_ended::How::Finished, None),
        SlotEvent::Gone(slot) => ended(slot, slot_ended::How::Gone, None),
        SlotEvent::Failed(slot, error) => ended(slot, slot_ended::How::Failed, Some(failure(&error))),
        SlotEvent::Trouble(error) => says::Says::Trouble(proto::Trouble { execution, failure: Some(failure(&error)) }),
    })
}

/// And back, where it is one: `find` knows a job's tasks, also its dead letters.
pub fn slot_event_of(
    says: says::Says,
    find: impl Fn(NodeId, SubtaskIndex) -> Option<std::sync::Arc<SubtaskId>>,
) -> Result<Option<SlotEvent>> {
    let named = |reference| {
        let (node, index) = subtask_of(reference)?;
        find(node, index).ok_or_else(|| Error::internal(format!("news of {index} of {node}, which is no task")))
    };
    Ok(Some(match says {
        says::Says::Tasks(tasks) => {
            let mut events = Vec::with_capacity(tasks.news.len());
            for news in tasks.news {
                let subtask = named(news.subtask)?;
                let (epoch, prepared) = (Epoch(news.epoch), news.prepared.map(prepared_of));
                events.push(match news.passed {
                    Some(passed) => TaskEvent::Passed(TaskSnapshot {
                        subtask,
                        epoch,
                        watermark: Watermark(passed.watermark),
                        splits: passed.splits.into_iter().map(split_of).collect(),
                        sink: passed.sink.map(Vec::from),
                        prepared,
                        frozen: if passed.writes { Frozen::Taken } else { Frozen::Nothing },
                    }),
                    None => TaskEvent::Ended { subtask, epoch, prepared },
                });
            }
            SlotEvent::Tasks(events)
        }
        says::Says::Written(written) => {
            let outcome = match written.failure {
                Some(failure) => Err(failure_of(failure)),
                None => Ok(Written {
                    state: from_json(&written.state)?,
                    broadcast: from_json(&written.broadcast)?.unwrap_or_default(),
                    in_flight: from_json(&written.in_flight)?,
                }),
            };
            SlotEvent::Written { subtask: named(written.subtask)?, epoch: Epoch(written.epoch), outcome }
        }
        says::Says::SlotEnded(ended) => match ended.how() {
            slot_ended::How::Finished => SlotEvent::Finished(ended.slot),
            slot_ended::How::Gone => SlotEvent::Gone(ended.slot),
            slot_ended::How::Failed => {
                SlotEvent::Failed(ended.slot, failure_of(need(ended.failure, "the failure of a slot")?))
            }
        },
        says::Says::Trouble(trouble) => SlotEvent::Trouble(failure_of(need(trouble.failure, "what the trouble is")?)),
        _ => return Ok(None),
    }))
}

fn task_news(event: TaskEvent) -> proto::TaskNews {
    match event {
        TaskEvent::Passed(TaskSnapshot { subtask, epoch, watermark, splits, sink, prepared, frozen }) => {
            proto::TaskNews {
                subtask: Some(reference(&subtask)),
                epoch: epoch.0,
                prepared: prepared.map(prepared_to),
                passed: Some(proto::Passed {
                    watermark: watermark.0,
                    splits: splits.into_iter().map(|(s, watermark)| split(s, watermark)).collect(),
                    sink: sink.map(Bytes::from),
                    writes: !frozen.is_nothing(),
                }),
            }
        }
        TaskEvent::Ended { subtask, epoch, prepared } => proto::TaskNews {
            subtask: Some(reference(&subtask)),
            epoch: epoch.0,
            prepared: prepared.map(prepared_to),
            passed: None,
        },
    }
}

fn reference(subtask: &SubtaskId) -> proto::SubtaskRef {
    proto::SubtaskRef { node: subtask.node.0, index: subtask.index.0 }
}

fn split(split: Split, watermark: Watermark) -> proto::Split {
    proto::Split { id: split.id.0, description: split.description.into(), watermark: watermark.0 }
}

fn split_of(split: proto::Split) -> (Split, Watermark) {
    (Split { id: SplitId(split.id), description: split.description.into() }, Watermark(split.watermark))
}

fn prepared_to(prepared: Prepared) -> proto::Prepared {
    let sink = match prepared.target {
        CommitTarget::Sink(binding) => Some(binding),
        CommitTarget::DeadLetters => None,
    };
    proto::Prepared { sink, committables: prepared.committables.into_iter().map(|c| c.0.into()).collect() }
}

fn prepared_of(prepared: proto::Prepared) -> Prepared {
    let target = prepared.sink.map_or(CommitTarget::DeadLetters, CommitTarget::Sink);
    Prepared { target, committables: prepared.committables.into_iter().map(|c| Committable(c.into())).collect() }
}

fn need<T>(part: Option<T>, what: &str) -> Result<T> {
    part.ok_or_else(|| Error::internal(format!("a message of another process lacks {what}")))
}

fn json(value: &impl Serialize) -> Result<Bytes> {
    let bytes = serde_json::to_vec(value).map_err(|e| Error::internal(format!("a message: {e}")))?;
    Ok(bytes.into())
}

/// Empty: there is nothing.
fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<Option<T>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let value = serde_json::from_slice(bytes);
    value.map(Some).map_err(|e| Error::internal(format!("a message of another process: {e}")))
}
