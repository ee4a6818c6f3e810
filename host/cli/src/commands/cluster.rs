//! What is asked of a cluster, over its API.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidemill_checkpoint::{Origin, Start};
use tidemill_coordinator::view::{ArtifactView, HeldView, JobState, JobView, Overview, WorkerView};
use tidemill_job::component;
use tidemill_rest::{RescaleRequest, SavepointRequest, StopRequest, SubmitRequest};

use super::build::say;
use super::control::absolute;
use super::{build, manifest, manifest_path};
use crate::api::Api;
use crate::args::{ClusterArgs, ClusterJobArgs, RescaleArgs, StatusArgs, SubmitArgs};
use crate::failure::{Failure, INTERRUPTED, JOB_FAILED, Outcome};
use crate::report::{Align, table};
use crate::screen::print;
use crate::units;

/// How often a job that is watched is looked at.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// How often a job that is followed is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub fn submit(args: &SubmitArgs) -> Outcome {
    let project = manifest(&args.project)?;
    if args.start.build {
        build::build(&project)?;
    }
    let bytes = component::read(args.start.component.as_ref().unwrap_or(&project.job.component))?;
    let path = manifest_path(args.project.manifest.as_ref().unwrap_or(&args.project.project));
    let text = fs::read_to_string(&path).with_context(|| format!("{} can't be read", path.display()))?;
    let api = Api::new(&args.cluster)?;
    let artifact: ArtifactView = api.answer(api.post("artifacts").body(bytes))?;
    let from = match args.start.start() {
        Start::At(Origin::Savepoint(location)) => Start::At(Origin::Savepoint(absolute(&location)?)),
        start => start,
    };
    let submission = SubmitRequest {
        artifact: artifact.id,
        manifest: text,
        manifest_name: Some(path.clone()),
        folder: Some(std::path::absolute(
            path.parent().filter(|of| !of.as_os_str().is_empty()).unwrap_or(Path::new(".")),
        )?),
        set: args.project.set.clone(),
        parallelism: args.start.parallelism,
        from: from.into(),
        allow_non_restored: args.start.allow_non_restored,
    };
    let job: JobView = api.answer(api.json("jobs", &submission))?;
    said(&args.cluster, &job, "submitted", &format!("{} as {}", job.name, job.id))?;
    if args.detach { Ok(()) } else { follow(&api, &job.id) }
}

/// Says what changes, until the job is over.
fn follow(api: &Api, id: &str) -> Outcome {
    let mut said = None;
    loop {
        let job: JobView = api.answer(api.get(&format!("jobs/{id}")))?;
        let now = (job.state, job.reason.clone());
        if said.as_ref() != Some(&now) {
            say("state", &state_text(&job));
            said = Some(now);
        }
        match job.state {
            JobState::Finished => return Ok(()),
            JobState::Failed | JobState::FailedToRecover => return Err(Failure::said(JOB_FAILED)),
            JobState::Canceled => return Err(Failure::said(INTERRUPTED)),
            _ => std::thread::sleep(LOOK_EVERY),
        }
    }
}

pub fn list(args: &ClusterArgs) -> Outcome {
    show(args, "jobs", &["job", "name", "state", "slots", "restarts"], 3, |job: &JobView| {
        let numbers = [job.parallelism.to_string(), job.restarts.to_string()];
        [job.id.clone(), job.name.clone(), job.state.to_string()].into_iter().chain(numbers).collect()
    })
}

pub fn status(args: &StatusArgs) -> Outcome {
    let (cluster, path) = (&args.job.cluster, format!("jobs/{}", args.job.job));
    let api = Api::new(cluster)?;
    loop {
        let job: JobView = api.answer(api.get(&path))?;
        if args.watch {
            clear();
        }
        match cluster.json {
            true => print(&json_text(&job)?),
            false => show_job(&job),
        }
        if !args.watch || job.state.is_final() {
            return Ok(());
        }
        std::thread::sleep(WATCH_EVERY);
    }
}

/// A terminal shows the newest look alone; elsewhere they follow each other.
fn clear() {
    let terminal = console::Term::stdout();
    if terminal.is_term() {
        // That it can't be cleared shows.
        _ = terminal.clear_screen();
    }
}

fn show_job(job: &JobView) {
    let mut text = format!("{} ({}): {}\n", job.name, job.id, state_text(job));
    if let Some(checkpoints) = &job.checkpoints {
        let took = units::duration(Duration::from_millis(checkpoints.duration_ms));
        text.push_str(&format!(
            "checkpoints: {} taken, the last in {took} with {}; {} given up\n",
            checkpoints.completed,
            units::bytes(checkpoints.bytes),
            checkpoints.failed
        ));
    }
    if let Some(attempt) = job.attempt.as_ref().filter(|attempt| attempt.restored_bytes > 0) {
        text.push_str(&format!("restored: {}", units::bytes(attempt.restored_bytes)));
        // None: there are no copies, as where checkpoints are in a folder.
        if attempt.restored_local_bytes > 0 {
            let local = units::bytes(attempt.restored_local_bytes);
            text.push_str(&format!(", {local} of it from the machines where it runs"));
        }
        text.push('\n');
    }
    if let Some(savepoint) = &job.savepoint {
        text.push_str(&format!("savepoint: {savepoint}\n"));
    }
    for exception in &job.exceptions {
        text.push_str(&format!("failed: {}\n", exception.text));
    }
    print(&text);
    let rows = job.vertices.iter().flat_map(|vertex| {
        (0..).zip(&vertex.subtasks).map(|(index, subtask): (u32, _)| {
            let worker = subtask.worker.clone().unwrap_or_default();
            let counts = [subtask.records_in, subtask.records_out].map(units::count);
            let [records_in, records_out] = counts;
            vec![vertex.name.clone(), vertex.kind.clone(), index.to_string(), worker, records_in, records_out]
        })
    });
    print_table(&["operator", "kind", "subtask", "worker", "in", "out"], rows, 4);
}

pub fn cancel(args: &ClusterJobArgs) -> Outcome {
    let api = Api::new(&args.cluster)?;
    let job: JobView = api.answer(api.post(&format!("jobs/{}/cancel", args.job)))?;
    match &job.reason {
        // It is over already.
        Some(reason) if job.state.is_final() => {
            said(&args.cluster, &job, "cancelled", &format!("{}: {reason}", job.id))
        }
        _ => said(&args.cluster, &job, "cancelling", &job.id),
    }
}

/// Stops a job of a cluster; with a savepoint, when that is there and the job over.
pub fn stop(cluster: &ClusterArgs, id: &str, savepoint: Option<&str>) -> Outcome {
    let api = Api::new(cluster)?;
    let request = StopRequest { savepoint: savepoint.map(absolute).transpose()? };
    let begun = api.begin(&format!("jobs/{id}/stop"), &request)?;
    if savepoint.is_none() {
        return said(cluster, &begun, "stopping", id);
    }
    let done = api.finish(begun).map_err(Failure::job)?;
    let location = done.location.clone().unwrap_or_default();
    said(cluster, &done, "stopped", &format!("{id} with a savepoint in {location}"))
}

/// Takes a savepoint of a job of a cluster.
pub fn savepoint(cluster: &ClusterArgs, id: &str, location: &str) -> Outcome {
    let api = Api::new(cluster)?;
    let request = SavepointRequest { location: absolute(location)? };
    let begun = api.begin(&format!("jobs/{id}/savepoints"), &request)?;
    let done = api.finish(begun).map_err(Failure::job)?;
    said(cluster, &done, "savepoint", &done.location.clone().unwrap_or_default())
}

pub fn rescale(args: &RescaleArgs) -> Outcome {
    let (id, api) = (&args.job.job, Api::new(&args.job.cluster)?);
    let request = RescaleRequest { parallelism: args.parallelism };
    let begun = api.begin(&format!("jobs/{id}/rescale"), &request)?;
    let words = format!("{id} to {} slots", args.parallelism);
    if !args.wait {
        return said(&args.job.cluster, &begun, "rescaling", &words);
    }
    let done = api.finish(begun).map_err(Failure::job)?;
    let took = done.ended_ms.unwrap_or(done.started_ms).abs_diff(done.started_ms);
    let words = format!("{words} in {}", units::duration(Duration::from_millis(took)));
    said(&args.job.cluster, &done, "rescaled", &words)
}

pub fn workers(args: &ClusterArgs) -> Outcome {
    let heads =
        ["worker", "address", "free slots", "held", "guests", "code", "state", "exchange", "connectors", "resident"];
    show(args, "workers", &heads, 2, |worker: &WorkerView| {
        let held = &worker.held;
        let slots = format!("{} of {}", worker.free_slots, worker.slots);
        let memory = format!("{} of {}", units::bytes(held.total()), units::bytes(worker.memory_bytes));
        let HeldView { guests_bytes, code_bytes, state_bytes, exchange_bytes, connectors_bytes } = *held;
        let owners = [guests_bytes, code_bytes, state_bytes, exchange_bytes, connectors_bytes];
        let bytes = owners.into_iter().chain([worker.resident_bytes]).map(units::bytes);
        [worker.id.clone(), worker.address.clone(), slots, memory].into_iter().chain(bytes).collect()
    })?;
    if !args.json {
        let api = Api::new(args)?;
        let cluster: Overview = api.answer(api.get("overview"))?;
        let (standby, free) = (cluster.standby_slots, cluster.free_slots);
        if standby > 0 {
            print(&format!("{standby} of {free} free slots are kept for jobs that are started again\n"));
        }
    }
    Ok(())
}

pub fn artifacts(args: &ClusterArgs) -> Outcome {
    show(args, "artifacts", &["artifact", "size"], 1, |artifact: &ArtifactView| {
        vec![artifact.id.clone(), units::bytes(artifact.bytes)]
    })
}

fn state_text(job: &JobView) -> String {
    match &job.reason {
        Some(reason) => format!("{}: {reason}", job.state),
        None => job.state.to_string(),
    }
}

/// Shows what is at a path of the API: as JSON, or a row each, with these heads. The columns from `numbers` on are numbers.
fn show<T: DeserializeOwned + Serialize>(
    args: &ClusterArgs,
    path: &str,
    heads: &[&str],
    numbers: usize,
    row: impl Fn(&T) -> Vec<String>,
) -> Outcome {
    let all: Vec<T> = {
        let api = Api::new(args)?;
        api.answer(api.get(path))?
    };
    match args.json {
        true => print(&json_text(&all)?),
        false => print_table(heads, all.iter().map(row), numbers),
    }
    Ok(())
}

/// Says what was done: as JSON, or in words.
fn said(args: &ClusterArgs, answer: &impl Serialize, verb: &str, words: &str) -> Outcome {
    match args.json {
        true => print(&json_text(answer)?),
        false => say(verb, words),
    }
    Ok(())
}

/// The columns from `numbers` on are numbers.
pub fn print_table(heads: &[&str], rows: impl Iterator<Item = Vec<String>>, numbers: usize) {
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    let align: Vec<Align> =
        (0..heads.len()).map(|column| if column < numbers { Align::Left } else { Align::Right }).collect();
    let rows: Vec<Vec<String>> = [heads].into_iter().chain(rows).collect();
    let mut text = String::new();
    for line in table(&align, &rows) {
        text.push_str(&line);
        text.push('\n');
    }
    print(&text);
}

pub fn json_text(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}
