//! Stateless user code: maps, filters, flat-maps and chains of them, one call per batch.

use std::sync::Arc;

use tidemill_core::ids::InputIndex;
use tidemill_core::metrics::TaskMetrics;
use tidemill_core::operator::{Operator, Output, Progress};
use tidemill_core::plan::NodeKind;
use tidemill_core::time::{Clock, Timestamp, Watermark};
use tidemill_core::types::arrow_schema;
use tidemill_core::user::{CallClock, Effects, UserCode, UserFailure};
use tidemill_core::{Batch, Error, Result};

use super::Build;
use super::emit::PortPlans;
use crate::record::RecordText;
use crate::transaction::{Attempt, Outcome, Rows, Transaction};

/// Makes the operator of a `transform` node.
pub fn build(build: Build<'_>) -> Result<Box<dyn Operator>> {
    let node = build.graph.node(build.id)?;
    let NodeKind::Transform { reads_timestamps } = node.kind else {
        return Err(Error::internal(format!("'{}' is no transform", node.name)));
    };
    let user = build.user.ok_or_else(|| Error::internal(format!("no user code for '{}'", node.name)))?;
    let fields = build.graph.input_fields(node, 0)?;
    let reads = node.inputs.first().map_or(&[][..], |input| &input.reads);
    Ok(Box::new(Transform {
        user,
        reads: reads.iter().map(|&column| column as usize).collect(),
        reads_timestamps,
        ports: PortPlans::new(node)?,
        text: RecordText::new(arrow_schema(fields.iter().map(|f| &f.field))),
        clock: build.context.clock,
        metrics: build.context.metrics,
        watermark: Watermark::MIN,
        transaction: Transaction::default(),
        batch: None,
    }))
}

struct Transform {
    user: Box<dyn UserCode>,
    reads: Vec<usize>,
    reads_timestamps: bool,
    ports: PortPlans,
    text: RecordText,
    clock: Arc<dyn Clock>,
    metrics: Arc<TaskMetrics>,
    watermark: Watermark,
    transaction: Transaction,
    /// What the transaction works on, until it is done.
    batch: Option<Batch>,
}

impl Transform {
    fn go_on(&mut self, out: &mut dyn Output) -> Result<Progress> {
        let Some(batch) = &self.batch else { return Ok(Progress::Done) };
        let now = self.clock.now();
        let mut attempt = Call {
            user: self.user.as_mut(),
            batch,
            rows: None,
            reads: &self.reads,
            reads_timestamps: self.reads_timestamps,
            ports: &self.ports,
            text: &self.text,
            metrics: &self.metrics,
            clock: CallClock { watermark: self.watermark, processing_time: now },
            out,
        };
        if self.transaction.run(now, &mut attempt)? != Outcome::Done {
            return Ok(Progress::More);
        }
        self.batch = None;
        Ok(Progress::Done)
    }
}

impl Operator for Transform {
    fn process(&mut self, _input: InputIndex, batch: Batch, out: &mut dyn Output) -> Result<Progress> {
        self.transaction.start(batch.rows());
        self.batch = Some(batch);
        self.go_on(out)
    }

    fn on_watermark(&mut self, watermark: Watermark, _out: &mut dyn Output) -> Result<Progress> {
        self.watermark = watermark;
        Ok(Progress::Done)
    }

    fn resume(&mut self, out: &mut dyn Output) -> Result<Progress> {
        self.go_on(out)
    }

    fn next_timer(&self) -> Option<Timestamp> {
        self.transaction.retry_at()
    }

    fn close(&mut self) -> Result<()> {
        self.user.close()
    }
}

struct Call<'a> {
    user: &'a mut dyn UserCode,
    batch: &'a Batch,
    /// The rows of the last call, with all columns.
    rows: Option<Batch>,
    reads: &'a [usize],
    reads_timestamps: bool,
    ports: &'a PortPlans,
    text: &'a RecordText,
    metrics: &'a TaskMetrics,
    clock: CallClock,
    out: &'a mut dyn Output,
}

impl Attempt for Call<'_> {
    fn call(&mut self, rows: &Rows, effects: &mut Effects) -> Result<Result<(), UserFailure>> {
        let rows = rows.of(self.batch)?;
        let mut given = rows.project(self.reads)?;
        if !self.reads_timestamps && given.timestamps().is_some() {
            given = given.with_timestamps(None)?;
        }
        self.rows = Some(rows);
        Ok(self.user.transform(self.clock, 0, &given, effects))
    }

    fn apply(&mut self, _rows: &Rows, effects: &mut Effects) -> Result<()> {
        let rows = self.rows.take().ok_or_else(|| Error::internal("effects without a call"))?;
        for emission in effects.emissions.drain(..) {
            let (port, batch) = self.ports.batch(emission, InputIndex(0), &rows)?;
            self.out.emit(port, batch)?;
        }
        Ok(())
    }

    fn set_aside(&mut self, row: usize, reason: String) -> Result<()> {
        self.out.dead_letter(self.text.letter(self.batch, row, reason))
    }

    fn repeated(&mut self) {
        self.metrics.retries.add(1);
    }
}
