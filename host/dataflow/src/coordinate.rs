//! What a running job needs beside its slots: finding splits, taking checkpoints, committing what sinks prepared.
//!
//! Whoever drives the job (`driver`: a thread of its own; `stepper`: the test) calls [`Coordinator::tick`] when
//! something is due, and hands over what tasks say. Calls may block on the store and on connectors, so they are made
//! off the slots. When to take a checkpoint, and what to do about one, is decided in `tidemill_checkpoint::protocol`;
//! here it is carried out.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use tidemill_checkpoint::manifest::{Manifest, ManifestKind};
use tidemill_checkpoint::protocol::{self, Decision, Fact, Participant, Purpose, Settings};
use tidemill_checkpoint::{Checkpoint, Claim, Owner, Store, savepoint};
use tidemill_core::connector::Committable;
use tidemill_core::failpoint::Failpoint;
use tidemill_core::ids::{Epoch, NodeId, SubtaskId};
use tidemill_core::snapshot::SnapshotKind;
use tidemill_core::time::{Clock, SteadyClock, Timestamp};
use tidemill_core::{Error, ErrorKind, Result};

use crate::collect::{Collector, Noted, TaskId};
use crate::commit::commit;
use crate::element::Barrier;
use crate::job::JobSpec;
use crate::signals::Signals;
use crate::slice::{CommitTarget, Committers, Prepared, committers};
use crate::snapshot::{TaskEvent, Written};
use crate::splits::{Enumeration, Found};

/// What is needed to take checkpoints.
pub struct Checkpoints {
    /// Where they are kept.
    pub store: Store,
    /// The attempt at the job that owns the store's log.
    pub owner: Owner,
    /// When one is taken.
    pub settings: Settings,
    /// How many are kept.
    pub retained: usize,
}

/// Who is told about a savepoint: where it is, or why there is none.
pub type SavepointAnswer = Sender<Result<String>>;

/// Who is told about a checkpoint that was asked for: its number, or why there is none.
pub type CheckpointAnswer = Sender<Result<u64>>;

/// A job of which a savepoint is wanted.
pub struct SavepointRequest {
    /// The folder (or the URL) that is to be the savepoint.
    pub location: String,
    /// Told when it is there.
    pub answer: SavepointAnswer,
}

/// Figures of the checkpoints so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckpointFigures {
    /// How many are complete.
    pub completed: u64,
    /// How many were given up, and why the latest was.
    pub failed: u64,
    /// Why the latest one was given up.
    pub failure: Option<String>,
    /// The number of the newest complete one.
    pub newest: Option<u64>,
    /// From its trigger to its commit, in milliseconds.
    pub duration_ms: u64,
    /// What its files have together, in bytes.
    pub bytes: u64,
    /// How many of these bytes were written for it.
    pub new_bytes: u64,
    /// From its trigger until its barrier had passed the last task, in milliseconds.
    pub alignment_ms: u64,
    /// Whether it turned unaligned.
    pub unaligned: bool,
    /// How many of its bytes keep what was in flight.
    pub in_flight_bytes: u64,
    /// How many of the complete ones turned unaligned.
    pub completed_unaligned: u64,
}

/// See the module.
pub struct Coordinator {
    clock: SteadyClock,
    enumerations: Vec<Enumeration>,
    committers: Committers,
    collector: Collector,
    signals: Arc<Signals>,
    /// `None`: the job runs without checkpoints.
    checkpoints: Option<Checkpointing>,
}

struct Checkpointing {
    protocol: protocol::Coordinator,
    store: Store,
    owner: Owner,
    retained: usize,
    /// The savepoints that are wanted.
    savepoints: Vec<WantedSavepoint>,
    /// Who wants a checkpoint, and which it is, once that is triggered: not one that was under way when they asked.
    wanted: Vec<(CheckpointAnswer, Option<u64>)>,
    /// The number and manifest of the checkpoint that is claimed and not committed yet.
    claimed: Option<(u64, Manifest)>,
    triggered: Timestamp,
    /// When the last task so far passed its barrier.
    passed: Timestamp,
    /// Whether its barriers overtake.
    unaligned: bool,
    /// The files of the one before, by path.
    known: HashSet<String>,
    figures: CheckpointFigures,
    /// How the job ended, once it did.
    finished: Option<ManifestKind>,
}

/// A savepoint that was asked for and not answered yet.
struct WantedSavepoint {
    request: SavepointRequest,
    /// Which checkpoint it is, once that is triggered: not one that was under way when it was asked for.
    taken: Option<u64>,
    /// Whether the job is to be over with it.
    stops: bool,
}

impl WantedSavepoint {
    fn new(request: SavepointRequest, stops: bool) -> Self {
        Self { request, taken: None, stops }
    }
}

impl Coordinator {
    /// Of a job whose slots are about to run, or run already and have passed barriers up to this one. The clock may be set:
    /// deadlines stay what they are.
    pub fn new(
        clock: Arc<dyn Clock>,
        enumerations: Vec<Enumeration>,
        committers: Committers,
        collector: Collector,
        signals: Arc<Signals>,
        checkpoints: Option<Checkpoints>,
        passed: Epoch,
    ) -> Self {
        let clock = SteadyClock::new(clock);
        let checkpoints = checkpoints.map(|Checkpoints { store, owner, settings, retained }| {
            let restored = owner.restored().map_or(0, |restored| restored.manifest.epoch);
            let first_epoch = restored.max(passed.0) + 1;
            let now = clock.now();
            Checkpointing {
                protocol: protocol::Coordinator::new(settings, collector.tasks() as u32, first_epoch, unsigned(now)),
                store,
                owner,
                retained,
                savepoints: Vec::new(),
                wanted: Vec::new(),
                claimed: None,
                triggered: now,
                passed: now,
                unaligned: false,
                known: HashSet::new(),
                figures: CheckpointFigures::default(),
                finished: None,
            }
        });
        Self { clock, enumerations, committers, collector, signals, checkpoints }
    }

    /// Does what is due; when something is due next.
    pub fn tick(&mut self) -> Result<Option<Timestamp>> {
        for enumeration in &mut self.enumerations {
            let now = self.clock.now();
            if enumeration.due().is_some_and(|due| due <= now) {
                enumeration.discover(now)?;
            }
        }
        self.decide(Fact::Tick)?;
        let splits = self.enumerations.iter().filter_map(Enumeration::due).min();
        let checkpoint = self.checkpoints.as_ref().and_then(|c| c.protocol.wake_at_ms()).map(signed);
        Ok(splits.into_iter().chain(checkpoint).min().map(|due| self.clock.below(due)))
    }

    /// Takes note of what a task says. What was taken out of it to be written is handed to [`Coordinator::written`] later.
    pub fn note(&mut self, event: TaskEvent) -> Result<()> {
        if let TaskEvent::Passed(snapshot) = &event
            && let Some(checkpoints) = &mut self.checkpoints
            && checkpoints.protocol.in_flight().is_some_and(|(epoch, _)| epoch == snapshot.epoch.0)
        {
            checkpoints.passed = self.clock.now();
        }
        match self.collector.note(event)? {
            Noted::Acknowledged(task, epoch) => {
                self.decide(Fact::Acknowledged { by: participant(task), epoch: epoch.0 })
            }
            Noted::Ended(task) => self.decide(Fact::Ended(participant(task))),
            Noted::Nothing => Ok(()),
        }
    }

    /// What a task froze is written, or could not be.
    pub fn written(&mut self, subtask: &SubtaskId, epoch: Epoch, outcome: Result<Written>) -> Result<()> {
        let task = self.collector.task(subtask)?;
        let (by, number) = (participant(task), epoch.0);
        let (fact, written) = match outcome {
            Ok(written) => (Fact::Acknowledged { by, epoch: number }, Some(written)),
            Err(error) => (Fact::Declined { by, epoch: number, reason: error.to_string() }, None),
        };
        let ended = self.collector.written(task, epoch, written);
        self.decide(fact)?;
        if ended { self.decide(Fact::Ended(by)) } else { Ok(()) }
    }

    /// Whether the job takes checkpoints.
    pub fn takes_checkpoints(&self) -> bool {
        self.checkpoints.is_some()
    }

    /// Ends the job with a checkpoint, which is also the savepoint that is asked for, if one is.
    pub fn stop(&mut self, savepoint: Option<SavepointRequest>) -> Result<()> {
        let wanted = savepoint.is_some();
        if let Some(checkpoints) = &mut self.checkpoints {
            checkpoints.savepoints.extend(savepoint.map(|request| WantedSavepoint::new(request, true)));
        }
        self.decide(Fact::StopRequested { savepoint: wanted })
    }

    /// Takes a checkpoint now.
    pub fn checkpoint(&mut self, answer: CheckpointAnswer) -> Result<()> {
        match &mut self.checkpoints {
            Some(checkpoints) => checkpoints.wanted.push((answer, None)),
            // Who does not wait for the answer does not need it.
            None => _ = answer.send(Err(without_checkpoints("one"))),
        }
        self.decide(Fact::CheckpointRequested)
    }

    /// Takes a savepoint while the job goes on.
    pub fn savepoint(&mut self, request: SavepointRequest) -> Result<()> {
        match &mut self.checkpoints {
            Some(checkpoints) => checkpoints.savepoints.push(WantedSavepoint::new(request, false)),
            None => _ = request.answer.send(Err(without_checkpoints("a savepoint"))),
        }
        self.decide(Fact::SavepointRequested)
    }

    /// Figures of the checkpoints, if the job takes any.
    pub fn figures(&self) -> Option<&CheckpointFigures> {
        self.checkpoints.as_ref().map(|checkpoints| &checkpoints.figures)
    }

    /// Whether the last checkpoint is complete, if there are any.
    pub fn is_finished(&self) -> bool {
        self.checkpoints.as_ref().is_none_or(|checkpoints| checkpoints.finished.is_some())
    }

    /// Every task has ended, and everything that they said was noted: commits what is left. Whether the job was stopped
    /// before its input ended.
    pub fn finish(&mut self) -> Result<bool> {
        match &self.checkpoints {
            None => {
                self.collector.begin(Epoch(u64::MAX - 1), HashMap::new());
                let prepared = self.collector.claimed();
                commit(&mut self.committers, prepared)?;
                Ok(false)
            }
            Some(Checkpointing { finished: Some(kind), .. }) => Ok(*kind == ManifestKind::Stopped),
            Some(_) => Err(Error::internal("all tasks ended, and the last checkpoint is not complete")),
        }
    }

    /// Carries out what a fact leads to.
    fn decide(&mut self, fact: Fact) -> Result<()> {
        let mut facts = vec![fact];
        while let Some(fact) = facts.pop() {
            let now = self.clock.now();
            let Some(checkpoints) = &mut self.checkpoints else { return Ok(()) };
            for decision in checkpoints.protocol.handle(unsigned(now), fact) {
                facts.extend(self.carry_out(decision, now)?);
            }
        }
        Ok(())
    }

    /// Does what was decided; what came of it.
    fn carry_out(&mut self, decision: Decision, now: Timestamp) -> Result<Option<Fact>> {
        match decision {
            Decision::Trigger { epoch, purpose } => self.trigger(epoch, purpose, now).map(|()| None),
            Decision::Overtake { epoch } => {
                Failpoint::OvertakeDue.reach();
                if let Some(checkpoints) = &mut self.checkpoints {
                    checkpoints.unaligned = true;
                }
                self.signals.overtake(Epoch(epoch));
                Failpoint::OvertakeSaid.reach();
                Ok(None)
            }
            Decision::Claim { epoch, kind } => self.claim(epoch, kind, now).map(Some),
            Decision::Commit { epoch } => Ok(Some(match self.commit() {
                Ok(()) => Fact::Committed { epoch },
                Err(error) => Fact::CommitFailed { epoch, reason: error.to_string() },
            })),
            Decision::Completed { epoch, purpose } => self.completed(epoch, purpose, now).map(|()| None),
            Decision::Abort { epoch, purpose, reason } => self.aborted(epoch, purpose, reason).map(|()| None),
            Decision::FailJob { reason } => Err(Error::new(ErrorKind::Retry, reason)),
            Decision::Fenced { by } => Err(fenced(by)),
            Decision::Finished { kind } => {
                Failpoint::LastCommitted.reach();
                if let Some(checkpoints) = &mut self.checkpoints {
                    checkpoints.finished = Some(kind);
                }
                Ok(None)
            }
        }
    }

    fn trigger(&mut self, epoch: u64, purpose: Purpose, now: Timestamp) -> Result<()> {
        let (kind, stops) = match purpose {
            Purpose::Periodic => (SnapshotKind::Incremental, false),
            Purpose::Savepoint => (SnapshotKind::Portable, false),
            Purpose::Stop { savepoint: false } => (SnapshotKind::Incremental, true),
            Purpose::Stop { savepoint: true } => (SnapshotKind::Portable, true),
        };
        let barrier = Barrier { epoch: Epoch(epoch), kind, stops };
        Failpoint::BarrierDue.reach();
        let found = self.enumerations.iter_mut().map(|e| {
            let found = e.checkpoint(barrier)?;
            Failpoint::BarrierSent.reach();
            Ok((e.node(), found))
        });
        let found = found.collect::<Result<HashMap<NodeId, Found>>>()?;
        self.collector.begin(barrier.epoch, found);
        if let Some(checkpoints) = &mut self.checkpoints {
            (checkpoints.triggered, checkpoints.passed, checkpoints.unaligned) = (now, now, false);
            match purpose {
                Purpose::Periodic => {
                    checkpoints.wanted.iter_mut().for_each(|(_, taken)| *taken = taken.or(Some(epoch)));
                }
                Purpose::Savepoint | Purpose::Stop { savepoint: true } => {
                    checkpoints.savepoints.iter_mut().for_each(|of| of.taken = of.taken.or(Some(epoch)));
                }
                Purpose::Stop { savepoint: false } => {}
            }
        }
        Ok(())
    }

    fn claim(&mut self, epoch: u64, kind: ManifestKind, now: Timestamp) -> Result<Fact> {
        let Some(checkpoints) = &mut self.checkpoints else { return Err(Error::internal("a claim without a store")) };
        if kind == ManifestKind::Finished {
            // Without what was found, who goes on from here would find it again.
            let found = self.enumerations.iter().map(|e| Ok((e.node(), e.snapshot()?)));
            let found = found.collect::<Result<HashMap<NodeId, Found>>>()?;
            self.collector.begin(Epoch(epoch), found);
            (checkpoints.triggered, checkpoints.passed, checkpoints.unaligned) = (now, now, false);
        }
        let manifest = self.collector.manifest(kind, checkpoints.owner.generation(), self.clock.below(now).0);
        Ok(match checkpoints.owner.claim(manifest.clone()) {
            Ok(Claim::Won(number)) => {
                checkpoints.claimed = Some((number, manifest));
                Fact::ClaimWon { epoch }
            }
            Ok(Claim::Fenced { by }) => Fact::Fenced { by },
            Ok(Claim::InDoubt(error)) => Fact::ClaimInDoubt { epoch, reason: error.to_string() },
            Err(error) => Fact::ClaimFailed { epoch, reason: error.to_string() },
        })
    }

    /// Commits what was prepared for the claimed checkpoint, and marks it.
    fn commit(&mut self) -> Result<()> {
        Failpoint::CommitDue.reach();
        commit(&mut self.committers, self.collector.claimed())?;
        Failpoint::CommitDone.reach();
        let Some(checkpoints) = &mut self.checkpoints else { return Ok(()) };
        if let Some(number) = checkpoints.owner.uncommitted() {
            checkpoints.owner.mark_committed(number)?;
            Failpoint::CommitMarked.reach();
        }
        Ok(())
    }

    fn completed(&mut self, epoch: u64, purpose: Option<Purpose>, now: Timestamp) -> Result<()> {
        for enumeration in &mut self.enumerations {
            let unfinished = self.collector.unfinished(enumeration.node());
            enumeration.completed(Epoch(epoch), unfinished);
        }
        self.signals.complete(Epoch(epoch));
        let Some(checkpoints) = &mut self.checkpoints else { return Ok(()) };
        let Some((number, manifest)) = checkpoints.claimed.take() else { return Ok(()) };
        let figures = &mut checkpoints.figures;
        figures.completed += 1;
        figures.newest = Some(number);
        let since = |at: Timestamp| unsigned(Timestamp(at.0.saturating_sub(checkpoints.triggered.0)));
        figures.duration_ms = since(now);
        figures.alignment_ms = since(checkpoints.passed);
        figures.unaligned = checkpoints.unaligned;
        figures.completed_unaligned += u64::from(checkpoints.unaligned);
        figures.in_flight_bytes = manifest.in_flight_bytes();
        figures.bytes = manifest.files().map(|file| file.bytes).sum();
        let new = manifest.files().filter(|file| !checkpoints.known.contains(&file.path));
        figures.new_bytes = new.map(|file| file.bytes).sum();
        checkpoints.known = manifest.files().map(|file| file.path.clone()).collect();
        for (answer, _) in checkpoints.wanted.extract_if(.., |(_, taken)| *taken == Some(epoch)) {
            _ = answer.send(Ok(number));
        }
        if matches!(purpose, Some(Purpose::Savepoint | Purpose::Stop { savepoint: true })) {
            let checkpoint = Checkpoint { number, manifest, committed: true };
            let at_ms = self.clock.below(now).0;
            checkpoints.save(epoch, &checkpoint, at_ms)?;
        }
        // What can't be deleted now is deleted after the next one.
        if let Err(error) = checkpoints.owner.collect_garbage(checkpoints.retained) {
            tracing::warn!("old checkpoints were not deleted: {error}");
        }
        Ok(())
    }

    fn aborted(&mut self, epoch: u64, purpose: Purpose, reason: String) -> Result<()> {
        let Some(checkpoints) = &mut self.checkpoints else { return Ok(()) };
        tracing::warn!("checkpoint {epoch} was given up: {reason}");
        let message = match purpose {
            Purpose::Periodic => None,
            Purpose::Savepoint => Some("the savepoint was given up"),
            Purpose::Stop { .. } => Some("the job could not be stopped with a checkpoint"),
        };
        if let Some(message) = message {
            let error = Error::new(ErrorKind::Retry, format!("{message}: {reason}"));
            for wanted in checkpoints.savepoints.extract_if(.., |of| of.taken == Some(epoch)) {
                _ = wanted.request.answer.send(Err(error.clone()));
            }
            if matches!(purpose, Purpose::Stop { .. }) {
                // Its sources have ended already.
                return Err(error);
            }
        }
        for (answer, _) in checkpoints.wanted.extract_if(.., |(_, taken)| *taken == Some(epoch)) {
            _ = answer.send(Err(Error::new(ErrorKind::Retry, format!("the checkpoint was given up: {reason}"))));
        }
        checkpoints.figures.failed += 1;
        checkpoints.figures.failure = Some(reason);
        Ok(())
    }
}

impl Checkpointing {
    /// Writes the savepoints that this checkpoint is, and ends the job with the one that it is to be over with.
    fn save(&mut self, epoch: u64, checkpoint: &Checkpoint, at_ms: i64) -> Result<()> {
        for WantedSavepoint { request, stops, .. } in self.savepoints.extract_if(.., |of| of.taken == Some(epoch)) {
            let SavepointRequest { location, answer } = request;
            let written = savepoint::write(&location, &self.store, checkpoint);
            let written = match written {
                Ok(()) if stops => match self.owner.saved(&location, at_ms) {
                    Ok(Claim::Won(_)) => Ok(()),
                    Ok(Claim::Fenced { by }) => Err((fenced(by), true)),
                    Ok(Claim::InDoubt(error)) => Err((error, true)),
                    Err(error) => Err((error, false)),
                },
                written => written.map_err(|error| (error, false)),
            };
            // Who does not wait for the answer does not need it.
            _ = answer.send(written.clone().map(|()| location).map_err(|(error, _)| error));
            if let Err((error, true)) = written {
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Before anything runs: commits what was prepared for the checkpoint from which the job goes on, unless that is known to
/// be committed.
pub fn recover(committers: &mut Committers, checkpoints: Option<&mut Checkpoints>) -> Result<()> {
    let Some(Checkpoints { owner, .. }) = checkpoints else { return Ok(()) };
    let Some((number, restored)) = owner.uncommitted().zip(owner.restored()) else { return Ok(()) };
    Failpoint::RecoverUncommitted.reach();
    commit(committers, prepared_in(&restored.manifest))?;
    Failpoint::RecoverCommitted.reach();
    owner.mark_committed(number)
}

/// A job that ended before, but perhaps without committing its last checkpoint: commits it.
pub fn commit_ended(spec: &JobSpec, store: &Store, checkpoint: &Checkpoint) -> Result<()> {
    commit(&mut committers(spec)?, prepared_in(&checkpoint.manifest))?;
    Failpoint::EndedCommitted.reach();
    store.mark_committed(checkpoint.number)
}

/// Another process has begun a newer attempt at the job, this one if that is known: what is left to an older one is to stop.
pub fn fenced(by: Option<u64>) -> Error {
    let other = by.map_or_else(String::new, |generation| format!(" (attempt {generation})"));
    let message = format!("another process runs this job{other}; this one has stopped and committed nothing more");
    Error::new(ErrorKind::Fenced, message)
        .mend("Run a job in one process at a time, or give the second one another name or location of checkpoints.")
}

fn without_checkpoints(what: &str) -> Error {
    Error::invalid(format!("the job runs without checkpoints, so it can't take {what}"))
        .mend("Give tidemill.toml a [checkpoints] section with a location.")
}

/// What a manifest says was prepared.
fn prepared_in(manifest: &Manifest) -> Vec<Prepared> {
    let prepared = manifest.committables.iter().map(|of| Prepared {
        target: of.sink.clone().map_or(CommitTarget::DeadLetters, CommitTarget::Sink),
        committables: of.committables.iter().map(|bytes| Committable(bytes.0.clone())).collect(),
    });
    prepared.collect()
}

fn participant(task: TaskId) -> Participant {
    Participant(task.0 as u32)
}

/// The protocol counts from 1970 on.
fn unsigned(time: Timestamp) -> u64 {
    u64::try_from(time.0).unwrap_or(0)
}

fn signed(ms: u64) -> Timestamp {
    Timestamp(i64::try_from(ms).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::atomic::{AtomicI64, Ordering};

    use tidemill_checkpoint::blobs::Memory;
    use tidemill_checkpoint::{Begun, Start};
    use tidemill_core::connector::{Discovery, Split, SplitEnumerator, SplitId, Waker};
    use tidemill_core::ids::{MaxParallelism, SubtaskIndex};
    use tidemill_core::metrics::TaskMetrics;
    use tidemill_core::time::Watermark;

    use super::*;
    use crate::job::TaskStatus;
    use crate::snapshot::{Frozen, TaskSnapshot};
    use crate::splits::{Mailbox, News};

    fn split() -> Split {
        Split { id: SplitId("a".to_owned()), description: Vec::new() }
    }

    /// Finds the same split at each look.
    struct Same;

    impl SplitEnumerator for Same {
        fn discover(&mut self) -> Result<Discovery> {
            Ok(Discovery { splits: vec![split()], again_after_ms: Some(1) })
        }

        fn snapshot(&self) -> Result<Vec<u8>> {
            Ok(Vec::new())
        }

        fn restore(&mut self, _snapshot: &[u8]) -> Result<()> {
            Ok(())
        }
    }

    #[derive(Default)]
    struct HandClock(AtomicI64);

    impl Clock for HandClock {
        fn now(&self) -> Timestamp {
            Timestamp(self.0.load(Ordering::SeqCst))
        }
    }

    #[test]
    fn who_gives_splits_out_hears_from_each_checkpoint_which_are_unfinished() {
        let clock = Arc::new(HandClock::default());
        let reader = Arc::new(Mailbox::new(Waker::new(|| ())));
        let enumeration = Enumeration::new(NodeId(0), Box::new(Same), vec![reader.clone()], BTreeSet::new());
        let (job, operator) = ("job".to_owned(), "in".to_owned());
        let subtask = Arc::new(SubtaskId { job, node: NodeId(0), operator, index: SubtaskIndex(0), parallelism: 1 });
        let (uid, metrics) = ("in".to_owned(), Arc::new(TaskMetrics::default()));
        let task = TaskStatus { subtask: subtask.clone(), uid, kind: "source", metrics };
        let collector = Collector::new("job", MaxParallelism::new(8).unwrap(), &[task], Vec::new());
        let store = Store::with(Arc::new(Memory::default()), "job", Arc::new(|| "nonce".to_owned()));
        let Begun::Run(owner) = store.begin(&Start::Anew, 0).unwrap() else { panic!("nothing to run") };
        let settings = Settings { interval_ms: Some(10), ..Settings::default() };
        let checkpoints = Checkpoints { store, owner: *owner, settings, retained: 1 };
        let (signals, committers) = (Arc::new(Signals::new(Vec::new())), BTreeMap::new());
        let (enumerations, passed) = (vec![enumeration], Epoch(0));
        let mut coordinator =
            Coordinator::new(clock.clone(), enumerations, committers, collector, signals, Some(checkpoints), passed);
        let mut given = |unfinished: bool| {
            clock.0.fetch_add(10, Ordering::SeqCst);
            coordinator.tick().unwrap();
            let (mut given, mut epoch) = (0, None);
            while let Some(news) = reader.take() {
                match news {
                    News::Splits(splits) => given += splits.len(),
                    News::Barrier(barrier) => epoch = Some(barrier.epoch),
                    _ => {}
                }
            }
            let snapshot = TaskSnapshot {
                subtask: subtask.clone(),
                epoch: epoch.unwrap(),
                watermark: Watermark::MIN,
                splits: unfinished.then(|| (split(), Watermark::MIN)).into_iter().collect(),
                sink: None,
                prepared: None,
                frozen: Frozen::Nothing,
            };
            coordinator.note(TaskEvent::Passed(snapshot)).unwrap();
            given
        };
        // It is given; it is being read; it was read by the third look, so that it is a new one.
        assert_eq!([given(true), given(false), given(true), given(true)], [1, 0, 1, 0]);
    }
}
