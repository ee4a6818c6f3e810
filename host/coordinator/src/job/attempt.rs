//! An attempt at a job, from its deployment until nothing of it runs any more.
//!
//! Invariant: it is not over while a worker that is there may still run some of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use tidemill_core::connector::SplitId;
use tidemill_core::log::Level;
use tidemill_core::time::Timestamp;
use tidemill_core::{Error, ErrorKind, Result};
use tidemill_dataflow::driver::{Master, MasterEvent, Prologue, SlotEvent};
use tidemill_dataflow::element::Barrier;
use tidemill_dataflow::{Checkpoints, Ending, JobSpec};
use tidemill_rpc::proto::ReaderState;
use tidemill_rpc::subtask_of;

use super::{Job, JobEvent, Wish, checkpoints_view};
use crate::execution::{Execution, ExecutionEvent, RestoredBytes};
use crate::lock;
use crate::view::{JobState, JobView};

/// See the module.
pub struct Attempt {
    execution: Arc<Execution>,
    spec: JobSpec,
    stage: Stage,
    /// Workers that have not said whether their slots are ready, or what they know.
    opening: BTreeSet<String>,
    /// What they read for that.
    restored: RestoredBytes,
    /// Workers on which some of it may run.
    here: BTreeSet<String>,
    /// Slots that came to their end, one way or another.
    ended: BTreeSet<u32>,
    /// What went wrong before its master was there, or at the very end.
    errors: Vec<Error>,
    /// Workers that have no memory for it, since others hold it.
    refused: BTreeSet<String>,
    /// Whether a checkpoint of it is complete.
    progressed: bool,
}

/// How far it is.
enum Stage {
    /// Its slots are being made ready, or taken over.
    Opening(Option<Box<Opening>>),
    /// They run, under its master.
    Running(Box<Master>),
    /// They have ended. `None`: there never was a master.
    Leaving(Option<Box<Master>>),
}

/// What its master is made of.
struct Opening {
    prologue: Prologue,
    checkpoints: Option<Checkpoints>,
    /// What slots said that were taken over, of before or since.
    said: Vec<MasterEvent>,
}

/// What a tick came to.
pub enum Progress {
    /// It goes on; something is due at this time.
    Goes(Option<Timestamp>),
    /// Nothing of it runs any more.
    Over,
}

impl Attempt {
    /// Of which all workers were told to make their slots, or that they are taken over.
    pub fn new(execution: Arc<Execution>, spec: JobSpec, prologue: Prologue, checkpoints: Option<Checkpoints>) -> Self {
        let workers: BTreeSet<String> = execution.workers.iter().map(|worker| worker.id.clone()).collect();
        let (restored, ended, errors, refused) = Default::default();
        let stage = Stage::Opening(Some(Box::new(Opening { prologue, checkpoints, said: Vec::new() })));
        Self {
            execution,
            spec,
            stage,
            opening: workers.clone(),
            restored,
            here: workers,
            ended,
            errors,
            refused,
            progressed: false,
        }
    }

    /// Where it is deployed.
    pub fn execution(&self) -> &Arc<Execution> {
        &self.execution
    }

    /// A worker says something of it.
    pub fn hear(&mut self, event: ExecutionEvent) {
        self.note_refusal(&event);
        match event {
            ExecutionEvent::Opened(worker, outcome) => {
                self.opening.remove(&worker);
                match outcome {
                    Ok(read) => {
                        self.restored.local = self.restored.local.saturating_add(read.local);
                        self.restored.store = self.restored.store.saturating_add(read.store);
                    }
                    Err(error) => {
                        self.here.remove(&worker);
                        self.errors.push(error);
                    }
                }
            }
            ExecutionEvent::Resumed(worker, readers) => {
                self.opening.remove(&worker);
                readers.into_iter().for_each(|reader| self.resumed(reader));
            }
            ExecutionEvent::Left(worker, failures) => {
                // Its slots had ended when they were to be taken over.
                if self.opening.remove(&worker) {
                    self.errors.push(Error::new(ErrorKind::Lost, format!("nothing of it runs on {worker} any more")));
                }
                self.here.remove(&worker);
                self.errors.extend(failures);
                self.end_slots(&worker, SlotEvent::Gone);
            }
            ExecutionEvent::Gone(worker, why) => {
                let gone = || Error::new(ErrorKind::Lost, format!("{worker} is gone: {why}"));
                self.opening.remove(&worker);
                let was_here = self.here.remove(&worker);
                if matches!(self.stage, Stage::Opening(_)) {
                    self.errors.push(gone());
                }
                self.end_slots(&worker, |slot| SlotEvent::Failed(slot, gone()));
                // Also where all its slots have finished: what they froze at the end may not be written.
                if was_here && matches!(self.stage, Stage::Running(_)) {
                    self.hear_master(MasterEvent::Slot(SlotEvent::Trouble(gone())));
                }
            }
            ExecutionEvent::Slot(worker, event) => {
                if let SlotEvent::Finished(slot) | SlotEvent::Gone(slot) | SlotEvent::Failed(slot, _) = &event
                    && !self.ends(&worker, *slot)
                {
                    return;
                }
                self.hear_master(MasterEvent::Slot(event));
            }
        }
    }

    fn note_refusal(&mut self, event: &ExecutionEvent) {
        let is_full = |error: &Error| error.kind() == ErrorKind::Full;
        let refuses = match event {
            ExecutionEvent::Opened(worker, Err(error)) => is_full(error).then_some(worker),
            ExecutionEvent::Slot(worker, SlotEvent::Failed(_, error) | SlotEvent::Trouble(error)) => {
                is_full(error).then_some(worker)
            }
            ExecutionEvent::Left(worker, failures) => failures.iter().any(is_full).then_some(worker),
            _ => None,
        };
        self.refused.extend(refuses.cloned());
    }

    /// Something is said to its master.
    pub fn hear_master(&mut self, event: MasterEvent) {
        match (&mut self.stage, event) {
            (Stage::Running(master), event) => master.note(event),
            (Stage::Opening(_), MasterEvent::Slot(SlotEvent::Trouble(error))) => self.errors.push(error),
            (Stage::Opening(Some(opening)), event) => opening.said.push(event),
            (Stage::Opening(None) | Stage::Leaving(_), _) => {}
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, job: &Job, now: Timestamp) -> Progress {
        if let Stage::Opening(made) = &mut self.stage {
            if !self.opening.is_empty() {
                return Progress::Goes(None);
            }
            let made = made.take().filter(|_| self.errors.is_empty());
            self.stage = match made.map(|opening| self.master(job, *opening)) {
                Some(Ok(master)) => {
                    running(job, &master, self.spec.settings.parallelism, self.restored, now);
                    Stage::Running(Box::new(master))
                }
                failed => {
                    self.errors.extend(failed.and_then(Result::err));
                    self.execution.signals.cancel();
                    Stage::Leaving(None)
                }
            };
        }
        let mut due = None;
        if let Stage::Running(master) = &mut self.stage {
            due = master.tick();
            let is_over = master.is_over();
            if is_over {
                master.conclude();
            }
            show(job, master, now);
            self.progressed |= master.figures().is_some_and(|figures| figures.completed > 0);
            if is_over && let Stage::Running(master) = std::mem::replace(&mut self.stage, Stage::Leaving(None)) {
                self.stage = Stage::Leaving(Some(master));
            }
        }
        match self.stage {
            Stage::Leaving(_) if self.here.is_empty() => Progress::Over,
            _ => Progress::Goes(due),
        }
    }

    /// Whether it came so far that all its slots ran: it may have done something.
    pub fn ran(&self) -> bool {
        matches!(self.stage, Stage::Running(_) | Stage::Leaving(Some(_)))
    }

    /// Whether the job got on in it.
    pub fn progressed(&self) -> bool {
        self.progressed
    }

    /// The workers that have no memory for it, since others hold it.
    pub fn refused(&self) -> &BTreeSet<String> {
        &self.refused
    }

    /// It is over: how.
    pub fn end(self) -> Result<Ending> {
        match self.stage {
            Stage::Leaving(Some(master)) => master.end(self.errors),
            _ => {
                let error = self.errors.into_iter().next();
                Err(error.unwrap_or_else(|| Error::internal("an attempt ended before it began")))
            }
        }
    }

    /// What a reader knows that was taken over.
    fn resumed(&mut self, state: ReaderState) {
        let Ok((node, index)) = subtask_of(state.reader) else { return };
        let reader = self.execution.readers.get(&(node, index.0));
        if let Some(reader) = reader {
            reader.has_splits(state.unfinished as usize);
            if state.no_more {
                reader.close();
            }
        }
        let Stage::Opening(Some(opening)) = &mut self.stage else { return };
        let takeover = opening.prologue.takeover.get_or_insert_default();
        takeover.known.entry(node).or_default().extend(state.splits.into_iter().map(SplitId));
        let barriers = takeover.barrier.into_iter().chain(state.barrier.map(Barrier::from));
        takeover.barrier = barriers.max_by_key(|barrier| barrier.epoch);
    }

    /// The master of what is ready, which is started, or runs already.
    fn master(&self, job: &Job, opening: Opening) -> Result<Master> {
        let Opening { prologue, checkpoints, said } = opening;
        let takeover = prologue.takeover.is_some();
        if prologue.takeover.as_ref().and_then(|takeover| takeover.barrier).is_some_and(|barrier| barrier.stops) {
            return Err(Error::new(ErrorKind::Lost, "it was being stopped when its coordinator ended"));
        }
        let (id, tell) = (self.execution.id, job.tell.clone());
        let hear = move |event| _ = tell.send(JobEvent::Master(id, event));
        let (readers, signals) = (&self.execution.readers, self.execution.signals.clone());
        let mut master = Master::new(&self.spec, prologue, readers, signals, checkpoints, hear)?;
        if !takeover {
            self.execution.start();
        }
        said.into_iter().for_each(|event| master.note(event));
        Ok(master)
    }

    /// A slot ends once, whatever else is said of it, and only its own worker says so.
    fn ends(&mut self, worker: &str, slot: u32) -> bool {
        let is_its = self.execution.slots.get(slot as usize).is_some_and(|of| of.id == worker);
        is_its && self.ended.insert(slot)
    }

    /// The slots of a worker end so that have not ended yet.
    fn end_slots(&mut self, worker: &str, how: impl Fn(u32) -> SlotEvent) {
        for slot in (0..).take(self.execution.slots.len()) {
            if self.ends(worker, slot) {
                self.hear_master(MasterEvent::Slot(how(slot)));
            }
        }
    }
}

/// It runs with so many slots, and what was wished for meanwhile is done.
fn running(job: &Job, master: &Master, parallelism: u32, restored: RestoredBytes, now: Timestamp) {
    let control = master.control();
    let mut shared = lock(&job.shared);
    let bytes = restored.local.saturating_add(restored.store);
    if let Some(attempt) = &mut shared.view.attempt {
        (attempt.ready_ms, attempt.restored_bytes, attempt.restored_local_bytes) = (now.0, bytes, restored.local);
    }
    match shared.wish {
        Wish::Cancel => control.cancel(),
        Wish::Stop => control.stop(),
        Wish::Run => {
            shared.view.state = JobState::Running;
            shared.view.reason = None;
            if shared.parallelism != parallelism {
                control.stop();
            }
        }
    }
    shared.control = Some(control);
    drop(shared);
    let read = match bytes {
        0 => String::new(),
        bytes if restored.local == 0 => format!("; restored {bytes} bytes"),
        bytes => format!("; restored {bytes} bytes, {} of them from the machines where they run", restored.local),
    };
    job.log().say(now.0, Level::Info, &format!("all its slots run{read}"));
}

fn show(job: &Job, master: &Master, now: Timestamp) {
    let mut shared = lock(&job.shared);
    let failed = |view: &JobView| view.checkpoints.as_ref().map_or(0, |checkpoints| checkpoints.failed);
    let before = failed(&shared.view);
    shared.view.checkpoints = master.figures().map(checkpoints_view);
    // Of an attempt that begins, less are counted than of the one before.
    if failed(&shared.view) > before {
        let why = shared.view.checkpoints.as_ref().and_then(|checkpoints| checkpoints.failure.as_deref());
        job.log().say(
            now.0,
            Level::Warn,
            &format!("a checkpoint was given up: {}", why.unwrap_or("no reason is known")),
        );
    }
    if master.control().is_cancelled() && shared.view.state == JobState::Running {
        shared.view.state = JobState::Failing;
    }
}
