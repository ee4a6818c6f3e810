//! The coordinator against everything that can happen to it, in every order: all states of small jobs are visited.

use std::collections::{BTreeSet, HashSet};

use tidemill_checkpoint::manifest::ManifestKind;
use tidemill_checkpoint::protocol::{Coordinator, Decision, Fact, Participant, Purpose, Settings};

/// What surrounds the coordinator, and what it did so far.
#[derive(Clone, PartialEq, Eq, Hash)]
struct World {
    coordinator: Coordinator,
    now_ms: u64,
    participants: u32,
    triggered: Vec<(u64, Purpose)>,
    /// Triggered and neither claimed nor aborted.
    collecting: Option<u64>,
    claiming: Option<(u64, ManifestKind)>,
    committing: Option<(u64, ManifestKind)>,
    acknowledged: BTreeSet<(u32, u64)>,
    ended: BTreeSet<u32>,
    claimed: BTreeSet<u64>,
    overtaken: BTreeSet<u64>,
    over: bool,
    /// What may still happen.
    ticks: u32,
    declines: u32,
    claim_failures: u32,
    requests: u32,
    stray: u32,
}

impl World {
    fn new(settings: Settings, participants: u32) -> Self {
        Self {
            coordinator: Coordinator::new(settings, participants, 1, 0),
            now_ms: 0,
            participants,
            triggered: Vec::new(),
            collecting: None,
            claiming: None,
            committing: None,
            acknowledged: BTreeSet::new(),
            ended: BTreeSet::new(),
            claimed: BTreeSet::new(),
            overtaken: BTreeSet::new(),
            over: false,
            ticks: 3,
            declines: 1,
            claim_failures: 1,
            requests: 1,
            stray: 1,
        }
    }

    /// What can happen next.
    fn facts(&self) -> Vec<Fact> {
        let mut facts = Vec::new();
        let reason = || "because".to_owned();
        if self.ticks > 0 {
            facts.push(Fact::Tick);
        }
        for p in 0..self.participants {
            let by = Participant(p);
            for &(epoch, _) in &self.triggered {
                if !self.acknowledged.contains(&(p, epoch)) && !self.ended.contains(&p) {
                    facts.push(Fact::Acknowledged { by, epoch });
                    if self.declines > 0 {
                        facts.push(Fact::Declined { by, epoch, reason: reason() });
                    }
                }
            }
            if !self.ended.contains(&p) {
                facts.push(Fact::Ended(by));
            }
        }
        if let Some((epoch, _)) = self.claiming {
            facts.extend([Fact::ClaimWon { epoch }, Fact::Fenced { by: Some(9) }]);
            if self.claim_failures > 0 {
                facts.push(Fact::ClaimFailed { epoch, reason: reason() });
                facts.push(Fact::ClaimInDoubt { epoch, reason: reason() });
            }
        }
        if let Some((epoch, _)) = self.committing {
            facts.extend([Fact::Committed { epoch }, Fact::CommitFailed { epoch, reason: reason() }]);
        }
        if self.requests > 0 {
            facts.extend([Fact::CheckpointRequested, Fact::SavepointRequested]);
            facts.extend([false, true].map(|savepoint| Fact::StopRequested { savepoint }));
        }
        // Answers that come twice, or about what is over.
        let old = self.triggered.iter().map(|(epoch, _)| *epoch).filter(|_| self.stray > 0);
        for epoch in old.filter(|epoch| self.claiming.is_none_or(|(e, _)| e != *epoch)) {
            facts.push(Fact::ClaimWon { epoch });
            facts.push(Fact::ClaimFailed { epoch, reason: reason() });
            if self.committing.is_none_or(|(e, _)| e != epoch) {
                facts.push(Fact::Committed { epoch });
                facts.push(Fact::CommitFailed { epoch, reason: reason() });
            }
        }
        facts
    }

    /// Lets something happen, and checks what is decided.
    fn step(&mut self, fact: &Fact) {
        let (claiming, committing) = (self.claiming, self.committing);
        let mut stray = false;
        match fact {
            Fact::Tick => {
                self.ticks -= 1;
                self.now_ms += 10;
            }
            Fact::Acknowledged { by, epoch } => drop(self.acknowledged.insert((by.0, *epoch))),
            Fact::Declined { .. } => self.declines -= 1,
            Fact::Ended(by) => drop(self.ended.insert(by.0)),
            Fact::ClaimWon { epoch } | Fact::ClaimFailed { epoch, .. } | Fact::ClaimInDoubt { epoch, .. } => {
                stray = claiming.is_none_or(|(e, _)| e != *epoch);
                self.claim_failures -= u32::from(!stray && !matches!(fact, Fact::ClaimWon { .. }));
                self.claiming = self.claiming.filter(|_| stray);
            }
            Fact::Committed { epoch } | Fact::CommitFailed { epoch, .. } => {
                stray = committing.is_none_or(|(e, _)| e != *epoch);
                self.committing = self.committing.filter(|_| stray);
            }
            Fact::CheckpointRequested | Fact::SavepointRequested | Fact::StopRequested { .. } => self.requests -= 1,
            Fact::Fenced { .. } => self.claiming = None,
        }
        self.stray -= u32::from(stray);
        let decisions = self.coordinator.handle(self.now_ms, fact.clone());
        if stray {
            assert_eq!(decisions, [], "an answer to no question");
        }
        for decision in &decisions {
            self.check(decision, fact, claiming, committing);
        }
        self.check_rest(fact);
    }

    fn check(
        &mut self,
        decision: &Decision,
        fact: &Fact,
        claiming: Option<(u64, ManifestKind)>,
        committing: Option<(u64, ManifestKind)>,
    ) {
        assert!(!self.over, "decided after the end: {decision:?}");
        let in_flight = self.collecting.is_some() || self.claiming.is_some() || self.committing.is_some();
        match decision {
            Decision::Trigger { epoch, purpose } => {
                assert!(!in_flight, "one at a time");
                assert!(self.triggered.iter().all(|(e, _)| e < epoch) && self.claimed.iter().all(|e| e < epoch));
                self.triggered.push((*epoch, *purpose));
                self.collecting = Some(*epoch);
            }
            Decision::Claim { epoch, kind } => {
                let done = |p: &u32| self.ended.contains(p) || self.acknowledged.contains(&(*p, *epoch));
                assert!((0..self.participants).all(|p| done(&p)), "claimed without all acknowledgements");
                assert!(self.claimed.insert(*epoch), "claimed twice");
                assert!(self.claiming.is_none() && self.committing.is_none());
                assert_eq!(self.collecting.is_none(), *kind == ManifestKind::Finished);
                assert!(*kind != ManifestKind::Finished || self.ended.len() as u32 == self.participants);
                self.collecting = None;
                self.claiming = Some((*epoch, *kind));
            }
            Decision::Overtake { epoch } => {
                assert_eq!(self.collecting, Some(*epoch), "nothing is being collected");
                assert!(self.triggered.contains(&(*epoch, Purpose::Periodic)), "only periodic ones turn unaligned");
                assert!(self.overtaken.insert(*epoch), "said twice");
            }
            Decision::Commit { epoch } => {
                assert_eq!(fact, &Fact::ClaimWon { epoch: *epoch }, "committed without a won claim");
                assert_eq!(claiming.map(|(e, _)| e), Some(*epoch));
                self.committing = claiming;
            }
            Decision::Completed { epoch, .. } => {
                assert_eq!(fact, &Fact::Committed { epoch: *epoch });
                assert_eq!(committing.map(|(e, _)| e), Some(*epoch));
            }
            Decision::Abort { epoch, purpose, .. } => {
                let failed = claiming.filter(|_| matches!(fact, Fact::ClaimFailed { .. })).map(|(e, _)| e);
                assert!(self.collecting == Some(*epoch) || failed == Some(*epoch), "aborted what may be complete");
                assert!(self.triggered.contains(&(*epoch, *purpose)));
                self.collecting = None;
            }
            Decision::Finished { kind } => {
                assert_eq!(committing.map(|(_, k)| k), Some(*kind), "finished and not committed");
                self.over = true;
            }
            Decision::FailJob { .. } => self.over = true,
            Decision::Fenced { .. } => {
                assert!(matches!(fact, Fact::Fenced { .. }));
                self.over = true;
            }
        }
    }

    /// Nothing waits for what will never come.
    fn check_rest(&self, fact: &Fact) {
        assert_eq!(self.coordinator.is_over(), self.over);
        if self.over {
            return;
        }
        let answer_expected = self.claiming.is_some() || self.committing.is_some();
        assert!(answer_expected || (self.ended.len() as u32) < self.participants, "all ended, nothing is done");
        if let Some(epoch) = self.collecting {
            let done = |p: u32| self.ended.contains(&p) || self.acknowledged.contains(&(p, epoch));
            assert!(!(0..self.participants).all(done), "all acknowledged, nothing is done");
        }
        if *fact == Fact::Tick {
            assert!(self.coordinator.wake_at_ms().is_none_or(|at| at > self.now_ms), "a tick that changed nothing");
        }
    }
}

fn explore(settings: &Settings, participants: u32) -> (usize, HashSet<&'static str>) {
    let mut visited = HashSet::new();
    let mut open = vec![World::new(settings.clone(), participants)];
    let mut ends = HashSet::new();
    while let Some(world) = open.pop() {
        for fact in world.facts() {
            let mut next = world.clone();
            next.step(&fact);
            if next.over {
                // Whatever else comes: silence.
                for late in world.facts() {
                    assert_eq!(next.coordinator.handle(next.now_ms, late), []);
                }
                ends.insert(match fact {
                    Fact::Committed { .. } => "finished",
                    Fact::Fenced { .. } => "fenced",
                    _ => "failed",
                });
            } else if visited.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    (visited.len(), ends)
}

#[test]
fn nothing_that_can_happen_breaks_an_invariant() {
    for tolerable_failures in [0, 1] {
        for (interval_ms, min_pause_ms) in [(None, 0), (Some(10), 0), (Some(10), 20)] {
            let settings = Settings {
                interval_ms,
                min_pause_ms,
                timeout_ms: 20,
                tolerable_failures,
                aligned_timeout_ms: (min_pause_ms == 0).then_some(10),
            };
            for participants in [1, 2] {
                let (states, ends) = explore(&settings, participants);
                eprintln!("{settings:?}, {participants} participants: {states} states");
                assert!(states > 1_000, "only {states} states");
                assert_eq!(ends, HashSet::from(["finished", "fenced", "failed"]));
            }
        }
    }
}

/// Facts and what is decided, as text.
#[track_caller]
fn check(settings: Settings, story: &[(u64, Fact, &str)]) {
    let mut coordinator = Coordinator::new(settings, 2, 5, 0);
    for (now_ms, fact, expected) in story {
        let decisions = coordinator.handle(*now_ms, fact.clone());
        let words: Vec<String> = decisions.iter().map(word).collect();
        assert_eq!(words.join(", "), *expected, "at {now_ms} after {fact:?}");
    }
}

fn word(decision: &Decision) -> String {
    match decision {
        Decision::Trigger { epoch, purpose } => format!("trigger {epoch} {purpose:?}"),
        Decision::Overtake { epoch } => format!("overtake {epoch}"),
        Decision::Claim { epoch, kind } => format!("claim {epoch} {kind:?}"),
        Decision::Commit { epoch } => format!("commit {epoch}"),
        Decision::Completed { epoch, .. } => format!("completed {epoch}"),
        Decision::Abort { epoch, reason, .. } => format!("abort {epoch}: {reason}"),
        Decision::FailJob { .. } => "fail".to_owned(),
        Decision::Fenced { .. } => "fenced".to_owned(),
        Decision::Finished { kind } => format!("finished {kind:?}"),
    }
}

fn every(interval_ms: u64) -> Settings {
    Settings {
        interval_ms: Some(interval_ms),
        min_pause_ms: 30,
        timeout_ms: 50,
        tolerable_failures: 1,
        aligned_timeout_ms: None,
    }
}

fn ack(by: u32, epoch: u64) -> Fact {
    Fact::Acknowledged { by: Participant(by), epoch }
}

#[test]
fn a_checkpoint_runs_its_course_and_the_pause_holds_the_next_one_back() {
    check(
        every(100),
        &[
            (99, Fact::Tick, ""),
            (100, Fact::Tick, "trigger 5 Periodic"),
            (110, ack(1, 5), ""),
            (120, ack(1, 5), ""),
            (140, ack(0, 5), "claim 5 Checkpoint"),
            (180, Fact::ClaimWon { epoch: 5 }, "commit 5"),
            (190, Fact::Committed { epoch: 5 }, "completed 5"),
            (219, Fact::Tick, ""),
            (220, Fact::Tick, "trigger 6 Periodic"),
        ],
    );
}

#[test]
fn a_checkpoint_that_is_not_aligned_in_time_turns_unaligned_once() {
    let after = |ms| Settings { aligned_timeout_ms: Some(ms), ..every(100) };
    check(
        after(20),
        &[
            (100, Fact::Tick, "trigger 5 Periodic"),
            (119, ack(0, 5), ""),
            (120, Fact::Tick, "overtake 5"),
            (130, Fact::Tick, ""),
            (140, ack(1, 5), "claim 5 Checkpoint"),
        ],
    );
    // Aligned in time: nothing is said.
    let aligned = [(100, Fact::Tick, "trigger 5 Periodic"), (120, ack(0, 5), "overtake 5")];
    check(after(20), &aligned);
    let aligned =
        [(100, Fact::Tick, "trigger 5 Periodic"), (110, ack(0, 5), ""), (120, ack(1, 5), "claim 5 Checkpoint")];
    check(after(20), &aligned);
    check(after(0), &[(100, Fact::Tick, "trigger 5 Periodic, overtake 5"), (110, Fact::Tick, "")]);
}

#[test]
fn a_checkpoint_that_is_asked_for_does_not_wait_for_the_interval_but_for_the_one_in_flight() {
    check(
        every(100),
        &[
            (10, Fact::CheckpointRequested, "trigger 5 Periodic"),
            (11, Fact::CheckpointRequested, ""),
            (12, ack(0, 5), ""),
            (13, ack(1, 5), "claim 5 Checkpoint"),
            (14, Fact::ClaimWon { epoch: 5 }, "commit 5"),
            (15, Fact::Committed { epoch: 5 }, "completed 5, trigger 6 Periodic"),
            (16, ack(0, 6), ""),
            (17, ack(1, 6), "claim 6 Checkpoint"),
            (18, Fact::ClaimWon { epoch: 6 }, "commit 6"),
            (19, Fact::Committed { epoch: 6 }, "completed 6"),
            (114, Fact::Tick, ""),
            (115, Fact::Tick, "trigger 7 Periodic"),
        ],
    );
}

#[test]
fn savepoints_and_stops_never_turn_unaligned() {
    let at_once = || Settings { aligned_timeout_ms: Some(0), ..every(100) };
    check(at_once(), &[(10, Fact::SavepointRequested, "trigger 5 Savepoint"), (49, Fact::Tick, "")]);
    let stop = Fact::StopRequested { savepoint: false };
    check(at_once(), &[(10, stop, "trigger 5 Stop { savepoint: false }"), (49, Fact::Tick, "")]);
}

#[test]
fn late_acknowledgements_are_ignored_and_failures_in_a_row_fail_the_job() {
    check(
        every(100),
        &[
            (100, Fact::Tick, "trigger 5 Periodic"),
            (110, ack(0, 5), ""),
            (150, Fact::Tick, "abort 5: not acknowledged after 50 ms by 1 of 2"),
            (151, ack(1, 5), ""),
            (200, Fact::Tick, "trigger 6 Periodic"),
            (201, ack(1, 5), ""),
            (202, ack(1, 6), ""),
            (
                203,
                Fact::Declined { by: Participant(0), epoch: 6, reason: "disk full".to_owned() },
                "abort 6: disk full, fail",
            ),
            (300, Fact::Tick, ""),
        ],
    );
}

#[test]
fn a_stop_waits_for_what_is_in_flight_and_ends_the_job() {
    check(
        every(100),
        &[
            (100, Fact::Tick, "trigger 5 Periodic"),
            (101, Fact::StopRequested { savepoint: false }, ""),
            (102, Fact::SavepointRequested, ""),
            (103, ack(0, 5), ""),
            (104, ack(1, 5), "claim 5 Checkpoint"),
            (105, Fact::ClaimWon { epoch: 5 }, "commit 5"),
            (106, Fact::Committed { epoch: 5 }, "completed 5, trigger 6 Stop { savepoint: true }"),
            (107, ack(0, 6), ""),
            (108, ack(1, 6), "claim 6 Stopped"),
            (109, Fact::ClaimWon { epoch: 6 }, "commit 6"),
            (110, Fact::Committed { epoch: 6 }, "completed 6, finished Stopped"),
        ],
    );
}

#[test]
fn who_ended_is_not_waited_for_and_the_last_to_end_makes_the_last_checkpoint() {
    check(
        every(100),
        &[
            (50, Fact::Ended(Participant(0)), ""),
            (100, Fact::Tick, "trigger 5 Periodic"),
            (110, Fact::Ended(Participant(1)), "claim 5 Checkpoint"),
            (120, Fact::ClaimWon { epoch: 5 }, "commit 5"),
            (130, Fact::Committed { epoch: 5 }, "completed 5, claim 6 Finished"),
            (140, Fact::ClaimWon { epoch: 6 }, "commit 6"),
            (150, Fact::Committed { epoch: 6 }, "completed 6, finished Finished"),
        ],
    );
}
