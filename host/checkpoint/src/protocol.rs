//! When a checkpoint is taken, and what is done about it: the coordinator's decisions. Pure: facts in, decisions out; the
//! caller executes them in order, and reports what came of each as further facts.
//!
//! ```text
//! trigger -> acknowledged by all -> claim -> won -> commit -> committed -> completed
//!    |               |                |
//!    +-- declined, timed out ---------+-- failed: abort
//! ```
//!
//! In between, a periodic checkpoint that is not acknowledged in time turns *unaligned*, if the settings allow it: its
//! barriers then overtake what stands before them. Nothing else about it changes.
//!
//! Invariants: a checkpoint is claimed only when every participant that has not ended acknowledged it, at most once, and
//! committed only after its claim was won. The next one is not triggered before it is committed. After `Fenced`,
//! `FailJob` and `Finished` nothing is decided any more.
//!
//! A *participant* is whoever takes part in checkpoints as one: a subtask or a slot, as the caller likes.

use std::collections::BTreeSet;

use crate::manifest::ManifestKind;

/// When checkpoints are taken. The names and defaults are Flink's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// From one trigger to the next. `None`: only savepoints, and the last one.
    pub interval_ms: Option<u64>,
    /// At least this long from the end of one to the trigger of the next, so that the job gets on in between.
    pub min_pause_ms: u64,
    /// A checkpoint that is not acknowledged by then is aborted.
    pub timeout_ms: u64,
    /// How many checkpoints in a row may fail before the job does.
    pub tolerable_failures: u32,
    /// A checkpoint that is not acknowledged by then turns unaligned; 0: at once. `None`: never. Savepoints, and the one
    /// that stops a job, never do.
    pub aligned_timeout_ms: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interval_ms: None,
            min_pause_ms: 0,
            timeout_ms: 600_000,
            tolerable_failures: 0,
            aligned_timeout_ms: None,
        }
    }
}

/// Who takes part, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Participant(pub u32);

/// What a checkpoint is triggered for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// By the interval, or earlier because a user asked for it.
    Periodic,
    /// Because a user wants to keep it: state in the portable format.
    Savepoint,
    /// To stop the job after it: sources read nothing after the barrier until it is aborted.
    Stop {
        /// Whether a user wants to keep it too.
        savepoint: bool,
    },
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Fact {
    /// Time passed; see [`Coordinator::wake_at_ms`].
    Tick,
    /// A participant's part of the checkpoint is durable.
    Acknowledged {
        /// Whose.
        by: Participant,
        /// Which.
        epoch: u64,
    },
    /// A participant could not do its part.
    Declined {
        /// Whose.
        by: Participant,
        /// Which.
        epoch: u64,
        /// Why.
        reason: String,
    },
    /// A participant came to the end of its input; its last state is durable and stands for its part of all checkpoints
    /// that it did not acknowledge.
    Ended(Participant),
    /// The claim was won.
    ClaimWon {
        /// Which.
        epoch: u64,
    },
    /// Another attempt owns the job.
    Fenced {
        /// The other's generation, if that is known.
        by: Option<u64>,
    },
    /// The claim failed: the checkpoint is not complete and will not be.
    ClaimFailed {
        /// Which.
        epoch: u64,
        /// Why.
        reason: String,
    },
    /// Whether the claim was won can't be found out.
    ClaimInDoubt {
        /// Which.
        epoch: u64,
        /// Why.
        reason: String,
    },
    /// All that the sinks prepared for the checkpoint is committed, and that is noted.
    Committed {
        /// Which.
        epoch: u64,
    },
    /// A commit failed, after the repetitions that seemed worth while.
    CommitFailed {
        /// Which.
        epoch: u64,
        /// Why.
        reason: String,
    },
    /// The user wants a checkpoint before the interval is over.
    CheckpointRequested,
    /// The user wants a savepoint.
    SavepointRequested,
    /// The user wants the job to stop.
    StopRequested {
        /// With a savepoint.
        savepoint: bool,
    },
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Send barriers.
    Trigger {
        /// With this epoch.
        epoch: u64,
        /// For this.
        purpose: Purpose,
    },
    /// Tell the participants that its barriers overtake what stands before them.
    Overtake {
        /// Which.
        epoch: u64,
    },
    /// Write the manifest, of what was acknowledged and of the last state of those that ended, and claim it.
    Claim {
        /// Which.
        epoch: u64,
        /// As what.
        kind: ManifestKind,
    },
    /// Commit what the sinks prepared for it, mark it committed, and then answer `Committed`.
    Commit {
        /// Which.
        epoch: u64,
    },
    /// It is complete and committed: tell the sources, collect garbage, copy the savepoint if it is one.
    Completed {
        /// Which.
        epoch: u64,
        /// What it was triggered for. `None`: it was the last one, of a job whose input has ended.
        purpose: Option<Purpose>,
    },
    /// Tell the participants to forget it, and whoever requested it. What sinks prepared for it belongs to the next one.
    Abort {
        /// Which.
        epoch: u64,
        /// What it was triggered for.
        purpose: Purpose,
        /// Why.
        reason: String,
    },
    /// Stop all tasks without committing anything; whether the job is restarted is another decision.
    FailJob {
        /// Why.
        reason: String,
    },
    /// Stop all tasks at once and commit nothing, without a restart: another attempt owns the job.
    Fenced {
        /// Its generation, if that is known.
        by: Option<u64>,
    },
    /// The job ended, and all its output is committed.
    Finished {
        /// `Stopped` or `Finished`.
        kind: ManifestKind,
    },
}

/// Decides about the checkpoints of one attempt at a job.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Coordinator {
    settings: Settings,
    participants: u32,
    ended: BTreeSet<Participant>,
    phase: Phase,
    next_epoch: u64,
    /// When the interval is over.
    due_ms: Option<u64>,
    /// When the pause is over.
    rested_ms: u64,
    failures_in_a_row: u32,
    /// One is enough: who asks meanwhile gets the same.
    checkpoint_wanted: bool,
    /// Likewise.
    savepoint_wanted: bool,
    stop_wanted: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Idle,
    Collecting {
        epoch: u64,
        purpose: Purpose,
        pending: BTreeSet<Participant>,
        since_ms: u64,
        /// When it turns unaligned, if it is to and has not yet.
        overtakes_ms: Option<u64>,
    },
    Claiming {
        epoch: u64,
        purpose: Option<Purpose>,
        kind: ManifestKind,
    },
    Committing {
        epoch: u64,
        purpose: Option<Purpose>,
        kind: ManifestKind,
    },
    Over,
}

impl Coordinator {
    /// For participants 0 to `participants` - 1. `first_epoch` is the epoch after that of the checkpoint that the
    /// attempt goes on from.
    pub fn new(settings: Settings, participants: u32, first_epoch: u64, now_ms: u64) -> Self {
        let due_ms = settings.interval_ms.map(|interval| now_ms.saturating_add(interval));
        Self {
            settings,
            participants,
            ended: BTreeSet::new(),
            phase: Phase::Idle,
            next_epoch: first_epoch.max(1),
            due_ms,
            rested_ms: now_ms,
            failures_in_a_row: 0,
            checkpoint_wanted: false,
            savepoint_wanted: false,
            stop_wanted: None,
        }
    }

    /// Takes a fact in. Facts about epochs that are over are nothing new.
    pub fn handle(&mut self, now_ms: u64, fact: Fact) -> Vec<Decision> {
        let mut decisions = Vec::new();
        if self.is_over() {
            return decisions;
        }
        match fact {
            Fact::Tick => self.time_out(now_ms, &mut decisions),
            Fact::Acknowledged { by, epoch } => self.acknowledged(by, epoch),
            Fact::Declined { by, epoch, reason } => self.declined(now_ms, by, epoch, &reason, &mut decisions),
            Fact::Ended(by) => self.ended(by),
            Fact::ClaimWon { epoch } => self.claim_won(epoch, &mut decisions),
            Fact::Fenced { by } => self.end(Decision::Fenced { by }, &mut decisions),
            Fact::ClaimFailed { epoch, reason } => self.claim_failed(now_ms, epoch, reason, &mut decisions),
            Fact::ClaimInDoubt { epoch, reason } => {
                let reason = format!("whether checkpoint {epoch} is complete can't be found out: {reason}");
                self.end(Decision::FailJob { reason }, &mut decisions);
            }
            Fact::Committed { epoch } => self.committed(now_ms, epoch, &mut decisions),
            Fact::CommitFailed { epoch, reason } => {
                if matches!(self.phase, Phase::Committing { epoch: e, .. } if e == epoch) {
                    let reason = format!("the output of checkpoint {epoch} can't be committed: {reason}");
                    self.end(Decision::FailJob { reason }, &mut decisions);
                }
            }
            Fact::CheckpointRequested => self.checkpoint_wanted = true,
            Fact::SavepointRequested => self.savepoint_wanted = true,
            Fact::StopRequested { savepoint } => {
                self.stop_wanted = Some(savepoint || self.stop_wanted.unwrap_or_default());
            }
        }
        self.go_on(now_ms, &mut decisions);
        decisions
    }

    /// When a `Tick` is due, whatever else happens. `None`: not before something else happens.
    pub fn wake_at_ms(&self) -> Option<u64> {
        match &self.phase {
            Phase::Idle => self.due_ms.map(|due| due.max(self.rested_ms)),
            Phase::Collecting { since_ms, overtakes_ms, .. } => {
                overtakes_ms.iter().copied().chain([since_ms.saturating_add(self.settings.timeout_ms)]).min()
            }
            Phase::Claiming { .. } | Phase::Committing { .. } | Phase::Over => None,
        }
    }

    /// Which checkpoint is being taken, and how many participants have yet to acknowledge it.
    pub fn in_flight(&self) -> Option<(u64, usize)> {
        match &self.phase {
            Phase::Collecting { epoch, pending, .. } => Some((*epoch, pending.len())),
            Phase::Claiming { epoch, .. } | Phase::Committing { epoch, .. } => Some((*epoch, 0)),
            Phase::Idle | Phase::Over => None,
        }
    }

    /// Whether nothing will be decided any more.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    fn acknowledged(&mut self, by: Participant, acknowledged: u64) {
        if let Phase::Collecting { epoch, pending, .. } = &mut self.phase
            && *epoch == acknowledged
        {
            pending.remove(&by);
        }
    }

    fn declined(&mut self, now_ms: u64, by: Participant, declined: u64, reason: &str, decisions: &mut Vec<Decision>) {
        // Who acknowledged or ended has done its part; what it says after that is about another copy of itself.
        if matches!(&self.phase, Phase::Collecting { epoch, pending, .. } if *epoch == declined && pending.contains(&by))
        {
            self.abort(now_ms, reason.to_owned(), decisions);
        }
    }

    fn ended(&mut self, by: Participant) {
        self.ended.insert(by);
        if let Phase::Collecting { pending, .. } = &mut self.phase {
            pending.remove(&by);
        }
    }

    fn time_out(&mut self, now_ms: u64, decisions: &mut Vec<Decision>) {
        let Phase::Collecting { pending, since_ms, .. } = &self.phase else { return };
        let timeout_ms = self.settings.timeout_ms;
        if now_ms < since_ms.saturating_add(timeout_ms) {
            return;
        }
        let (missing, all) = (pending.len(), self.participants);
        self.abort(now_ms, format!("not acknowledged after {timeout_ms} ms by {missing} of {all}"), decisions);
    }

    fn claim_won(&mut self, won: u64, decisions: &mut Vec<Decision>) {
        if let Phase::Claiming { epoch, purpose, kind } = self.phase
            && epoch == won
        {
            self.phase = Phase::Committing { epoch, purpose, kind };
            decisions.push(Decision::Commit { epoch });
        }
    }

    fn claim_failed(&mut self, now_ms: u64, failed: u64, reason: String, decisions: &mut Vec<Decision>) {
        match self.phase {
            Phase::Claiming { epoch, purpose: Some(_), .. } if epoch == failed => self.abort(now_ms, reason, decisions),
            // Every task has ended, so nothing would change until a repetition.
            Phase::Claiming { epoch, purpose: None, .. } if epoch == failed => {
                let reason = format!("the last checkpoint failed: {reason}");
                self.end(Decision::FailJob { reason }, decisions);
            }
            _ => {}
        }
    }

    fn committed(&mut self, now_ms: u64, committed: u64, decisions: &mut Vec<Decision>) {
        let Phase::Committing { epoch, purpose, kind } = self.phase else { return };
        if epoch != committed {
            return;
        }
        self.failures_in_a_row = 0;
        self.rest(now_ms);
        decisions.push(Decision::Completed { epoch, purpose });
        if kind.is_end() {
            self.end(Decision::Finished { kind }, decisions);
        }
    }

    /// Aborts what is in flight and counts it. What a user asked for does not count: it says nothing about the job.
    fn abort(&mut self, now_ms: u64, reason: String, decisions: &mut Vec<Decision>) {
        let (epoch, purpose) = match self.phase {
            Phase::Collecting { epoch, purpose, .. } => (epoch, purpose),
            Phase::Claiming { epoch, purpose: Some(purpose), .. } => (epoch, purpose),
            _ => return,
        };
        self.rest(now_ms);
        decisions.push(Decision::Abort { epoch, purpose, reason: reason.clone() });
        if purpose != Purpose::Periodic {
            return;
        }
        self.failures_in_a_row += 1;
        let (failures, tolerable) = (self.failures_in_a_row, self.settings.tolerable_failures);
        if failures > tolerable {
            let reason =
                format!("{failures} checkpoint(s) in a row failed, {tolerable} are tolerated; the last one: {reason}");
            self.end(Decision::FailJob { reason }, decisions);
        }
    }

    fn rest(&mut self, now_ms: u64) {
        self.phase = Phase::Idle;
        self.rested_ms = now_ms.saturating_add(self.settings.min_pause_ms);
    }

    fn end(&mut self, last: Decision, decisions: &mut Vec<Decision>) {
        self.phase = Phase::Over;
        decisions.push(last);
    }

    /// Takes the steps that the facts so far allow.
    fn go_on(&mut self, now_ms: u64, decisions: &mut Vec<Decision>) {
        if self.phase == Phase::Idle {
            self.start(now_ms, decisions);
        }
        if let Phase::Collecting { epoch, purpose, pending, overtakes_ms, .. } = &mut self.phase {
            if pending.is_empty() {
                let (epoch, purpose) = (*epoch, *purpose);
                self.claim(epoch, Some(purpose), decisions);
            } else if overtakes_ms.is_some_and(|at| now_ms >= at) {
                *overtakes_ms = None;
                decisions.push(Decision::Overtake { epoch: *epoch });
            }
        }
    }

    fn start(&mut self, now_ms: u64, decisions: &mut Vec<Decision>) {
        if self.all_ended() {
            let epoch = self.new_epoch();
            return self.claim(epoch, None, decisions);
        }
        let purpose = if let Some(savepoint) = self.stop_wanted.take() {
            // A stop with a savepoint is also the savepoint that others wanted.
            Purpose::Stop { savepoint: savepoint || std::mem::take(&mut self.savepoint_wanted) }
        } else if std::mem::take(&mut self.savepoint_wanted) {
            Purpose::Savepoint
        } else if self.checkpoint_wanted || self.due_ms.is_some_and(|due| now_ms >= due.max(self.rested_ms)) {
            self.checkpoint_wanted = false;
            Purpose::Periodic
        } else {
            return;
        };
        let epoch = self.new_epoch();
        let all = (0..self.participants).map(Participant);
        let pending = all.filter(|participant| !self.ended.contains(participant)).collect();
        self.due_ms = self.settings.interval_ms.map(|interval| now_ms.saturating_add(interval));
        let after_ms = self.settings.aligned_timeout_ms.filter(|_| purpose == Purpose::Periodic);
        let overtakes_ms = after_ms.map(|after| now_ms.saturating_add(after));
        self.phase = Phase::Collecting { epoch, purpose, pending, since_ms: now_ms, overtakes_ms };
        decisions.push(Decision::Trigger { epoch, purpose });
    }

    fn claim(&mut self, epoch: u64, purpose: Option<Purpose>, decisions: &mut Vec<Decision>) {
        let kind = match purpose {
            None => ManifestKind::Finished,
            Some(Purpose::Periodic) => ManifestKind::Checkpoint,
            Some(Purpose::Savepoint) => ManifestKind::Savepoint,
            Some(Purpose::Stop { .. }) => ManifestKind::Stopped,
        };
        self.phase = Phase::Claiming { epoch, purpose, kind };
        decisions.push(Decision::Claim { epoch, kind });
    }

    fn all_ended(&self) -> bool {
        self.ended.len() as u64 >= u64::from(self.participants)
    }

    fn new_epoch(&mut self) -> u64 {
        let epoch = self.next_epoch;
        self.next_epoch += 1;
        epoch
    }
}
