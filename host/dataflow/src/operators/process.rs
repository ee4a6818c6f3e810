//! User code with keyed state and timers, and with broadcast state beside it; or without a key, with broadcast state and
//! operator lists.
//!
//! Each batch, and each set of due timers, is one transaction: the keys are made resident, their states travel with the
//! call, and what it changes takes effect when it succeeded. Timers fire between batches: event-time timers when the
//! watermark reaches them, processing-time timers when the clock does.
//!
//! Timers of one call have different keys. So what a timer changes is seen by the key's next one, whether it is set
//! before it, at the same time, or deleted.
//!
//! Invariant: between two calls, the table has entries only for keys that have some state, which may be over by now.

mod broadcast;
mod call;
mod lists;
mod numbering;
mod states;
mod unkeyed;

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::buffer::ScalarBuffer;
use tidemill_core::graph::{key_of, keyed_input};
use tidemill_core::ids::InputIndex;
use tidemill_core::keys::Keys;
use tidemill_core::metrics::TaskMetrics;
use tidemill_core::operator::{Operator, Output, Progress};
use tidemill_core::plan::{Exchange, NodeKind, Origin};
use tidemill_core::snapshot::{SnapshotKind, StateSnapshot, UnkeyedSnapshot};
use tidemill_core::state::{Namespace, Slot, StateBackend};
use tidemill_core::time::{Clock, Timestamp, Watermark};
use tidemill_core::types::arrow_schema;
use tidemill_core::user::{CallClock, TimeDomain, UserCode};
use tidemill_core::{Batch, Error, ErrorKind, Result};
use tidemill_state::MemoryBackend;

use self::call::Call;
use self::numbering::Numbering;
use self::states::States;
use self::unkeyed::UnkeyedStates;
use super::Build;
use super::emit::PortPlans;
use crate::record::RecordText;
use crate::transaction::{Outcome, Transaction};

/// Timer calls in one step; then others have their turn, even if nothing was emitted.
const CALLS_PER_STEP: usize = 64;
/// So many timer calls may each set another timer that is due at once, without time getting on, before it is taken for
/// an endless loop. Longer chains than seconds of sandbox time are no sane job.
const MAX_CHAINED_CALLS: u32 = 1_000_000;

/// Makes the operator of a `process` node.
pub fn build(build: Build<'_>) -> Result<Box<dyn Operator>> {
    let node = build.graph.node(build.id)?;
    let NodeKind::Process { reads_timestamps, states } = &node.kind else {
        return Err(Error::internal(format!("'{}' is no process function", node.name)));
    };
    let codec = build.graph.key_codec(node, keyed_input(node).unwrap_or_default())?;
    let spec = build.state_spec(codec)?;
    let unkeyed = UnkeyedStates::declare(states, &build.begin, &build.context, &spec)?;
    // Without a key there is nothing in it, and nothing to be gone on from.
    let is_keyed = keyed_input(node).is_some();
    let state = if is_keyed { build.backend.open(spec) } else { MemoryBackend::new().open(spec) };
    let user = build.user.ok_or_else(|| Error::internal(format!("no user code for '{}'", node.name)))?;
    let keyed: Vec<_> = states.iter().filter(|state| unkeyed::is_keyed(state)).cloned().collect();
    let states = States::declare(state?, &keyed, build.context.clock.now().0)?;
    let mut inputs = Vec::with_capacity(node.inputs.len());
    let mut key_fields = Vec::new();
    for (index, input) in node.inputs.iter().enumerate() {
        let fields = build.graph.input_fields(node, index)?;
        let key = key_of(&input.exchange);
        if keyed_input(node) == Some(index) {
            let key = key.unwrap_or_default();
            key_fields = key.iter().filter_map(|&k| fields.get(k as usize)).map(|f| f.field.clone()).collect();
        }
        inputs.push(InputPlan {
            key: key.map(|key| key.iter().map(|&column| column as usize).collect()),
            is_broadcast: input.exchange == Exchange::Broadcast,
            reads: input.reads.iter().map(|&column| column as usize).collect(),
            text: RecordText::new(arrow_schema(fields.iter().map(|f| &f.field))),
        });
    }
    Ok(Box::new(Process {
        engine: Engine {
            user,
            is_keyed,
            states,
            unkeyed,
            inputs,
            key_text: RecordText::new(arrow_schema(&key_fields)),
            ports: PortPlans::new(node)?,
            copying: node.outputs.iter().map(|o| o.fields.iter().any(|f| f.origin != Origin::New)).collect(),
            reads_timestamps: *reads_timestamps,
            metrics: build.context.metrics,
            numbering: Numbering::default(),
            values: Vec::new(),
            may_be_vacant: false,
            set_due: false,
        },
        clock: build.context.clock,
        batch_rows: build.context.batch_rows,
        timers_at_once: build.context.batch_rows,
        watermark: build.begin.watermark,
        latest: None,
        end: None,
        transaction: Transaction::default(),
        work: None,
        firing: None,
        spare_slots: Vec::new(),
    }))
}

/// How an input's rows become calls.
struct InputPlan {
    /// `None`: its rows have no key.
    key: Option<Vec<usize>>,
    is_broadcast: bool,
    reads: Vec<usize>,
    text: RecordText,
}

/// What calls need, apart from the rows themselves.
struct Engine {
    user: Box<dyn UserCode>,
    is_keyed: bool,
    states: States,
    unkeyed: UnkeyedStates,
    inputs: Vec<InputPlan>,
    key_text: RecordText,
    ports: PortPlans,
    /// Which ports copy columns of rows, so that timers, which have none, can't emit to them.
    copying: Vec<bool>,
    reads_timestamps: bool,
    metrics: Arc<TaskMetrics>,
    /// The distinct keys of the last call.
    numbering: Numbering,
    /// Their states.
    values: Vec<ArrayRef>,
    /// Whether the work in hand may leave entries without any value.
    may_be_vacant: bool,
    /// Whether the work in hand set an event-time timer that is due already.
    set_due: bool,
}

/// Rows or timers in hand, until their transaction is done.
struct Work {
    what: What,
    /// What emissions derive from: the rows with all columns, or the timers' times.
    rows: Batch,
    /// Of each row, or of none: rows of an input that is not hashed have no key.
    keys: Keys,
    slots: Vec<Slot>,
}

enum What {
    Rows {
        input: InputIndex,
    },
    Timers {
        domain: TimeDomain,
        /// The keys' columns, with the times.
        keys: Batch,
    },
    /// The end of the input, told to code with operator lists that hold something: in the contract it is a timer that has no
    /// key. What is emitted has its time, or none where the stream has no event time.
    End {
        time: ScalarBuffer<i64>,
    },
}

/// What the timer of the end says in a stream without event time.
const NO_TIME: i64 = i64::MAX;

/// Timers that are being fired, until none is due.
struct Firing {
    domain: TimeDomain,
    up_to: i64,
    /// The latest time that fired.
    reached: i64,
    /// See [`MAX_CHAINED_CALLS`].
    chained: u32,
}

struct Process {
    engine: Engine,
    clock: Arc<dyn Clock>,
    batch_rows: usize,
    /// How many timers to look at for the next call: fewer where keys repeat soon.
    timers_at_once: usize,
    watermark: Watermark,
    /// The largest timestamp of a row; with operator lists only.
    latest: Option<i64>,
    /// The input is at its end, which is not told yet: the event time that was reached, if there is any.
    end: Option<Option<i64>>,
    transaction: Transaction,
    work: Option<Work>,
    firing: Option<Firing>,
    spare_slots: Vec<Slot>,
}

impl Operator for Process {
    fn process(&mut self, input: InputIndex, batch: Batch, out: &mut dyn Output) -> Result<Progress> {
        let (keys, slots) = match &self.engine.input(input)?.key {
            Some(key) => {
                let columns = batch.project(key)?;
                let keys = self.engine.states.lock().codec().encode(batch.rows(), columns.columns())?;
                let slots = self.resolve(&keys)?;
                (keys, slots)
            }
            None => {
                self.engine.may_be_vacant = false;
                (Keys::none(), Vec::new())
            }
        };
        if !self.engine.unkeyed.lists.is_empty() {
            let latest = batch.timestamps().and_then(|times| times.iter().max().copied());
            self.latest = self.latest.max(latest);
        }
        self.start(Work { what: What::Rows { input }, rows: batch, keys, slots });
        self.go_on(out)
    }

    fn on_watermark(&mut self, watermark: Watermark, out: &mut dyn Output) -> Result<Progress> {
        let before = std::mem::replace(&mut self.watermark, watermark);
        if watermark == Watermark::MAX && before < watermark {
            // Behind all rows; not late for anyone.
            let reached = (before > Watermark::MIN).then(|| before.0.saturating_add(1));
            self.end = Some(reached.max(self.latest));
        }
        self.go_on(out)
    }

    fn resume(&mut self, out: &mut dyn Output) -> Result<Progress> {
        self.go_on(out)
    }

    fn freeze(&mut self, kind: SnapshotKind) -> Result<bool> {
        let engine = &self.engine;
        if !engine.is_keyed {
            return Ok(false);
        }
        // What is in hand holds slots of its entries.
        if self.work.is_none() {
            engine.states.clean_up(self.clock.now().0, 0)?;
        }
        engine.states.lock().freeze(kind)?;
        Ok(true)
    }

    fn copy_frozen(&mut self) -> Result<Option<Box<dyn StateSnapshot>>> {
        self.engine.states.lock().copy_frozen()
    }

    fn snapshot_unkeyed(&mut self, kind: SnapshotKind) -> Result<Vec<UnkeyedSnapshot>> {
        self.engine.unkeyed.snapshot(kind)
    }

    fn close(&mut self) -> Result<()> {
        self.engine.user.close()
    }

    fn next_timer(&self) -> Option<Timestamp> {
        if self.work.is_some() {
            return self.transaction.retry_at();
        }
        self.engine.states.lock().next_timer(TimeDomain::Processing).map(Timestamp)
    }

    fn on_processing_time(&mut self, now: Timestamp, out: &mut dyn Output) -> Result<Progress> {
        if self.work.is_none() && self.firing.is_none() {
            self.firing = Some(Firing::new(TimeDomain::Processing, now.0));
        }
        self.go_on(out)
    }
}

impl Process {
    /// Makes the entries of keys resident.
    fn resolve(&mut self, keys: &Keys) -> Result<Vec<Slot>> {
        let mut slots = std::mem::take(&mut self.spare_slots);
        let engine = &mut self.engine;
        let (mut state, table) = (engine.states.lock(), engine.states.table);
        let before = state.len(table, Namespace::GLOBAL);
        state.resolve(table, Namespace::GLOBAL, keys, &mut slots)?;
        engine.may_be_vacant = state.len(table, Namespace::GLOBAL) > before;
        drop(state);
        Ok(slots)
    }

    /// Takes rows or timers in hand.
    fn start(&mut self, work: Work) {
        self.engine.set_due = false;
        self.transaction.start(work.rows.rows());
        self.work = Some(work);
    }

    /// The work in hand, then the timers that are due, for a bounded number of calls.
    fn go_on(&mut self, out: &mut dyn Output) -> Result<Progress> {
        for _ in 0..CALLS_PER_STEP {
            if self.work.is_none() && !self.take_timers()? && !self.take_end()? {
                return Ok(Progress::Done);
            }
            if !self.finish_work(out)? || out.is_full() {
                return Ok(Progress::More);
            }
        }
        // Processing-time timers that stay due come back by `next_timer`; in between, rows have their turn.
        if self.work.is_none() && self.firing.as_ref().is_some_and(|f| f.domain == TimeDomain::Processing) {
            self.firing = None;
            return Ok(Progress::Done);
        }
        Ok(Progress::More)
    }

    /// Goes on with the work in hand; whether it is done.
    fn finish_work(&mut self, out: &mut dyn Output) -> Result<bool> {
        let Some(work) = &self.work else { return Ok(true) };
        let now = self.clock.now();
        let clock = CallClock { watermark: self.watermark, processing_time: now };
        let mut call = Call::new(&mut self.engine, work, clock, out);
        if self.transaction.run(now, &mut call)? != Outcome::Done {
            return Ok(false);
        }
        let Some(work) = self.work.take() else { return Ok(true) };
        self.engine.end(&work, now)?;
        if let (What::Timers { .. }, Some(firing)) = (&work.what, &mut self.firing) {
            firing.fired(work.rows.timestamps().and_then(|t| t.last().copied()), self.engine.set_due)?;
        }
        self.spare_slots = work.slots;
        Ok(true)
    }

    /// Takes the end of the input in hand; whether it is to be told.
    fn take_end(&mut self) -> Result<bool> {
        let Some(time) = self.end.take().filter(|_| self.engine.unkeyed.lists.hold_any()) else { return Ok(false) };
        let rows = Batch::new(1, Vec::new(), time.map(|time| vec![time].into()))?;
        let time = vec![time.unwrap_or(NO_TIME)].into();
        self.start(Work { what: What::End { time }, rows, keys: Keys::none(), slots: Vec::new() });
        Ok(true)
    }

    /// Takes due timers in hand; whether there were any.
    fn take_timers(&mut self) -> Result<bool> {
        let mut state = self.engine.states.lock();
        let is_due = |domain, up_to| state.next_timer(domain).is_some_and(|first| first <= up_to);
        if self.firing.as_ref().is_some_and(|firing| !is_due(firing.domain, firing.up_to)) {
            self.firing = None;
        }
        let (domain, up_to) = match &self.firing {
            Some(firing) => (firing.domain, firing.up_to),
            None if is_due(TimeDomain::Event, self.watermark.0) => (TimeDomain::Event, self.watermark.0),
            None => return Ok(false),
        };
        let (mut keys, mut times) = state.due_timers(domain, up_to, self.timers_at_once)?;
        drop(state);
        // Of the timers that are left for the next call, the slots stay in hand too, to be let go of if vacant.
        let slots = self.resolve(&keys)?;
        let distinct = self.engine.numbering.distinct_prefix(&slots);
        if distinct < times.len() {
            let prefix: Vec<u32> = (0..distinct as u32).collect();
            keys = self.engine.states.lock().codec().take(&keys, &prefix)?;
            times.truncate(distinct);
            self.timers_at_once = (distinct * 2).min(self.batch_rows);
        } else {
            self.timers_at_once = (self.timers_at_once * 2).min(self.batch_rows);
        }
        let columns = self.engine.states.lock().codec().decode(&keys)?;
        let times = ScalarBuffer::from(times);
        let key_columns = Batch::new(times.len(), columns, Some(times.clone()))?;
        let rows = Batch::new(times.len(), Vec::new(), Some(times))?;
        self.firing.get_or_insert_with(|| Firing::new(domain, up_to));
        self.start(Work { what: What::Timers { domain, keys: key_columns }, rows, keys, slots });
        Ok(true)
    }
}

impl Engine {
    fn input(&self, input: InputIndex) -> Result<&InputPlan> {
        self.inputs.get(input.index()).ok_or_else(|| Error::internal(format!("{input} of {}", self.inputs.len())))
    }

    /// Whether this is about rows of a broadcast input.
    fn is_broadcast(&self, work: &Work) -> Result<bool> {
        match work.what {
            What::Rows { input } => Ok(self.input(input)?.is_broadcast),
            What::Timers { .. } | What::End { .. } => Ok(false),
        }
    }

    /// Ends a transaction: lets go of keys about which nothing is to be remembered, and makes the rest the state.
    fn end(&mut self, work: &Work, now: Timestamp) -> Result<()> {
        // Rows without a key, of which one may have been set aside, have no entries.
        if self.may_be_vacant && !work.slots.is_empty() {
            self.states.lock().remove_vacant(self.states.table, Namespace::GLOBAL, &work.slots)?;
        }
        self.states.clean_up(now.0, work.slots.len())?;
        let mut state = self.states.lock();
        state.commit()?;
        if let What::End { .. } = work.what {
            // Whoever goes on from a checkpoint behind it has nothing to tell again.
            self.unkeyed.lists.clear()?;
        }
        self.unkeyed.commit(self.is_broadcast(work)?)?;
        self.metrics.state_entries.set(state.entries() + self.unkeyed.entries());
        self.metrics.state_bytes.set((state.memory_bytes() + self.unkeyed.memory_bytes()) as u64);
        Ok(())
    }
}

impl Firing {
    fn new(domain: TimeDomain, up_to: i64) -> Self {
        Self { domain, up_to, reached: i64::MIN, chained: 0 }
    }

    /// A call fired timers up to `latest`; `set_due`: and set others that are due.
    fn fired(&mut self, latest: Option<i64>, set_due: bool) -> Result<()> {
        let latest = latest.unwrap_or(self.reached);
        // At the end of the input every time is due, so getting on in time leads nowhere either.
        let gets_on = latest > self.reached && self.up_to != i64::MAX;
        self.reached = self.reached.max(latest);
        if self.domain != TimeDomain::Event || !set_due {
            return Ok(());
        }
        self.chained = if gets_on { 0 } else { self.chained + 1 };
        if self.chained <= MAX_CHAINED_CALLS {
            return Ok(());
        }
        let end = if self.up_to == i64::MAX { "the end of the input" } else { "the watermark" };
        let message = format!("after {end}, timers set timers that are due again, {MAX_CHAINED_CALLS} times in a row");
        Err(Error::new(ErrorKind::Limit, message)
            .mend("Set a timer in a timer only under a condition that ends, such as a watermark before the end."))
    }
}

#[cfg(test)]
mod tests;
