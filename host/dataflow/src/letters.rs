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
pub struct Letters {
    writer: Option<Box<dyn SinkWriter>>,
    waiting: Vec<Placed>,
}

impl Letters {
    /// With the slot's writer, if the job has a dead-letter sink.
    pub fn new(writer: Option<Box<dyn SinkWriter>>) -> Self {
        Self { writer, waiting: Vec::new() }
    }

    /// Sets a record aside. Without a sink: the error that fails the job.
    pub fn add(&mut self, from: &Arc<SubtaskId>, letter: DeadLetter) -> Result<()> {
        if self.writer.is_none() {
            let message = format!("a record can't be processed: {}\n  record: {}", letter.reason, letter.record);
            return Err(Error::new(ErrorKind::UserCode, message)
                .mend(
                    "Correct the code or the record, or bind [dead-letter] in tidemill.toml to set such records aside.",
                )
                .at(from, "processing records"));
        }
        self.waiting.push((from.clone(), letter));
        Ok(())
    }

    /// Whether what could make more should wait.
    pub fn is_full(&self) -> bool {
        self.waiting.len() >= MAX_WAITING
    }

    /// Writes what waits, if the sink has room; whether it did something.
    pub fn flush(&mut self) -> Result<bool> {
        let Some(writer) = self.writer.as_mut().filter(|_| !self.waiting.is_empty()) else { return Ok(false) };
        if writer.ready()? == SinkReady::Full {
            return Ok(false);
        }
        writer.write(&rows(&self.waiting)?)?;
        self.waiting.clear();
        Ok(true)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What was written, for committing.
    pub fn prepare(&mut self, epoch: Epoch) -> Result<Vec<Committable>> {
        self.writer.as_mut().map_or_else(|| Ok(Vec::new()), |writer| writer.prepare(epoch))
    }
}

fn rows(letters: &[Placed]) -> Result<Batch> {
    let text = |of: &dyn Fn(&Placed) -> String| {
        Arc::new(letters.iter().map(|l| Some(of(l))).collect::<StringViewArray>()) as ArrayRef
    };
    let columns = vec![
        text(&|(from, _)| from.job.clone()),
        text(&|(from, _)| from.operator.clone()),
        Arc::new(letters.iter().map(|(from, _)| from.index.0).collect::<UInt32Array>()),
        text(&|(_, letter)| letter.reason.clone()),
        text(&|(_, letter)| letter.record.clone()),
        Arc::new(letters.iter().map(|(_, l)| l.timestamp.map(|t| t.0)).collect::<TimestampMillisecondArray>()),
    ];
    Batch::new(letters.len(), columns, None)
}
