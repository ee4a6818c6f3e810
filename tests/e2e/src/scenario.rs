//! Carries a plan out, and checks what the job made of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tidemill_core::failpoint::Failpoint;

use crate::check::{self, Difference};
use crate::feed::Feed;
use crate::plan::{Asked, Plan, Step};
use crate::process::{Binary, LOOK_EVERY, Process, Start, was_killed};
use crate::random::Random;

/// A failpoint that is not reached by then is given up, and the process killed.
const PATIENCE: Duration = Duration::from_secs(3);
/// Nothing takes so long but a job that hangs.
const HANGS: Duration = Duration::from_secs(60);
/// Between two files of the input.
const FEED_EVERY: Duration = Duration::from_millis(25);
/// Between two questions to a job that is being started.
const ASK_EVERY: Duration = Duration::from_millis(120);
/// Between two looks at what an endless job has written.
const COUNT_EVERY: Duration = Duration::from_millis(150);
/// What the next start says when the last one was killed after it had come to its very end.
const ALREADY: &str = "there are part files already";

/// What came of a plan.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Processes that died of SIGKILL.
    pub kills: u64,
    /// How often a process stood still for a while.
    pub pauses: u64,
    /// How often a link was cut for a while.
    pub cuts: u64,
    /// How often every process was replaced, one after the other.
    pub rolled: u64,
    /// Those of them that failpoints killed.
    pub hit: Vec<Failpoint>,
    /// Rows that are there and must not be, or the other way round.
    pub difference: Difference,
    /// Why the scenario was broken off: a process failed or hung.
    pub failure: Option<String>,
}

/// Where checkpoints and savepoints are kept.
#[derive(Clone, Debug)]
pub struct Place {
    /// As the job knows it: a folder, or a URL.
    pub location: String,
    /// Where the auditor sees its files.
    pub folder: PathBuf,
}

impl Place {
    /// The folder itself.
    pub fn of(folder: &Path) -> Self {
        Self { location: folder.display().to_string(), folder: folder.to_owned() }
    }
}

/// A scenario that runs.
pub struct Scenario<'a> {
    binary: &'a Binary,
    plan: &'a Plan,
    folder: &'a Path,
    place: Place,
    /// Where the sinks write, each into a folder of its name.
    output: Place,
    /// Arguments for every process, as `--set` takes them.
    set: Vec<String>,
    manifest: PathBuf,
    feed: Option<Feed>,
    random: Random,
    processes: u64,
    /// Where the next process goes on from, if that is not left to it.
    from: Option<String>,
    /// With which parallelism the next process must go on, since rows are in flight that can't be moved.
    parallelism: Option<u64>,
    /// The last run may have ended well: without `--from`, the next one might start anew.
    may_have_ended: bool,
    /// The last process was killed after the job's end, so nobody has cleaned up after those before.
    ended_unseen: bool,
    outcome: Outcome,
}

/// The parallelism that a process names which refused to go on at another one.
fn needed_parallelism(said: &str) -> Option<u64> {
    let (_, refused) = said.split_once("was taken unaligned")?;
    let (_, number) = refused.split_once("at parallelism ")?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// How a process ended.
enum Ended {
    Killed,
    Well,
    Badly(ExitStatus),
}

impl<'a> Scenario<'a> {
    /// In a folder of its own, with its checkpoints and its output in places of their own.
    pub fn new(
        binary: &'a Binary,
        plan: &'a Plan,
        component: &Path,
        folder: &'a Path,
        place: Place,
        output: Place,
        set: &[String],
    ) -> Result<Self> {
        let mut set = set.to_vec();
        set.extend(plan.job.sinks().iter().map(|sink| {
            let section = sink.section();
            format!("{section}.path='{}/{}'", output.location, sink.name)
        }));
        set.push(format!("checkpoints.location='{}/checkpoints'", place.location));
        let manifest = folder.join("tidemill.toml");
        fs::write(&manifest, plan.job.manifest(folder, component, &plan.settings))?;
        // The same job, for a process that does not know of the first.
        let second = folder.join("second/tidemill.toml");
        fs::create_dir_all(folder.join("second"))?;
        fs::copy(&manifest, &second)?;
        let feed = (!plan.job.ends()).then(|| Feed::new(folder, plan.settings.records)).transpose()?;
        Ok(Self {
            binary,
            plan,
            folder,
            place,
            output,
            set,
            manifest,
            feed,
            random: Random::new(plan.seed, 0),
            processes: 0,
            from: None,
            parallelism: None,
            may_have_ended: false,
            ended_unseen: false,
            outcome: Outcome::default(),
        })
    }

    /// Runs all processes and compares. An error is a defect of the auditor, or of the machine.
    pub fn run(mut self) -> Result<Outcome> {
        let mut finished = false;
        for step in &self.plan.steps {
            match self.step(step) {
                Ok(false) => {}
                Ok(true) => {
                    finished = true;
                    break;
                }
                Err(failure) => return self.failed(failure),
            }
        }
        if !finished && let Err(failure) = self.finish() {
            return self.failed(failure);
        }
        let found = check::found(self.plan.job, &self.output.folder)?;
        let left = check::left_behind(self.plan.job, &self.output.folder)?;
        if !self.ended_unseen && !left.is_empty() {
            self.outcome.failure = Some(format!("hidden files are left behind: {}", left.join(", ")));
        }
        self.outcome.difference = check::compare(&self.plan.job.expected(self.plan.settings.records), &found);
        Ok(self.outcome)
    }

    fn failed(mut self, failure: anyhow::Error) -> Result<Outcome> {
        self.outcome.failure = Some(format!("{failure:#}"));
        Ok(self.outcome)
    }

    /// Carries a step out; whether the job came to its end.
    fn step(&mut self, step: &Step) -> Result<bool> {
        match step {
            Step::Kill { after_ms } => {
                let mut process = self.start(None, false)?;
                let until = Instant::now() + Duration::from_millis(*after_ms);
                let ended = self.wait(&mut process, until, Asked::Nothing)?;
                self.after(process, ended, None, false)
            }
            Step::Failpoint { at, times, asked, recovers } => {
                let last_was_hit = self.outcome.hit.last() == Some(&Failpoint::CommitDue);
                if *recovers && !(last_was_hit && self.left_to_commit()?) {
                    return Ok(false);
                }
                let mut process = self.start(Some((*at, *times, *asked)), *recovers)?;
                let ended = self.wait(&mut process, Instant::now() + PATIENCE, *asked)?;
                self.after(process, ended, Some(*at), *asked == Asked::Stop)
            }
            Step::Stop { after_ms, savepoint } => self.stop(*after_ms, *savepoint),
            Step::Second { after_ms } => self.second(*after_ms),
        }
    }

    /// Whether the newest checkpoint has something to commit. One that ended the job and has nothing is complete with its
    /// claim: started without `--from`, the job would begin anew.
    fn left_to_commit(&self) -> Result<bool> {
        let log = self.place.folder.join(format!("checkpoints/audit-{}/log", self.plan.job.name()));
        let newest = fs::read_dir(&log)?.flatten().map(|entry| entry.path()).max().context("the log is empty")?;
        Ok(!fs::read_to_string(newest)?.contains("\"committables\":[]"))
    }

    /// Starts the next process.
    fn start(&mut self, armed: Option<(Failpoint, u64, Asked)>, recovers: bool) -> Result<Process> {
        let manifest = self.manifest.clone();
        self.start_of(&manifest, armed, recovers)
    }

    fn start_of(&mut self, manifest: &Path, armed: Option<(Failpoint, u64, Asked)>, recovers: bool) -> Result<Process> {
        self.feed.as_mut().map_or(Ok(()), Feed::write)?;
        let latest = self.processes > 0 && !recovers && (self.may_have_ended || self.random.one_in(2));
        let from = self.from.take().or_else(|| latest.then(|| "latest".to_owned()));
        let mut set = self.set.clone();
        if armed.is_some_and(|(_, _, asked)| asked == Asked::Stop) {
            set.push("checkpoints.interval=\"10 min\"".to_owned());
        }
        let failpoint = armed.map(|(at, times, _)| (at, times));
        let drawn = self.random.between(1, 4);
        let start = Start { from, parallelism: self.parallelism.take().unwrap_or(drawn), set, failpoint };
        self.run_process(manifest, &start)
    }

    fn run_process(&mut self, manifest: &Path, start: &Start) -> Result<Process> {
        self.processes += 1;
        let said = self.folder.join(format!("process-{:03}.txt", self.processes));
        self.binary.run(manifest, start, said)
    }

    /// Waits until the process has ended; kills it when its time has come. What it is asked meanwhile, it is asked.
    fn wait(&mut self, process: &mut Process, until: Instant, asked: Asked) -> Result<Ended> {
        let (mut fed, mut asked_last) = (Instant::now(), Instant::now());
        let mut question: Option<Process> = None;
        loop {
            if let Some(status) = process.ended()? {
                return Ok(match (status.success(), was_killed(status)) {
                    (true, _) => Ended::Well,
                    (_, true) => Ended::Killed,
                    _ => Ended::Badly(status),
                });
            }
            if Instant::now() >= until {
                process.kill()?;
                continue;
            }
            if fed.elapsed() >= FEED_EVERY {
                fed = Instant::now();
                self.feed.as_mut().map_or(Ok(()), Feed::write)?;
            }
            let answered = question.as_mut().is_none_or(|q| matches!(q.ended(), Ok(Some(_)) | Err(_)));
            if asked != Asked::Nothing && answered && asked_last.elapsed() >= ASK_EVERY {
                asked_last = Instant::now();
                question = Some(self.ask(asked)?);
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    fn ask(&mut self, asked: Asked) -> Result<Process> {
        self.processes += 1;
        let said = self.folder.join(format!("process-{:03}-asked.txt", self.processes));
        let savepoint = format!("{}/savepoint-{}", self.place.location, self.processes);
        match asked {
            Asked::Stop => self.binary.ask(&["stop"], &self.manifest, said),
            _ => self.binary.ask(&["savepoint", &savepoint], &self.manifest, said),
        }
    }

    /// Takes note of how a process ended; whether the job came to its end.
    fn after(&mut self, process: Process, ended: Ended, armed: Option<Failpoint>, stopping: bool) -> Result<bool> {
        match ended {
            Ended::Killed => {
                self.outcome.kills += 1;
                // By whom is not in the status; who was armed and killed by us late counts as killed by us.
                let reached = armed.filter(|_| !process.was_killed_by_us());
                self.outcome.hit.extend(reached);
                self.may_have_ended |= stopping;
                Ok(false)
            }
            Ended::Well => self.ended_well(&process),
            Ended::Badly(status) => self.ended_badly(&process, status),
        }
    }

    fn ended_well(&mut self, process: &Process) -> Result<bool> {
        let said = process.said();
        let stopped = said.contains("stopped with a checkpoint");
        let committed = said.contains("committed what the run before");
        self.may_have_ended = true;
        if stopped || committed { Ok(false) } else { Ok(self.plan.job.ends()) }
    }

    /// A job that was killed after its very end starts anew if it is not told to go on, and then finds its own output.
    fn ended_badly(&mut self, process: &Process, status: ExitStatus) -> Result<bool> {
        let said = process.said();
        if said.contains(ALREADY) && self.plan.job.ends() && !self.may_have_ended {
            self.ended_unseen = true;
            return Ok(true);
        }
        if let Some(parallelism) = needed_parallelism(&said) {
            self.parallelism = Some(parallelism);
            return Ok(false);
        }
        bail!("a process failed ({status}): {}", said.trim())
    }

    fn stop(&mut self, after_ms: u64, savepoint: bool) -> Result<bool> {
        let mut process = self.start(None, false)?;
        let begin = Instant::now();
        let location = format!("{}/stopped-{}", self.place.location, self.processes);
        let words = if savepoint { vec!["stop", "--savepoint", &location] } else { vec!["stop"] };
        let mut question: Option<Process> = None;
        let mut asked = begin + Duration::from_millis(after_ms);
        let mut wrote = false;
        while process.ended()?.is_none() {
            let answer = question.as_mut().map_or(Ok(None), Process::ended)?;
            wrote |= answer.is_some_and(|status| status.success());
            if Instant::now() >= asked && !wrote && (question.is_none() || answer.is_some()) {
                self.processes += 1;
                let said = self.folder.join(format!("process-{:03}-stop.txt", self.processes));
                question = Some(self.binary.ask(&words, &self.manifest, said)?);
                asked = Instant::now() + ASK_EVERY;
            }
            if begin.elapsed() > HANGS {
                bail!("a job did not stop within {HANGS:?}: {}", process.said().trim());
            }
            self.feed.as_mut().map_or(Ok(()), Feed::write)?;
            thread::sleep(LOOK_EVERY * 4);
        }
        // Its answer may come after its end.
        if let Some(mut question) = question {
            let begin = Instant::now();
            while question.ended()?.is_none() && begin.elapsed() < PATIENCE {
                thread::sleep(LOOK_EVERY);
            }
            wrote |= question.ended()?.is_some_and(|status| status.success());
        }
        let Some(status) = process.ended()? else { return Ok(false) };
        if !status.success() {
            return self.ended_badly(&process, status);
        }
        let finished = self.ended_well(&process)?;
        if wrote && savepoint && !finished {
            self.from = Some(location);
        }
        Ok(finished)
    }

    /// Starts the same job from another manifest; whoever was first must notice, and stop.
    fn second(&mut self, after_ms: u64) -> Result<bool> {
        let mut first = self.start(None, false)?;
        let until = Instant::now() + Duration::from_millis(after_ms);
        while Instant::now() < until {
            if let Some(status) = first.ended()? {
                return if status.success() { self.ended_well(&first) } else { self.ended_badly(&first, status) };
            }
            self.feed.as_mut().map_or(Ok(()), Feed::write)?;
            thread::sleep(FEED_EVERY);
        }
        let second_manifest = self.folder.join("second/tidemill.toml");
        // The first may come to its end before the second begins.
        let before = std::mem::replace(&mut self.may_have_ended, true);
        let mut second = self.start_of(&second_manifest, None, false)?;
        self.may_have_ended = before;
        let begin = Instant::now();
        while first.ended()?.is_none() && second.ended()?.is_none() {
            if begin.elapsed() > HANGS {
                bail!("two processes ran the same job for {HANGS:?}: {}", first.said().trim());
            }
            self.feed.as_mut().map_or(Ok(()), Feed::write)?;
            thread::sleep(FEED_EVERY);
        }
        if let Some(status) = first.ended()?
            && !status.success()
            && !first.said().contains("another process runs this job")
        {
            bail!("a process whose job another one took over failed ({status}): {}", first.said().trim());
        }
        let until = Instant::now() + Duration::from_millis(self.random.between(0, 400));
        let ended = self.wait(&mut second, until, Asked::Nothing)?;
        // The first was fenced, or had ended: it has nothing more to say.
        if first.ended()?.is_none() {
            first.kill()?;
            self.outcome.kills += 1;
        }
        self.may_have_ended = true;
        self.after(second, ended, None, false)
    }

    /// Runs without kills until the job has ended, or has written everything.
    fn finish(&mut self) -> Result<()> {
        let begin = Instant::now();
        loop {
            let latest = (self.processes > 0 && self.may_have_ended).then(|| "latest".to_owned());
            let mut set = self.set.clone();
            if self.plan.job.ends() {
                set.push("sources.bids.pace=1000000000".to_owned());
            }
            let drawn = self.random.between(1, 4);
            let parallelism = self.parallelism.take().unwrap_or(drawn);
            let start = Start { from: self.from.take().or(latest), parallelism, set, failpoint: None };
            let manifest = self.manifest.clone();
            let mut process = self.run_process(&manifest, &start)?;
            let finished =
                if self.plan.job.ends() { self.await_end(&mut process)? } else { self.await_output(&mut process)? };
            if finished {
                return Ok(());
            }
            if begin.elapsed() > HANGS {
                bail!("the job does not come to its end");
            }
        }
    }

    fn await_end(&mut self, process: &mut Process) -> Result<bool> {
        let begin = Instant::now();
        loop {
            match process.ended()? {
                Some(status) if status.success() => return self.ended_well(process),
                Some(status) => return self.ended_badly(process, status),
                None if begin.elapsed() > HANGS => bail!("a job hangs: {}", process.said().trim()),
                None => thread::sleep(LOOK_EVERY),
            }
        }
    }

    /// Waits until an endless job has written as many rows as it must, or writes nothing more, and stops it.
    fn await_output(&mut self, process: &mut Process) -> Result<bool> {
        let expected = self.plan.job.expected(self.plan.settings.records);
        let count = |outputs: &crate::reference::Outputs| outputs.values().map(Vec::len).sum::<usize>();
        let (must, mut seen, mut progressed) = (count(&expected), 0, Instant::now());
        while self.feed.as_ref().is_some_and(|feed| !feed.is_done()) {
            self.feed.as_mut().map_or(Ok(()), Feed::write)?;
        }
        while seen < must && progressed.elapsed() < PATIENCE * 3 {
            if let Some(status) = process.ended()? {
                return if status.success() { self.ended_well(process) } else { self.ended_badly(process, status) };
            }
            let now = count(&check::found(self.plan.job, &self.output.folder)?);
            if now > seen {
                (seen, progressed) = (now, Instant::now());
            }
            thread::sleep(COUNT_EVERY);
        }
        let mut question = self.ask(Asked::Stop)?;
        let begin = Instant::now();
        while process.ended()?.is_none() {
            if begin.elapsed() > HANGS {
                bail!("an endless job does not stop: {}", process.said().trim());
            }
            if question.ended()?.is_some_and(|status| !status.success()) {
                question = self.ask(Asked::Stop)?;
            }
            thread::sleep(LOOK_EVERY);
        }
        let status = process.ended()?.context("it has ended")?;
        if !status.success() {
            return self.ended_badly(process, status);
        }
        // A stop of a run that only committed what was left is not the end yet.
        Ok(process.said().contains("stopped with a checkpoint"))
    }
}
