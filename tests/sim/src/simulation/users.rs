//! The users of jobs: each submits one, wants something of it every now and then, by what the handlers of the management
//! API call too, and goes on as a careful client would. Answers get lost, and then it asks again.
//!
//! What a user was promised has to come, whatever goes wrong: of a wish that was accepted, nobody is reminded. What is an
//! operation (a checkpoint, a savepoint, a stop with one) may be forgotten with the coordinator, and is asked for again.

use std::collections::VecDeque;
use std::sync::Arc;

use tidemill_checkpoint::{Origin, Start};
use tidemill_coordinator::view::{JobState, JobView};
use tidemill_coordinator::{Asked, Coordinator, Job, Submission};
use tidemill_core::Result;

use super::Simulation;
use super::event::Event;
use super::plan::{Planned, Step};
use crate::job::{self, JobPlan};
use crate::network::ProcessId;

/// See the module.
pub struct User {
    number: usize,
    plan: JobPlan,
    steps: VecDeque<Step>,
    /// Its job in the cluster, once it is accepted, and those before that are over.
    job: Option<String>,
    before: Vec<String>,
    savepoints: u32,
    phase: Phase,
}

enum Phase {
    /// The job is to be submitted, or that was not heard yet.
    Submit(Start, Option<u32>),
    /// The next step is due.
    Next,
    /// Something was asked for.
    Asked(ProcessId, Arc<Job>, Operation),
    /// So many slots are wanted. Whether that was accepted.
    Rescaling(u32, bool, Option<ProcessId>),
    /// It is to be stopped. Who accepted that.
    Stopping(Option<u32>, Option<ProcessId>),
    /// It is to be cancelled. Who accepted that.
    Cancelling(Option<ProcessId>),
    /// The job is over for good.
    Over {
        /// Whether it was cancelled.
        cancelled: bool,
    },
}

enum Operation {
    Checkpoint(Asked<u64>),
    Savepoint(Asked<String>),
    /// A stop with a savepoint there, after which it goes on with so many slots.
    Stop(Asked<String>, String, Option<u32>),
    /// The savepoint is there; the operation is complete when the job is over.
    Stopped(String, Option<u32>),
}

impl User {
    /// With nothing done yet.
    pub fn new(number: usize, planned: &Planned) -> Self {
        let (job, before, savepoints) = Default::default();
        let phase = Phase::Submit(Start::default(), None);
        let steps = planned.steps.iter().copied().collect();
        Self { number, plan: planned.job.clone(), steps, job, before, savepoints, phase }
    }

    /// Whether the job was cancelled.
    pub fn cancelled(&self) -> bool {
        matches!(self.phase, Phase::Over { cancelled: true })
    }

    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over { .. })
    }

    /// What it waits for, for people.
    pub fn state(&self) -> String {
        let waits = match &self.phase {
            Phase::Submit(..) => "submits it",
            Phase::Next => "waits for its end",
            Phase::Asked(..) => "waits for an answer",
            Phase::Rescaling(..) => "rescales it",
            Phase::Stopping(..) => "stops it",
            Phase::Cancelling(_) => "cancels it",
            Phase::Over { .. } => "is done",
        };
        format!("the user of job-{} {waits}", self.number)
    }

    /// A job that is over goes on from there, as another one.
    fn again(&mut self, start: Start, parallelism: Option<u32>) {
        self.before.extend(self.job.take());
        self.phase = Phase::Submit(start, parallelism);
    }

    fn submission(&self, start: &Start, parallelism: Option<u32>) -> Submission {
        let definition = job::definition(self.number, &self.plan);
        Submission { definition, parallelism, from: start.clone(), allow_non_restored: false }
    }
}

impl Simulation {
    /// A user looks at its job, and does what follows.
    pub(super) fn user(&mut self, number: usize) {
        let pause = self.draw(10, 1_500);
        // It waits as long as nobody answers.
        let answers = self.current.filter(|id| !self.stopped.contains_key(id));
        let coordinator = answers.and_then(|id| Some((id, self.coordinators.get(&id)?.users().clone())));
        if let Some((id, coordinator)) = coordinator
            && let Some(mut user) = self.take_user(number)
        {
            let done = self.use_job(&mut user, id, &coordinator);
            if let Err(wrong) = done {
                self.failed = Some(format!("{}: {wrong}", user.state()));
            }
            if user.is_over() {
                self.world.note(&format!("the user of job-{number} is done"));
            }
            self.users.insert(number, user);
            self.afterwards(id);
            self.wake_masters(id);
        }
        if self.users.iter().all(User::is_over) {
            self.over_ms = Some(self.world.now_ms());
            self.world.set_faults(false);
        } else if self.users.get(number).is_some_and(|user| !user.is_over()) {
            self.after(pause, Event::User(number));
        }
    }

    fn take_user(&mut self, number: usize) -> Option<User> {
        (number < self.users.len()).then(|| self.users.remove(number))
    }

    fn use_job(&mut self, user: &mut User, id: ProcessId, coordinator: &Arc<Coordinator>) -> Result<(), String> {
        if let Phase::Submit(start, parallelism) = &user.phase {
            let submission = user.submission(start, *parallelism);
            self.submit(user, coordinator, submission);
            return Ok(());
        }
        let Some(job) = user.job.as_deref().and_then(|job| coordinator.job(job)) else {
            return Err("the cluster does not know it any more".to_owned());
        };
        let view = job.summary();
        if matches!(view.state, JobState::Failed | JobState::FailedToRecover) {
            return Err(format!("it failed: {}", view.reason.unwrap_or_default()));
        }
        match std::mem::replace(&mut user.phase, Phase::Next) {
            Phase::Next if view.state.is_final() => self.over(user, &view),
            Phase::Next => self.next_step(user, id, &job, &view),
            Phase::Asked(of, asked, operation) => self.asked(user, &view, (of, asked), operation),
            Phase::Rescaling(..) if view.state.is_final() => self.over(user, &view),
            Phase::Rescaling(parallelism, waits, accepted) => {
                self.rescale(user, id, &job, &view, (parallelism, waits, accepted))
            }
            Phase::Stopping(parallelism, _) if view.state.is_final() => {
                self.world.note(&format!("{} was stopped", view.id));
                user.again(Start::GoOn, parallelism);
                Ok(())
            }
            Phase::Stopping(_, Some(of)) if of != id && view.state == JobState::Running => {
                Err("it runs, though it was to be stopped".to_owned())
            }
            Phase::Stopping(parallelism, mut accepted) => {
                if accepted.is_none() && self.accepted("stop", || job.stop()) {
                    accepted = Some(id);
                }
                user.phase = Phase::Stopping(parallelism, accepted);
                Ok(())
            }
            Phase::Cancelling(_) if view.state.is_final() => self.over(user, &view),
            Phase::Cancelling(Some(of)) if of != id && view.state == JobState::Running => {
                Err("it runs, though it was cancelled".to_owned())
            }
            Phase::Cancelling(mut accepted) => {
                if accepted.is_none() && self.accepted("cancellation", || job.cancel()) {
                    accepted = Some(id);
                }
                user.phase = Phase::Cancelling(accepted);
                Ok(())
            }
            phase @ (Phase::Submit(..) | Phase::Over { .. }) => {
                user.phase = phase;
                Ok(())
            }
        }
    }

    /// Submits a job, unless that was done already and only the answer was lost.
    fn submit(&mut self, user: &mut User, coordinator: &Arc<Coordinator>, submission: Submission) {
        let name = job::name(user.number);
        let is_new = |view: &JobView| view.name == name && !user.before.contains(&view.id);
        if let Some(view) = coordinator.summaries().into_iter().find(is_new) {
            self.world.note(&format!("{name} is accepted as {}", view.id));
            (user.job, user.phase) = (Some(view.id), Phase::Next);
            return;
        }
        let from = format!("{:?} at {:?}", submission.from, submission.parallelism);
        let submitted = coordinator.submit(submission.clone());
        self.world.set_faults(self.world.elapsed_ms() < self.plan.faults_ms);
        if self.repeats() && coordinator.submit(submission).is_ok() && submitted.is_ok() {
            self.failed = Some(format!("{name} was accepted twice"));
        }
        let outcome = submitted.map(|view| view.id).map_err(|error| error.to_string());
        self.world.note(&format!("{name} is submitted from {from}: {outcome:?}"));
    }

    /// Begins the next step, if there is one.
    fn next_step(&mut self, user: &mut User, id: ProcessId, job: &Arc<Job>, view: &JobView) -> Result<(), String> {
        let Some(step) = user.steps.front().copied() else {
            // It may end now.
            self.jobs.get(user.number).into_iter().for_each(|outside| outside.release());
            return Ok(());
        };
        // Some time passes before.
        if self.draw(0, 3) == 0 {
            return Ok(());
        }
        user.steps.pop_front();
        self.world.note(&format!("{}: {step:?}", view.id));
        match step {
            Step::Checkpoint | Step::Savepoint | Step::StopWithSavepoint(_) => self.ask(user, id, job, step),
            Step::Rescale(parallelism, waits) => user.phase = Phase::Rescaling(parallelism, waits, None),
            Step::Stop(parallelism) => user.phase = Phase::Stopping(parallelism, None),
            Step::Cancel => user.phase = Phase::Cancelling(None),
        }
        Ok(())
    }

    /// Begins an operation; again later, if it is refused.
    fn ask(&mut self, user: &mut User, id: ProcessId, job: &Arc<Job>, step: Step) {
        user.savepoints += 1;
        let location = format!("/savepoints/{}-{}", user.number, user.savepoints);
        let asked = match step {
            Step::Savepoint => job.savepoint(location).map(Operation::Savepoint),
            Step::StopWithSavepoint(then) => {
                let asked = job.stop_with_savepoint(location.clone());
                asked.map(|asked| Operation::Stop(asked, location, then))
            }
            _ => job.checkpoint().map(Operation::Checkpoint),
        };
        match asked {
            Ok(operation) => {
                self.world.count(match operation {
                    Operation::Checkpoint(_) => "user_checkpoint",
                    Operation::Savepoint(_) => "user_savepoint",
                    _ => "user_stop_with_savepoint",
                });
                // It does not hear which operation it is, and asks once more.
                if self.repeats() {
                    return user.steps.push_front(step);
                }
                user.phase = Phase::Asked(id, job.clone(), operation);
            }
            Err(error) => {
                self.world.note(&format!("{} refuses: {}", job.id(), error.message()));
                user.steps.push_front(step);
            }
        }
    }

    /// Looks what became of an operation.
    fn asked(
        &mut self,
        user: &mut User,
        view: &JobView,
        (of, job): (ProcessId, Arc<Job>),
        operation: Operation,
    ) -> Result<(), String> {
        let lives = self.coordinators.contains_key(&of);
        let (step, answer) = match &operation {
            Operation::Checkpoint(asked) => (Step::Checkpoint, asked.poll().map(|answer| answer.map(drop))),
            Operation::Savepoint(asked) => (Step::Savepoint, asked.poll().map(|answer| answer.map(drop))),
            Operation::Stop(asked, _, then) => (Step::StopWithSavepoint(*then), asked.poll().map(|a| a.map(drop))),
            Operation::Stopped(_, then) => (Step::StopWithSavepoint(*then), job.is_over().then_some(Ok(()))),
        };
        // What it was told by whoever is dead now, it did not hear.
        let answer = answer.filter(|_| lives);
        self.world.note(&format!(
            "{}: {step:?}: {:?}",
            view.id,
            answer.as_ref().map(|a| a.as_ref().map_err(|e| e.message()))
        ));
        match (answer, operation) {
            (Some(Ok(())), Operation::Stop(_, location, then)) => {
                user.phase = Phase::Asked(of, job, Operation::Stopped(location, then));
            }
            (Some(Ok(())), Operation::Stopped(location, then)) => {
                self.world.note(&format!("{} was stopped with {location}", view.id));
                user.again(Start::At(Origin::Savepoint(location)), then);
            }
            (Some(Ok(())), Operation::Checkpoint(_) | Operation::Savepoint(_)) => {}
            (None, operation) if lives => user.phase = Phase::Asked(of, job, operation),
            // The operation is forgotten with the coordinator. What it did is to be seen at the job.
            (Some(Err(_)) | None, _) if view.state.is_final() => return self.over(user, view),
            (Some(Err(_)) | None, _) => user.steps.push_front(step),
        }
        Ok(())
    }

    fn rescale(
        &mut self,
        user: &mut User,
        id: ProcessId,
        job: &Arc<Job>,
        view: &JobView,
        (parallelism, waits, mut accepted): (u32, bool, Option<ProcessId>),
    ) -> Result<(), String> {
        if accepted.is_none() && self.accepted("rescale", || job.rescale(parallelism)) {
            accepted = Some(id);
            self.world.rescales();
        }
        let is_done = match waits {
            true => view.state == JobState::Running && view.parallelism == parallelism,
            false => true,
        };
        if accepted.is_none() || !is_done {
            user.phase = Phase::Rescaling(parallelism, waits, accepted);
        }
        Ok(())
    }

    /// A job is over: for its user too, unless it was stopped with a savepoint and that was not heard.
    fn over(&mut self, user: &mut User, view: &JobView) -> Result<(), String> {
        if let Some(location) = &view.savepoint {
            user.again(Start::At(Origin::Savepoint(location.clone())), None);
            return Ok(());
        }
        let cancelled = view.state == JobState::Canceled;
        user.phase = Phase::Over { cancelled };
        Ok(())
    }

    /// Whether a wish is accepted, as far as the user hears; it may be told twice.
    fn accepted(&mut self, what: &'static str, wish: impl Fn() -> Result<()>) -> bool {
        let answer = wish();
        self.world.note(&format!("a {what} is asked for: {:?}", answer.as_ref().map_err(|error| error.message())));
        if answer.is_ok() {
            self.world.count(match what {
                "stop" => "user_stop",
                "rescale" => "user_rescale",
                _ => "user_cancel",
            });
        }
        answer.is_ok() && !self.repeats()
    }

    /// Whether the answer to a request is lost, so that it is asked again.
    fn repeats(&self) -> bool {
        self.world.goes_wrong("answer_lost", 100)
    }
}
