//! A source subtask: polls its reader, gives rows their time, and says how far event time has come.

use std::sync::Arc;

use tidemill_core::connector::{ReaderPoll, SourceReader, Split, SplitId};
use tidemill_core::ids::{Epoch, Port};
use tidemill_core::operator::{DeadLetter, Output};
use tidemill_core::time::{Clock, Timestamp, Watermark};
use tidemill_core::{Batch, Result};

use super::route::Emitter;
use crate::element::{Barrier, Element};
use crate::event_time::{EventTimeReader, SplitWatermarks};
use crate::record::RecordText;
use crate::splits::{Mailbox, News};

/// What a poll came to.
pub enum SourceStep {
    /// Something happened.
    Emitted,
    /// Nothing to read; maybe again at this time.
    Pending(Option<Timestamp>),
    /// The end was sent on.
    Ended,
}

/// What a source froze at a barrier.
pub struct SourceSnapshot {
    /// What is left to read, each split with its watermark.
    pub splits: Vec<(Split, Watermark)>,
    /// Of the source.
    pub watermark: Watermark,
}

pub struct SourceCell {
    reader: Box<dyn SourceReader>,
    mailbox: Arc<Mailbox>,
    event_time: Option<EventTimeReader>,
    text: RecordText,
    splits: SplitWatermarks,
    /// Whether it was told about splits at all; before, it must hold the watermark back.
    informed: bool,
    /// Whether it went on from a checkpoint and has not said yet how far event time had come. Those after it can't know:
    /// its splits may have been another reader's.
    restored: bool,
    idle: bool,
    /// The checkpoint for which the reader was asked last where it stands.
    snapshot_of: Option<Epoch>,
    /// Whether a committed end may be told to the reader: not where a stop lost state that was made of its rows.
    acknowledges: bool,
    stop_loses_state: bool,
}

impl SourceCell {
    pub fn new(
        reader: Box<dyn SourceReader>,
        mailbox: Arc<Mailbox>,
        event_time: Option<EventTimeReader>,
        text: RecordText,
        stop_loses_state: bool,
    ) -> Self {
        Self {
            reader,
            mailbox,
            event_time,
            text,
            splits: SplitWatermarks::default(),
            informed: false,
            restored: false,
            idle: false,
            snapshot_of: None,
            acknowledges: true,
            stop_loses_state,
        }
    }

    /// Reads the news up to the next barrier, if there is one.
    pub fn read_news(&mut self, clock: &dyn Clock) -> Result<Option<Barrier>> {
        while let Some(news) = self.mailbox.take() {
            match news {
                News::Splits(splits) => {
                    self.informed = true;
                    let now = clock.now();
                    splits.iter().for_each(|split| self.splits.add(split.id.clone(), now));
                    if !splits.is_empty() {
                        self.reader.add_splits(splits)?;
                    }
                }
                News::Restored(splits, watermark) => {
                    self.restored = true;
                    let ids = splits.iter().map(|(split, watermark)| (split.id.clone(), *watermark));
                    self.splits.restore(ids, watermark, clock.now());
                    self.reader.add_splits(splits.into_iter().map(|(split, _)| split).collect())?;
                }
                News::NoMore => self.reader.no_more_splits(),
                News::Completed(epoch) => self.reader.checkpoint_completed(epoch)?,
                News::Barrier(barrier) => return Ok(Some(barrier)),
            }
        }
        Ok(None)
    }

    /// How far it has come in event time, if it makes any.
    pub fn watermark(&self) -> Watermark {
        if self.event_time.is_some() { self.splits.watermark() } else { Watermark::MIN }
    }

    /// Where it stands after what was emitted.
    pub fn snapshot(&mut self, epoch: Epoch) -> Result<SourceSnapshot> {
        let splits = self.read_snapshot(epoch)?.into_iter();
        let splits = splits.map(|split| {
            let watermark = self.splits.watermark_of(&split.id);
            (split, watermark)
        });
        Ok(SourceSnapshot { splits: splits.collect(), watermark: self.splits.watermark() })
    }

    pub fn poll(&mut self, stopping: bool, clock: &dyn Clock, out: &mut Emitter<'_>) -> Result<SourceStep> {
        if stopping {
            self.acknowledges = !self.stop_loses_state;
            self.read_snapshot(out.next_epoch())?;
            out.control(&Element::End)?;
            return Ok(SourceStep::Ended);
        }
        let restored = std::mem::take(&mut self.restored).then(|| self.splits.watermark());
        if let Some(watermark) = restored
            && self.event_time.is_some()
            && watermark > Watermark::MIN
            && watermark < Watermark::MAX
        {
            out.watermark(watermark)?;
            return Ok(SourceStep::Emitted);
        }
        match self.reader.poll()? {
            ReaderPoll::Batch { split, batch, rejected, progress } => {
                out.metrics.progress.add(progress);
                rejected.into_iter().try_for_each(|letter| out.dead_letter(letter))?;
                self.rows(&split, batch, clock, out)?;
                self.look_for_idle(clock, out)?;
                Ok(SourceStep::Emitted)
            }
            ReaderPoll::SplitFinished(split) => {
                self.mailbox.split_finished();
                self.raised(|splits| splits.finish(&split), out)?;
                Ok(SourceStep::Emitted)
            }
            ReaderPoll::Pending(until) => {
                if self.look_for_idle(clock, out)? {
                    return Ok(SourceStep::Emitted);
                }
                let idle_after = self.event_time.as_ref().and_then(EventTimeReader::idle_after_ms);
                let next_idle = idle_after.and_then(|ms| self.splits.next_idle(ms));
                Ok(SourceStep::Pending(until.into_iter().chain(next_idle).min()))
            }
            ReaderPoll::Finished => {
                self.read_snapshot(out.next_epoch())?;
                out.watermark(Watermark::MAX)?;
                out.control(&Element::End)?;
                Ok(SourceStep::Ended)
            }
        }
    }

    /// For tests: event time came so far. Whether the source makes event time at all.
    pub fn raise_watermark(&mut self, to: Watermark, out: &mut Emitter<'_>) -> Result<bool> {
        self.raised(|splits| splits.raise(to), out)?;
        Ok(self.event_time.is_some())
    }

    /// Everything is committed, up to the last snapshot.
    pub fn committed(&mut self) -> Result<()> {
        match self.snapshot_of.filter(|_| self.acknowledges) {
            Some(epoch) => self.reader.checkpoint_completed(epoch),
            None => Ok(()),
        }
    }

    fn read_snapshot(&mut self, epoch: Epoch) -> Result<Vec<Split>> {
        self.snapshot_of = Some(epoch);
        self.reader.snapshot(epoch)
    }

    fn rows(&mut self, split: &SplitId, batch: Batch, clock: &dyn Clock, out: &mut Emitter<'_>) -> Result<()> {
        let Some(event_time) = &self.event_time else { return out.emit(Port(0), batch) };
        let timed = event_time.read(batch.clone())?;
        set_malformed_aside(&timed.malformed, &batch, &self.text, out)?;
        // The clock is only needed for idleness, and a read of it costs as much as a small batch's bookkeeping.
        let now = if event_time.idle_after_ms().is_some() { clock.now() } else { Timestamp::MIN };
        if self.idle {
            self.idle = false;
            out.control(&Element::Idle(false))?;
        }
        out.emit(Port(0), timed.batch)?;
        self.raised(|splits| splits.rows(split, timed.watermark, now), out)
    }

    fn raised(
        &mut self,
        change: impl FnOnce(&mut SplitWatermarks) -> Option<Watermark>,
        out: &mut Emitter<'_>,
    ) -> Result<()> {
        match change(&mut self.splits) {
            Some(watermark) if self.event_time.is_some() => out.watermark(watermark),
            _ => Ok(()),
        }
    }

    /// Whether something changed by it.
    fn look_for_idle(&mut self, clock: &dyn Clock, out: &mut Emitter<'_>) -> Result<bool> {
        let Some(event_time) = &self.event_time else { return Ok(false) };
        if let Some(idle_after_ms) = event_time.idle_after_ms() {
            self.raised(|splits| splits.look_for_idle(clock.now(), idle_after_ms), out)?;
        }
        let idle = self.informed && self.splits.all_idle();
        let changed = idle != self.idle;
        if changed {
            self.idle = idle;
            out.control(&Element::Idle(idle))?;
        }
        Ok(changed)
    }
}

/// Rows without event time.
pub fn set_malformed_aside(rows: &[u32], batch: &Batch, text: &RecordText, out: &mut Emitter<'_>) -> Result<()> {
    for &row in rows {
        let DeadLetter { record, reason, .. } = text.letter(batch, row as usize, "it has no event time".to_owned());
        out.dead_letter(DeadLetter { reason, record, timestamp: None })?;
    }
    Ok(())
}
