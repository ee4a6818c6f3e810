//! One transaction of a process function: the call with states, and what its effects do.

use std::sync::Arc;

use arrow::buffer::ScalarBuffer;
use tidemill_core::ids::InputIndex;
use tidemill_core::keys::Keys;
use tidemill_core::operator::{DeadLetter, Output};
use tidemill_core::state::Slot;
use tidemill_core::user::{
    CallClock, CollectionChange, CollectionUpdate, DueTimers, Effects, Emission, EmittedRows, KeySet, ReadCollections,
    StateUpdate, TimeDomain, TimerUpdate, UserFailure,
};
use tidemill_core::{Batch, Error, Result};

use super::unkeyed::Reader;
use super::{Engine, What, Work};
use crate::transaction::{Attempt, Rows};

/// Emissions of timers, and of the end, derive from rows of no input.
const NO_INPUT: InputIndex = InputIndex(u32::MAX);

pub(super) struct Call<'a> {
    engine: &'a mut Engine,
    work: &'a Work,
    clock: CallClock,
    out: &'a mut dyn Output,
    /// The rows (or timers) of the last call.
    rows: Option<Batch>,
}

impl<'a> Call<'a> {
    pub(super) fn new(engine: &'a mut Engine, work: &'a Work, clock: CallClock, out: &'a mut dyn Output) -> Self {
        Self { engine, work, clock, out, rows: None }
    }
}

impl Attempt for Call<'_> {
    fn call(&mut self, rows: &Rows, effects: &mut Effects) -> Result<Result<(), UserFailure>> {
        let selected = rows.of(&self.work.rows)?;
        let engine = &mut *self.engine;
        engine.load(rows, self.work, self.clock)?;
        let keys = KeySet {
            keys: engine.numbering.slots.len(),
            key_of_row: &engine.numbering.key_of_row,
            states: &engine.values,
            collections: engine.reader(),
        };
        let called = match &self.work.what {
            What::Rows { input } => {
                let plan = engine.inputs.get(input.index());
                let plan = plan.ok_or_else(|| Error::internal(format!("a batch of {input}")))?;
                let mut given = selected.project(&plan.reads)?;
                if !engine.reads_timestamps && given.timestamps().is_some() {
                    given = given.with_timestamps(None)?;
                }
                engine.user.process(self.clock, input.0, &given, &keys, effects)
            }
            What::Timers { domain, keys: columns } => {
                let columns = rows.of(columns)?;
                let timestamps = columns.timestamps().ok_or_else(|| Error::internal("timers without times"))?;
                let timers = DueTimers { domain: *domain, timestamps, key_columns: columns.columns(), keys };
                engine.user.on_timers(self.clock, &timers, effects)
            }
            What::End { time } => {
                let timers = DueTimers { domain: TimeDomain::Event, timestamps: time, key_columns: &[], keys };
                engine.user.on_timers(self.clock, &timers, effects)
            }
        };
        self.rows = Some(selected);
        if called.is_ok()
            && let Some(why) = engine.states.too_large(&effects.collections, &engine.numbering.slots)?
        {
            return Ok(Err(UserFailure::Trap(why)));
        }
        if called.is_ok()
            && let Some(why) = engine.unkeyed.refused(&effects.collections, engine.is_broadcast(self.work)?)?
        {
            return Ok(Err(UserFailure::Trap(why)));
        }
        Ok(called)
    }

    fn apply(&mut self, rows: &Rows, effects: &mut Effects) -> Result<()> {
        let selected = self.rows.take().ok_or_else(|| Error::internal("effects without a call"))?;
        if let What::Timers { domain, .. } = &self.work.what {
            // Before what the call sets: a timer may set itself again.
            self.engine.timers_done(*domain, rows, self.work)?;
        }
        let now = self.clock.processing_time.0;
        self.engine.states.were_read(&self.engine.numbering.slots, &self.engine.values, now)?;
        for update in effects.states.drain(..) {
            self.engine.write(&update, now)?;
        }
        for update in effects.collections.drain(..) {
            self.engine.change(&update)?;
        }
        for update in effects.timers.drain(..) {
            self.engine.update_timers(&update, &self.work.keys, self.clock.watermark.0)?;
        }
        let input = match &self.work.what {
            What::Rows { input } => *input,
            What::Timers { .. } | What::End { .. } => NO_INPUT,
        };
        for mut emission in effects.emissions.drain(..) {
            if input == NO_INPUT {
                self.engine.check_timer_emission(&mut emission, selected.timestamps())?;
            }
            let (port, batch) = self.engine.ports.batch(emission, input, &selected)?;
            self.out.emit(port, batch)?;
        }
        Ok(())
    }

    fn set_aside(&mut self, row: usize, reason: String) -> Result<()> {
        // The row's key was resolved, perhaps for this row only.
        self.engine.may_be_vacant = true;
        let letter = match &self.work.what {
            What::Rows { input } => self.engine.input(*input)?.text.letter(&self.work.rows, row, reason),
            What::Timers { domain, keys } => {
                self.engine.timers_done(*domain, &Rows::Range { start: row, len: 1 }, self.work)?;
                let kind = match domain {
                    TimeDomain::Event => "an event-time timer",
                    TimeDomain::Processing => "a processing-time timer",
                };
                self.engine.key_text.letter(keys, row, format!("{kind}: {reason}"))
            }
            What::End { .. } => {
                let reason = format!("the end of the input: {reason}");
                DeadLetter { reason, record: "{}".to_owned(), timestamp: None }
            }
        };
        self.out.dead_letter(letter)
    }

    fn repeated(&mut self) {
        self.engine.metrics.retries.add(1);
    }
}

impl Engine {
    /// Numbers the keys of these rows and reads their states.
    fn load(&mut self, rows: &Rows, work: &Work, clock: CallClock) -> Result<()> {
        let no_rows = Rows::Range { start: 0, len: 0 };
        self.numbering.number(if work.slots.is_empty() { &no_rows } else { rows }, &work.slots)?;
        let now = clock.processing_time.0;
        self.may_be_vacant |= self.states.load(&self.numbering.slots, now, &mut self.values)?;
        Ok(())
    }

    /// Reads what does not travel with the call.
    fn reader(&self) -> Option<Arc<dyn ReadCollections>> {
        let keyed = self.states.reader(&self.numbering.slots);
        if self.unkeyed.is_empty() {
            return keyed;
        }
        Some(Arc::new(Reader { unkeyed: self.unkeyed.clone(), keyed }))
    }

    /// Timers have no rows whose columns could be copied; the new rows of one timer have its time. The end of a stream
    /// without event time has none, whatever its timer says.
    fn check_timer_emission(&self, emission: &mut Emission, times: Option<&ScalarBuffer<i64>>) -> Result<()> {
        if self.copying.get(emission.port.index()) == Some(&true) {
            let message = format!("a timer emitted to {}, which copies columns of the input's rows", emission.port);
            return Err(Error::invalid(message).mend("Make all columns of a port that timers emit to new ones."));
        }
        if let (EmittedRows::New { rows, timestamps: timestamps @ None }, Some([time])) =
            (&mut emission.rows, times.map(|t| &**t))
        {
            *timestamps = Some(ScalarBuffer::from(vec![*time; *rows]));
        }
        if let (EmittedRows::New { timestamps, .. }, None) = (&mut emission.rows, times) {
            *timestamps = None;
        }
        Ok(())
    }

    fn write(&mut self, update: &StateUpdate, now: i64) -> Result<()> {
        self.may_be_vacant |= update.values.null_count() > 0;
        let keys: &[u32] = &update.keys;
        let all = &self.numbering.slots;
        let everyone = keys.len() == all.len() && keys.iter().zip(0..).all(|(&key, number)| key == number);
        if everyone {
            return self.states.write(update, all, now);
        }
        self.states.write(update, &self.slots_of(keys)?, now)
    }

    fn change(&mut self, update: &CollectionUpdate) -> Result<()> {
        if self.unkeyed.has(update.state) {
            return self.unkeyed.change(update);
        }
        self.may_be_vacant |= matches!(update.change, CollectionChange::Remove(_) | CollectionChange::Clear);
        self.states.change(update, &self.slots_of(&update.keys)?)
    }

    fn slots_of(&self, keys: &[u32]) -> Result<Vec<Slot>> {
        let slots = keys.iter().map(|&key| self.numbering.slots.get(key as usize).copied()).collect::<Option<_>>();
        slots.ok_or_else(|| Error::internal("a state of a key that the call does not have"))
    }

    fn update_timers(&mut self, update: &TimerUpdate, keys: &Keys, watermark: i64) -> Result<()> {
        let firsts = &self.numbering.first_rows;
        let of = update.keys.iter().map(|&key| firsts.get(key as usize).copied()).collect::<Option<Vec<_>>>();
        let of = of.ok_or_else(|| Error::internal("a timer of a key that the call does not have"))?;
        if update.delete {
            return self.states.lock().delete_timers(update.domain, keys, &of, &update.timestamps);
        }
        self.set_due |= update.domain == TimeDomain::Event && update.timestamps.iter().any(|&time| time <= watermark);
        self.states.lock().set_timers(update.domain, keys, &of, &update.timestamps)
    }

    /// These timers fired, or were set aside.
    fn timers_done(&mut self, domain: TimeDomain, rows: &Rows, work: &Work) -> Result<()> {
        let outside = || Error::internal("timers outside their call");
        let times = work.rows.timestamps().ok_or_else(outside)?;
        let mut of = Vec::with_capacity(rows.len());
        let mut at = Vec::with_capacity(rows.len());
        for row in 0..rows.len() {
            let row = rows.original(row).ok_or_else(outside)?;
            of.push(row as u32);
            at.push(*times.get(row).ok_or_else(outside)?);
        }
        self.states.lock().delete_timers(domain, &work.keys, &of, &at)
    }
}
