//! The master of a job: attempt after attempt, from its submission to its end.
//!
//! A state machine: it hears events and looks at the clock, and has neither a thread nor a wait of its own. Its steps may
//! block on the store, so in production each master has a thread ([`JobMaster::run`]).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tidemill_checkpoint::manifest::ManifestKind;
use tidemill_checkpoint::restart::{Restart, Restarts};
use tidemill_checkpoint::{Begun, Owner, Start};
use tidemill_core::connector::Waker;
use tidemill_core::log::Level;
use tidemill_core::time::Timestamp;
use tidemill_core::{Error, ErrorKind, Result};
use tidemill_dataflow::driver::Prologue;
use tidemill_dataflow::{Checkpoints, Ending, JobSpec};
use tidemill_job::Manifest;
use tidemill_rpc::proto::Running;

use super::attempt::{Attempt, Progress};
use super::offer::Offer;
use super::{Job, JobEvent, Submission, Wish, accepted_view};
use crate::execution::Execution;
use crate::logs::JobLog;
use crate::storage::{Accepted, Kept, KeptWish};
use crate::view::{AttemptView, ExceptionView, JobState, JobView};
use crate::workers::{self, Worker};
use crate::{Coordinator, lock};

/// How many failures are shown.
const EXCEPTIONS: usize = 20;
/// No wait of the thread is longer: a clock that was set costs this, not the job.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// See the module.
pub struct JobMaster {
    coordinator: Arc<Coordinator>,
    job: Arc<Job>,
    inbox: Receiver<JobEvent>,
    restarts: Restarts,
    /// Whether an attempt has begun. What follows goes on from the newest checkpoint, however the attempt before ended:
    /// also one that came to its very end, of which nobody was told.
    begun: bool,
    /// Where the slots of the latest attempt were, by slot: those of the next go there again, if they can.
    placed: Vec<String>,
    /// Workers that had no memory for it since it last got on: others are better, while they have more of it left.
    refused: BTreeSet<String>,
    /// Whether there was a better one when the latest attempt ended for that.
    moves: bool,
    /// Whether a coordinator before this one had the job, and it did not run under this one yet. What is wrong with it then is
    /// not for ever: see [`super::recover`].
    recovers: bool,
    /// Whether another coordinator had the job since this one looked: it may have brought it to its end.
    fenced: bool,
    /// Of the newest attempt of this coordinator, where it takes checkpoints.
    generation: Option<u64>,
    phase: Phase,
}

/// How long workers that run a job may take to come back to a new coordinator. What is not found by then is started again.
const TAKEOVER_MS: i64 = 3_000;

/// After so long, it is tried again to keep how a job ended.
const KEEP_AGAIN_MS: i64 = 1_000;

/// Where it is.
enum Phase {
    /// It may run since before this coordinator: until this time, workers may say so.
    Expecting(Timestamp, Option<Offer>),
    /// An attempt is due.
    Due,
    /// There are not enough slots for it yet.
    Waiting(Box<Wanted>),
    /// It is made, or under way.
    Attempt(Box<Attempt>),
    /// It failed at one time; the next is due at another.
    Pausing(Timestamp, Timestamp),
    /// It came to its end so, which could not be kept at one time; it is tried again at another.
    Ending(Box<JobView>, Timestamp, Timestamp),
    Over,
}

/// A job for which slots are wanted.
struct Wanted {
    manifest: Manifest,
    spec: JobSpec,
}

/// When a master has something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Due {
    /// At this time, or when it hears something.
    At(Timestamp),
    /// When it hears something.
    Told,
    /// Never again: the job is over.
    Never,
}

/// How the making of an attempt came out.
enum Made {
    Attempt(Box<Attempt>),
    /// There is nothing to run.
    Ended(Ending),
}

impl JobMaster {
    /// Of a new job, which is accepted.
    pub(crate) fn submit(
        coordinator: Arc<Coordinator>,
        submission: Submission,
        name: &str,
    ) -> Result<(Arc<Job>, Self)> {
        let Submission { definition, parallelism, from, allow_non_restored } = submission;
        let submitted_ms = coordinator.environment.now_ms();
        let accepted = Accepted { id: String::new(), definition, parallelism, from, allow_non_restored, submitted_ms };
        let accepted = coordinator.storage.keep_job(accepted, &coordinator.environment.nonces)?;
        let (job, master) = Self::of(coordinator, accepted, false, &[], Phase::Due)?;
        lock(&job.shared).view.name = name.to_owned();
        Ok((job, master))
    }

    /// Of a job that a coordinator before this one accepted.
    pub(crate) fn again(coordinator: Arc<Coordinator>, kept: Kept) -> Result<(Arc<Job>, Self)> {
        let until = Timestamp(coordinator.environment.now_ms().saturating_add(TAKEOVER_MS));
        Self::of(coordinator, kept.accepted, kept.begun, &kept.wishes, Phase::Expecting(until, None))
    }

    fn of(
        coordinator: Arc<Coordinator>,
        accepted: Accepted,
        begun: bool,
        wishes: &[KeptWish],
        phase: Phase,
    ) -> Result<(Arc<Job>, Self)> {
        let recovers = matches!(phase, Phase::Expecting(..));
        let manifest = accepted.definition.manifest(accepted.parallelism)?;
        let restarts = Restarts::new(manifest.restart, coordinator.environment.now_ms().unsigned_abs());
        let view = accepted_view(&accepted)?;
        let log = JobLog::new(coordinator.environment.now_ms(), recovers);
        let (job, inbox) = Job::new(coordinator.storage.clone(), Ok(accepted), view, log);
        job.wished(wishes);
        if begun {
            let parallelism = lock(&job.shared).parallelism;
            coordinator.workers.returns(job.id(), parallelism);
        }
        let (placed, refused, generation) = Default::default();
        let master = Self {
            coordinator,
            job: job.clone(),
            inbox,
            restarts,
            begun,
            placed,
            refused,
            moves: false,
            recovers,
            fenced: false,
            generation,
            phase,
        };
        Ok((job, master))
    }

    /// Whose.
    pub fn job(&self) -> &Arc<Job> {
        &self.job
    }

    /// To the end of the job, on this thread.
    pub fn run(mut self) {
        loop {
            let wait = match self.tick() {
                Due::Never => return,
                Due::Told => LONGEST_WAIT,
                Due::At(at) => {
                    let ms = at.0.saturating_sub(self.coordinator.environment.now_ms()).max(0);
                    Duration::from_millis(ms.unsigned_abs()).min(LONGEST_WAIT)
                }
            };
            match self.inbox.recv_timeout(wait) {
                Ok(event) => self.note(event),
                Err(RecvTimeoutError::Timeout) => {}
                // The job, which this has too, keeps a sender.
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Hears what was said first of what it has not heard, if anything was: whether there was something.
    pub fn hear(&mut self) -> bool {
        let heard = self.inbox.try_recv();
        heard.map(|event| self.note(event)).is_ok()
    }

    /// Does what is due; when something is due next.
    pub fn tick(&mut self) -> Due {
        loop {
            let now = Timestamp(self.coordinator.environment.now_ms());
            self.job.hear_saved();
            let shared = lock(&self.job.shared);
            let (cancelled, parallelism) = (shared.wish == Wish::Cancel, shared.parallelism);
            drop(shared);
            match std::mem::replace(&mut self.phase, Phase::Due) {
                Phase::Over => {
                    self.phase = Phase::Over;
                    return Due::Never;
                }
                Phase::Expecting(_, offer) if cancelled => {
                    offer.into_iter().for_each(|offer| offer.decline(&self.coordinator.workers));
                    self.end(Ok(Ending::Cancelled));
                }
                Phase::Due | Phase::Waiting(_) | Phase::Pausing(..) if cancelled => self.end(Ok(Ending::Cancelled)),
                Phase::Expecting(until, offer) => {
                    match (offer.as_ref().and_then(|offer| offer.complete(&self.coordinator.workers)), offer) {
                        (Some(slots), Some(offer)) => self.take_over(offer, &slots, now),
                        (_, offer) if now < until && until.0 - now.0 <= TAKEOVER_MS => {
                            self.phase = Phase::Expecting(until, offer);
                            return Due::At(until);
                        }
                        (_, offer) => offer.into_iter().for_each(|offer| offer.decline(&self.coordinator.workers)),
                    }
                }
                Phase::Due if self.fenced => match self.coordinator.storage.end(self.job.id()) {
                    Ok(Some(end)) => self.ended(end),
                    Ok(None) => self.fenced = false,
                    Err(error) => self.attempt_ended(Err(error), now),
                },
                Phase::Due => match self.want(parallelism) {
                    Ok(wanted) => self.phase = Phase::Waiting(wanted),
                    Err(error) => self.attempt_ended(Err(error), now),
                },
                // It was rescaled meanwhile.
                Phase::Waiting(wanted) if wanted.spec.settings.parallelism != parallelism => {}
                Phase::Waiting(wanted) => {
                    let wants = wanted.spec.settings.parallelism;
                    let Some(slots) = self.slots(wants) else {
                        self.phase = Phase::Waiting(wanted);
                        return Due::Told;
                    };
                    match self.make(*wanted, &slots) {
                        Ok(Made::Attempt(attempt)) => self.phase = Phase::Attempt(attempt),
                        Ok(Made::Ended(ending)) => {
                            self.coordinator.workers.give_back(&slots);
                            self.end(Ok(ending));
                        }
                        Err(error) => {
                            if self.begun {
                                self.coordinator.workers.returns(self.job.id(), wants);
                            }
                            self.coordinator.workers.give_back(&slots);
                            self.attempt_ended(Err(error), now);
                        }
                    }
                }
                Phase::Attempt(mut attempt) => match attempt.tick(&self.job, now) {
                    Progress::Goes(due) => {
                        self.phase = Phase::Attempt(attempt);
                        return due.map_or(Due::Told, Due::At);
                    }
                    Progress::Over => {
                        if attempt.progressed() {
                            self.restarts.progressed();
                            self.refused.clear();
                        }
                        let (refused, ran) = (attempt.refused().clone(), attempt.ran());
                        self.recovers &= !ran;
                        let execution = attempt.execution().clone();
                        let outcome = attempt.end();
                        self.placed = execution.slots.iter().map(|worker| worker.id.clone()).collect();
                        lock(&self.coordinator.executions).remove(&execution.id);
                        let mut shared = lock(&self.job.shared);
                        (shared.control, shared.execution) = (None, None);
                        drop(shared);
                        let had = u32::try_from(execution.slots.len()).unwrap_or(u32::MAX);
                        self.coordinator.workers.returns(self.job.id(), had);
                        self.coordinator.workers.give_back(&execution.slots);
                        self.job.hear_saved();
                        // Of one that ran, what was done is known from checkpoints alone.
                        let moves = self.passes_over(refused) && (!ran || self.generation.is_some());
                        self.moves = moves && matches!(&outcome, Err(error) if error.kind() == ErrorKind::Full);
                        self.attempt_ended(outcome, now);
                    }
                },
                Phase::Ending(end, since, until) if now >= since && now < until => {
                    self.phase = Phase::Ending(end, since, until);
                    return Due::At(until);
                }
                Phase::Ending(end, ..) => self.keep_end(end),
                // A clock that was set back must not make it longer.
                Phase::Pausing(since, until) if now >= since && now < until => {
                    self.phase = Phase::Pausing(since, until);
                    return Due::At(until);
                }
                Phase::Pausing(..) => {}
            }
        }
    }

    fn note(&mut self, event: JobEvent) {
        if let JobEvent::Offered(worker, running) = event {
            return self.offered(&worker, &running);
        }
        // Of an attempt that is over: stale. Who asked something sees that the question was dropped.
        let Phase::Attempt(attempt) = &mut self.phase else { return };
        match event {
            JobEvent::Execution(id, event) if id == attempt.execution().id => attempt.hear(event),
            JobEvent::Master(id, event) if id == attempt.execution().id => attempt.hear_master(event),
            JobEvent::Look | JobEvent::Execution(..) | JobEvent::Master(..) | JobEvent::Offered(..) => {}
        }
    }

    /// A worker runs slots of it since before.
    fn offered(&mut self, worker: &Arc<Worker>, running: &Running) {
        let belongs = match &mut self.phase {
            Phase::Expecting(_, offer) => offer.get_or_insert_with(|| Offer::new(running)).add(worker, running),
            _ => false,
        };
        if !belongs {
            self.coordinator.decline(worker, running);
        }
    }

    /// Goes on with what runs, or ends it for another attempt.
    fn take_over(&mut self, offer: Offer, slots: &[Arc<Worker>], now: Timestamp) {
        match self.resume(&offer, slots) {
            Ok(Made::Attempt(attempt)) => {
                self.coordinator.workers.returned(self.job.id());
                self.phase = Phase::Attempt(attempt);
            }
            Ok(Made::Ended(ending)) => {
                offer.committed(&self.coordinator.workers);
                self.attempt_ended(Ok(ending), now);
            }
            Err(error) => {
                offer.decline(&self.coordinator.workers);
                self.attempt_ended(Err(error), now);
            }
        }
    }

    /// Makes an attempt of what runs.
    fn resume(&mut self, offer: &Offer, slots: &[Arc<Worker>]) -> Result<Made> {
        let Wanted { manifest, spec } = *self.want(offer.parallelism)?;
        let environment = &self.coordinator.environment;
        let mut checkpoints = None;
        if let Some(settings) = &manifest.checkpoints {
            let store = environment.store(settings, &spec.name)?;
            let start = || self.unless_ended().map(|()| Start::Again);
            let owner = match store.begin_as(start, environment.now_ms())? {
                Begun::Run(owner) if owner.may_take_over(offer.generation) => *owner,
                Begun::Over(savepoint) => return Ok(self.saved(savepoint)),
                _ => return Err(Error::new(ErrorKind::Lost, "what runs of it is not its newest attempt")),
            };
            checkpoints = Some(tidemill_job::checkpoints(settings, store, owner));
        }
        let prologue = Prologue::of_running(&spec, checkpoints.as_mut())?;
        let owner = checkpoints.as_ref().map(|checkpoints| &checkpoints.owner);
        let generation = owner.map_or(0, Owner::generation);
        self.generation = owner.map(Owner::generation);
        // It came to its end, and only its slots have not heard of it; unless they began from the end of another attempt.
        let newest = owner.and_then(Owner::restored).map(|restored| &restored.manifest);
        match newest.filter(|newest| newest.generation == offer.generation).map(|newest| newest.kind) {
            Some(ManifestKind::Stopped) => return Ok(Made::Ended(Ending::Stopped)),
            Some(ManifestKind::Finished) => return Ok(Made::Ended(Ending::Finished)),
            Some(ManifestKind::Checkpoint | ManifestKind::Savepoint) | None => {}
        }
        let execution = self.execution(offer.execution, &spec, &prologue, slots);
        execution.resume(generation);
        Ok(self.attempt(execution, spec, prologue, checkpoints))
    }

    /// What an attempt is with so many slots.
    fn want(&self, parallelism: u32) -> Result<Box<Wanted>> {
        let definition = self.job.definition()?;
        let manifest = definition.manifest(Some(parallelism))?;
        let environment = &self.coordinator.environment;
        let spec = environment.spec(&manifest, environment.program(&definition.artifact, &manifest)?)?;
        let began_ms = environment.now_ms();
        let mut shared = lock(&self.job.shared);
        shared.view.name.clone_from(&spec.name);
        shared.view.parallelism = parallelism;
        shared.view.attempt = Some(AttemptView { began_ms, ..AttemptView::default() });
        drop(shared);
        Ok(Box::new(Wanted { manifest, spec }))
    }

    /// Slots for it, if they are there; else it will hear when there may be.
    fn slots(&mut self, parallelism: u32) -> Option<Vec<Arc<Worker>>> {
        let tell = self.job.tell.clone();
        let look = Waker::new(move || _ = tell.send(JobEvent::Look));
        // Where it ran under a coordinator before this one is not known, and with how many slots neither.
        let had = match self.placed.len() {
            0 if self.begun => parallelism,
            had => u32::try_from(had).unwrap_or(u32::MAX),
        };
        let wanted = workers::Wanted {
            slots: parallelism,
            before: &self.placed,
            had,
            refused: &self.refused,
            job: self.job.id(),
        };
        match self.coordinator.workers.take(&wanted, look) {
            Ok(slots) => Some(slots),
            Err(missing) => {
                let mut shared = lock(&self.job.shared);
                let reason = Some(missing.to_string());
                if shared.view.state != JobState::Cancelling && shared.view.reason != reason {
                    shared.view.reason = reason;
                    drop(shared);
                    self.say(Level::Warn, &format!("it waits: {missing}"));
                }
                None
            }
        }
    }

    /// Begins an attempt in these slots, and has them made ready.
    fn make(&mut self, wanted: Wanted, slots: &[Arc<Worker>]) -> Result<Made> {
        let Wanted { manifest, spec } = wanted;
        let (coordinator, accepted) = (&self.coordinator, self.job.accepted()?);
        let mut checkpoints = None;
        if let Some(settings) = &manifest.checkpoints {
            let store = coordinator.environment.store(settings, &spec.name)?;
            let start = || {
                // Another coordinator may have begun it while this one stood still, and ended it.
                self.unless_ended()?;
                let begun = self.begun || coordinator.storage.has_begun(self.job.id())?;
                Ok(if begun { Start::Again } else { accepted.from.clone() })
            };
            let begun = store.begin_as(start, coordinator.environment.now_ms())?;
            coordinator.storage.keep_begun(self.job.id())?;
            self.begun = true;
            let owner = match begun {
                Begun::Run(owner) => *owner,
                Begun::Over(savepoint) => return Ok(self.saved(savepoint)),
                Begun::Commit(checkpoint) => {
                    tidemill_dataflow::commit_ended(&spec, &store, &checkpoint)?;
                    return Ok(Made::Ended(Ending::Finished));
                }
            };
            self.generation = Some(owner.generation());
            checkpoints = Some(tidemill_job::checkpoints(settings, store, owner));
        }
        let allow = accepted.allow_non_restored;
        let prologue = Prologue::of(&spec, checkpoints.as_mut(), allow)?;
        let execution = self.execution(coordinator.new_execution(), &spec, &prologue, slots);
        let owner = checkpoints.as_ref().map(|checkpoints| &checkpoints.owner);
        execution
            .open(self.job.id(), &accepted.definition, owner, allow)
            .inspect_err(|_| _ = lock(&coordinator.executions).remove(&execution.id))?;
        Ok(self.attempt(execution, spec, prologue, checkpoints))
    }

    /// An error says that another coordinator brought it to its end.
    fn unless_ended(&self) -> Result<()> {
        match self.coordinator.storage.end(self.job.id())? {
            None => Ok(()),
            Some(_) => Err(Error::new(ErrorKind::Fenced, "another coordinator brought the job to its end")),
        }
    }

    /// It was stopped with a savepoint, of which nobody was told.
    fn saved(&self, savepoint: String) -> Made {
        let mut shared = lock(&self.job.shared);
        (shared.view.savepoint, shared.saved) = (Some(savepoint), true);
        Made::Ended(Ending::Stopped)
    }

    /// One that workers can say something of.
    fn execution(&self, id: u64, spec: &JobSpec, prologue: &Prologue, slots: &[Arc<Worker>]) -> Arc<Execution> {
        let tell = self.job.tell.clone();
        let says = move |event| _ = tell.send(JobEvent::Execution(id, event));
        let execution = Arc::new(Execution::new(id, &spec.name, prologue, slots.to_vec(), says));
        lock(&self.coordinator.executions).insert(id, execution.clone());
        execution
    }

    /// The attempt of what workers were told.
    fn attempt(
        &self,
        execution: Arc<Execution>,
        spec: JobSpec,
        prologue: Prologue,
        checkpoints: Option<Checkpoints>,
    ) -> Made {
        // Who left before that was not heard of by the execution.
        for worker in execution.workers.iter().filter(|worker| !self.coordinator.workers.has(worker)) {
            execution.gone(worker, "it left");
        }
        let mut shared = lock(&self.job.shared);
        shared.execution = Some(execution.clone());
        shared.tasks.clone_from(&prologue.tasks);
        let now_ms = self.coordinator.environment.now_ms();
        shared.view.attempt.iter_mut().for_each(|attempt| attempt.deploying_ms = now_ms);
        drop(shared);
        let workers: Vec<&str> = execution.workers.iter().map(|worker| worker.id.as_str()).collect();
        let how = if prologue.takeover.is_some() { "is taken over" } else { "is deployed" };
        self.say(Level::Info, &format!("it {how}: {} slots on {}", execution.slots.len(), workers.join(", ")));
        Made::Attempt(Box::new(Attempt::new(execution, spec, prologue, checkpoints)))
    }

    /// These workers had no memory for it. Whether there is a better one: then all that refused it are passed over, so it
    /// comes to each worker once. If there is none, only these are, since elsewhere there may be room by the next attempt.
    fn passes_over(&mut self, mut refused: BTreeSet<String>) -> bool {
        if refused.is_empty() {
            return false;
        }
        let latest = refused.clone();
        refused.append(&mut self.refused);
        let better = self.coordinator.workers.has_memory_beside(&refused);
        self.refused = if better { refused } else { latest };
        better
    }

    /// An attempt is over, one way or another: what follows.
    fn attempt_ended(&mut self, outcome: Result<Ending>, now: Timestamp) {
        let shared = lock(&self.job.shared);
        let (wish, saved) = (shared.wish, shared.saved);
        drop(shared);
        match outcome {
            // Whoever goes on from its savepoint goes on from here.
            Err(error) if saved => {
                self.say(Level::Error, &error.to_string());
                self.end(Ok(Ending::Stopped));
            }
            // It was stopped to be rescaled, or its savepoint could not be taken.
            Ok(Ending::Stopped) if wish == Wish::Run && !saved => {
                let why = "it was stopped, and goes on from there";
                self.set(JobState::Restarting, Some(why.to_owned()));
                self.say(Level::Info, why);
                self.phase = Phase::Due;
            }
            Ok(ending) => self.end(Ok(ending)),
            Err(_) if wish == Wish::Cancel => self.end(Ok(Ending::Cancelled)),
            Err(error) => match self.failed(error, now) {
                Ok(until) => self.phase = Phase::Pausing(now, until),
                Err(error) if self.recovers && error.kind() == ErrorKind::Invalid => self.not_recovered(&error),
                Err(error) => self.end(Err(error)),
            },
        }
    }

    /// Until when to wait after a failure. The error, if it was the last one.
    fn failed(&mut self, error: Error, now: Timestamp) -> Result<Timestamp> {
        let text = error.to_string();
        self.say(Level::Error, &text);
        let mut shared = lock(&self.job.shared);
        shared.view.exceptions.push(ExceptionView { at_ms: now.0, text: text.clone() });
        let over = shared.view.exceptions.len().saturating_sub(EXCEPTIONS);
        shared.view.exceptions.drain(..over);
        drop(shared);
        // That has nothing to do with the job, and there is no point in waiting.
        if std::mem::take(&mut self.moves) {
            self.say(Level::Warn, "another worker has more memory left");
            return Ok(self.starts_again(Duration::ZERO, text, now));
        }
        let accepted = self.job.accepted()?;
        let manifest = accepted.definition.manifest(accepted.parallelism)?;
        // What was done is known from checkpoints alone.
        if manifest.checkpoints.is_none() {
            return Err(error);
        }
        let now_ms = now.0.unsigned_abs();
        self.fenced |= error.kind() == ErrorKind::Fenced;
        let decided = match error.kind() {
            ErrorKind::Lost => self.restarts.lost(now_ms, &text),
            // Another coordinator has the job. If it lives, that is well, and this one will hear how the job ended; if it
            // was on its way to its end itself, somebody has to go on.
            ErrorKind::Fenced => self.restarts.failed(now_ms, &text),
            ErrorKind::Retry | ErrorKind::Full | ErrorKind::Internal => self.restarts.failed(now_ms, &text),
            // Of an attempt that others have overtaken, whatever it needs may be gone.
            _ if !self.is_newest(&manifest) => {
                self.fenced = true;
                self.restarts.failed(now_ms, &text)
            }
            // It does not pass by itself.
            ErrorKind::Invalid | ErrorKind::UserCode | ErrorKind::Limit => return Err(error),
        };
        match decided {
            Restart::After(ms) => Ok(self.starts_again(Duration::from_millis(ms), text, now)),
            Restart::GiveUp(_) => Err(error),
        }
    }

    /// It is started again after so long, since this went wrong: when.
    fn starts_again(&self, after: Duration, why: String, now: Timestamp) -> Timestamp {
        self.set(JobState::Restarting, Some(why));
        let mut shared = lock(&self.job.shared);
        shared.view.restarts += 1;
        let restarts = shared.view.restarts;
        drop(shared);
        let ms = after.as_millis();
        self.say(Level::Warn, &format!("it is started again in {ms} ms (restart {restarts})"));
        Timestamp(now.0.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX)))
    }

    /// Whether its attempt, if it had one, is the newest; false also where that can't be found out.
    fn is_newest(&self, manifest: &Manifest) -> bool {
        let Some((generation, settings)) = self.generation.zip(manifest.checkpoints.as_ref()) else { return true };
        let name = lock(&self.job.shared).view.name.clone();
        let store = self.coordinator.environment.store(settings, &name);
        store.and_then(|store| store.newest_generation()).is_ok_and(|newest| newest == Some(generation))
    }

    /// It can't be gone on with: another coordinator may.
    fn not_recovered(&mut self, why: &Error) {
        if !self.job.not_recovered(why) {
            return self.end(Ok(Ending::Cancelled));
        }
        self.phase = Phase::Over;
        self.say(Level::Error, "this coordinator can't go on with it");
        self.coordinator.workers.returned(self.job.id());
    }

    fn end(&mut self, ended: Result<Ending>) {
        // Another coordinator has the job now, and keeps how it ends.
        let is_ours = !matches!(&ended, Err(error) if error.kind() == ErrorKind::Fenced);
        let (state, reason) = match ended {
            Ok(Ending::Finished | Ending::Stopped) => (JobState::Finished, None),
            Ok(Ending::Cancelled) => (JobState::Canceled, None),
            Err(error) => (JobState::Failed, Some(error.text())),
        };
        let mut end = self.job.view();
        (end.state, end.reason, end.ended_ms) = (state, reason, Some(self.coordinator.environment.now_ms()));
        match is_ours {
            true => self.keep_end(Box::new(end)),
            false => self.ended(end),
        }
    }

    /// It is not over before that is kept: another coordinator would go on with it.
    fn keep_end(&mut self, end: Box<JobView>) {
        let Err(error) = self.coordinator.storage.keep_end(&end) else { return self.ended(*end) };
        let text = format!("how it ended could not be kept: {error}");
        self.say(Level::Warn, &text);
        lock(&self.job.shared).view.reason = Some(text);
        let now = self.coordinator.environment.now_ms();
        self.phase = Phase::Ending(end, Timestamp(now), Timestamp(now.saturating_add(KEEP_AGAIN_MS)));
    }

    fn ended(&mut self, end: JobView) {
        self.phase = Phase::Over;
        // Before it is over: then nothing more comes.
        self.say(Level::Info, &format!("it is over: {}", end.state));
        let mut shared = lock(&self.job.shared);
        (shared.view, shared.saving) = (end, None);
        drop(shared);
        self.job.changed.notify_all();
        self.coordinator.ended(&self.job);
    }

    /// Says something in the job's log.
    fn say(&self, level: Level, text: &str) {
        self.job.log().say(self.coordinator.environment.now_ms(), level, text);
    }

    fn set(&self, state: JobState, reason: Option<String>) {
        let mut shared = lock(&self.job.shared);
        if shared.view.state != JobState::Cancelling {
            (shared.view.state, shared.view.reason) = (state, reason);
        }
    }
}
