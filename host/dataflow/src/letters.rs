//! The dead-letter output of one slot: rows that could not be processed, as rows of one fixed schema.
//!
//! Without a dead-letter sink the first such row fails the job: nothing is lost in silence.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringViewArray, TimestampMillisecondArray, UInt32Array};
use arrow::datatypes::SchemaRef;
use tidemill_core::connector::{Committable, SinkReady, SinkWriter};
use tidemill_core::error::ErrorKind;
use tidemill_core::ids::{Epoch, SubtaskId};
use tidemill_core::operator::DeadLetter;
use tidemill_core::plan::{DataType, Field};
use tidemill_core::types::arrow_schema;
use tidemill_core::{Batch, Error, Result};

/// Letters that wait for the sink. Beyond this everything that could make more waits too.
const MAX_WAITING: usize = 1_024;

/// The columns of dead letters: where it happened, why, the record as text and its event time if it had one.
pub fn schema() -> SchemaRef {
    let field = |name: &str, data_type, nullable| Field::new(name, data_type, nullable);
    arrow_schema(&[
        field("job", DataType::Utf8, false),
        field("operator", DataType::Utf8, false),
        field("subtask", DataType::UInt32, false),
        field("reason", DataType::Utf8, false),
        field("record", DataType::Utf8, false),
        field("event_time", DataType::Timestamp, true),
    ])
}

/// A letter and who set it aside.
type Placed = (Arc<SubtaskId>, DeadLetter);

/// Collects and writes dead letters.
///
/// The cells of a slice pass a checkpoint's barrier one after the other. What a cell sets aside behind the barrier is
/// kept back until all have passed it and what belongs to the checkpoint is prepared.
pub struct Letters {
    writer: Option<Box<dyn SinkWriter>>,
    /// With the checkpoint whose barrier the cell had passed.
    waiting: Vec<(Epoch, Placed)>,
    /// The checkpoint that was prepared last.
    passed: Epoch,
}

impl Letters {
    /// With the slot's writer, if the job has a dead-letter sink; `passed`: the checkpoint from which the job goes on.
    pub fn new(writer: Option<Box<dyn SinkWriter>>, passed: Epoch) -> Self {
        Self { writer, waiting: Vec::new(), passed }
    }

    /// Sets a record aside, for a cell that has passed this checkpoint. Without a sink: the error that fails the job.
    pub fn add(&mut self, from: &Arc<SubtaskId>, passed: Epoch, letter: DeadLetter) -> Result<()> {
        if self.writer.is_none() {
            let message = format!("a record can't be processed: {}\n  record: {}", letter.reason, letter.record);
            return Err(Error::new(ErrorKind::UserCode, message)
                .mend(
                    "Correct the code or the record, or bind [dead-letter] in tidemill.toml to set such records aside.",
                )
                .at(from, "processing records"));
        }
        self.waiting.push((passed, (from.clone(), letter)));
        Ok(())
    }

    /// Whether a cell that has passed this checkpoint should wait. One that is behind does not wait for letters that
    /// are kept back until it has come.
    pub fn is_full(&self, passed: Epoch) -> bool {
        self.waiting.len() >= MAX_WAITING
            && self.waiting.iter().filter(|(tag, _)| *tag <= passed).count() >= MAX_WAITING
    }

    /// Writes what may be written, if the sink has room; whether it did something.
    pub fn flush(&mut self) -> Result<bool> {
        let Some(writer) = &mut self.writer else { return Ok(false) };
        if !self.waiting.iter().any(|(tag, _)| *tag <= self.passed) || writer.ready()? == SinkReady::Full {
            return Ok(false);
        }
        self.write_up_to(self.passed)?;
        Ok(true)
    }

    /// The checkpoint that was prepared last.
    pub fn passed(&self) -> Epoch {
        self.passed
    }

    /// Every cell has passed this checkpoint: what was set aside before, for committing.
    pub fn prepare(&mut self, epoch: Epoch) -> Result<Vec<Committable>> {
        // At most MAX_WAITING and what one call adds, so it is written although the sink may be full.
        self.write_up_to(Epoch(epoch.0.saturating_sub(1)))?;
        self.passed = epoch;
        self.writer.as_mut().map_or_else(|| Ok(Vec::new()), |writer| writer.prepare(epoch))
    }

    /// What the writer of a later attempt must know.
    pub fn snapshot(&mut self) -> Result<Option<Vec<u8>>> {
        self.writer.as_mut().map_or(Ok(None), |writer| writer.snapshot())
    }

    fn write_up_to(&mut self, passed: Epoch) -> Result<()> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let (now, later) = std::mem::take(&mut self.waiting).into_iter().partition(|(tag, _)| *tag <= passed);
        self.waiting = later;
        let now: Vec<(Epoch, Placed)> = now;
        if now.is_empty() { Ok(()) } else { writer.write(&rows(&now)?) }
    }
}

fn rows(letters: &[(Epoch, Placed)]) -> Result<Batch> {
    let text = |of: &dyn Fn(&Placed) -> String| {
        Arc::new(letters.iter().map(|(_, l)| Some(of(l))).collect::<StringViewArray>()) as ArrayRef
    };
    let columns = vec![
        text(&|(from, _)| from.job.clone()),
        text(&|(from, _)| from.operator.clone()),
        Arc::new(letters.iter().map(|(_, (from, _))| from.index.0).collect::<UInt32Array>()),
        text(&|(_, letter)| letter.reason.clone()),
        text(&|(_, letter)| letter.record.clone()),
        Arc::new(letters.iter().map(|(_, (_, l))| l.timestamp.map(|t| t.0)).collect::<TimestampMillisecondArray>()),
    ];
    Batch::new(letters.len(), columns, None)
}
