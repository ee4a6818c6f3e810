//! What is asked of a cluster, over its API.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidemill_coordinator::view::{ArtifactView, JobState, JobView, WorkerView};
use tidemill_coordinator::{StartFrom, Submission};
use tidemill_core::Error;
use tidemill_job::JobDefinition;
use tidemill_rest::{ProblemBody, RescaleRequest, Savepoint, StopRequest};

use super::build::say;
use super::control::absolute;
use super::{build, manifest, manifest_path};
use crate::args::{ClusterArgs, ClusterJobArgs, RescaleArgs, SubmitArgs};
use crate::failure::{Failure, INTERRUPTED, JOB_FAILED, Outcome};
use crate::report::{Align, table};
use crate::screen::print;
use crate::units;

/// How often a job that is followed is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub fn submit(args: &SubmitArgs) -> Outcome {
    let project = manifest(&args.project)?;
    if args.build {
        build::build(&project)?;
    }
    let component = args.component.as_ref().unwrap_or(&project.job.component);
    let bytes = fs::read(component)
        .with_context(|| format!("the component {} can't be read (`tidemill build` makes it)", component.display()))?;
    let path = manifest_path(args.project.manifest.as_ref().unwrap_or(&args.project.project));
    let text = fs::read_to_string(&path).with_context(|| format!("{} can't be read", path.display()))?;
    let api = Api::new(&args.cluster)?;
    let artifact: ArtifactView = api.answer(api.post("artifacts").body(bytes))?;
    let definition = JobDefinition {
        artifact: artifact.id,
        manifest: text,
        manifest_name: path.clone(),
        folder: std::path::absolute(path.parent().filter(|of| !of.as_os_str().is_empty()).unwrap_or(Path::new(".")))?,
        set: args.project.set.clone(),
    };
    let from = match args.from.as_deref() {
        None if args.fresh => StartFrom::Anew,
        None => StartFrom::Recover,
        Some("latest") => StartFrom::Latest,
        Some(number) if number.parse::<u64>().is_ok() => StartFrom::At(number.to_owned()),
        Some(location) => StartFrom::At(absolute(location)?),
    };
    let (parallelism, allow_non_restored) = (args.parallelism, args.allow_non_restored);
    let submission = Submission { definition, parallelism, from, allow_non_restored };
    let job: JobView = api.answer(api.json("jobs", &submission))?;
    match args.cluster.json {
        true => print(&json(&job)?),
        false => say("submitted", &format!("{} as {}", job.name, job.id)),
    }
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
            JobState::Failed => return Err(Failure::said(JOB_FAILED)),
            JobState::Canceled => return Err(Failure::said(INTERRUPTED)),
            _ => std::thread::sleep(LOOK_EVERY),
        }
    }
}

pub fn list(args: &ClusterArgs) -> Outcome {
    let api = Api::new(args)?;
    let jobs: Vec<JobView> = api.answer(api.get("jobs"))?;
    if args.json {
        print(&json(&jobs)?);
        return Ok(());
    }
    let row = |job: &JobView| {
        let state = format!("{:?}", job.state).to_uppercase();
        vec![job.id.clone(), job.name.clone(), state, job.parallelism.to_string(), job.restarts.to_string()]
    };
    print_table(&["job", "name", "state", "slots", "restarts"], jobs.iter().map(row), 3);
    Ok(())
}

pub fn status(args: &ClusterJobArgs) -> Outcome {
    let api = Api::new(&args.cluster)?;
    let job: JobView = api.answer(api.get(&format!("jobs/{}", args.job)))?;
    if args.cluster.json {
        print(&json(&job)?);
        return Ok(());
    }
    let mut text = format!("{} ({}): {}\n", job.name, job.id, state_text(&job));
    if let Some(checkpoints) = &job.checkpoints {
        let took = units::duration(Duration::from_millis(checkpoints.duration_ms));
        text.push_str(&format!(
            "checkpoints: {} taken, the last in {took} with {}; {} given up\n",
            checkpoints.completed,
            units::bytes(checkpoints.bytes),
            checkpoints.failed
        ));
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
    Ok(())
}

pub fn cancel(args: &ClusterJobArgs) -> Outcome {
    let api = Api::new(&args.cluster)?;
    let job: JobView = api.answer(api.post(&format!("jobs/{}/cancel", args.job)))?;
    say("cancelling", &job.id);
    Ok(())
}

/// Stops a job of a cluster.
pub fn stop(cluster: &ClusterArgs, id: &str, savepoint: Option<&str>) -> Outcome {
    let api = Api::new(cluster)?;
    let request = StopRequest { savepoint: savepoint.map(absolute).transpose()? };
    let job: JobView = api.answer(api.json(&format!("jobs/{id}/stop"), &request))?;
    match &job.savepoint {
        Some(location) => say("stopped", &format!("{id} with a savepoint in {location}")),
        None => say("stopping", id),
    }
    Ok(())
}

/// Takes a savepoint of a job of a cluster.
pub fn savepoint(cluster: &ClusterArgs, id: &str, location: &str) -> Outcome {
    let api = Api::new(cluster)?;
    let request = Savepoint { location: absolute(location)? };
    let taken: Savepoint = api.answer(api.json(&format!("jobs/{id}/savepoints"), &request))?;
    say("savepoint", &taken.location);
    Ok(())
}

pub fn rescale(args: &RescaleArgs) -> Outcome {
    let api = Api::new(&args.job.cluster)?;
    let request = RescaleRequest { parallelism: args.parallelism };
    let job: JobView = api.answer(api.json(&format!("jobs/{}/rescale", args.job.job), &request))?;
    say("rescaling", &format!("{} to {} slots", job.id, args.parallelism));
    Ok(())
}

pub fn workers(args: &ClusterArgs) -> Outcome {
    let api = Api::new(args)?;
    let workers: Vec<WorkerView> = api.answer(api.get("workers"))?;
    if args.json {
        print(&json(&workers)?);
        return Ok(());
    }
    let row = |worker: &WorkerView| {
        let bytes = [worker.resident_bytes, worker.memory_bytes].map(units::bytes);
        let [resident, memory] = bytes;
        let slots = format!("{} of {}", worker.free_slots, worker.slots);
        vec![worker.id.clone(), worker.address.clone(), slots, format!("{resident} of {memory}")]
    };
    print_table(&["worker", "address", "free slots", "memory"], workers.iter().map(row), 2);
    Ok(())
}

pub fn artifacts(args: &ClusterArgs) -> Outcome {
    let api = Api::new(args)?;
    let artifacts: Vec<ArtifactView> = api.answer(api.get("artifacts"))?;
    if args.json {
        print(&json(&artifacts)?);
        return Ok(());
    }
    let row = |artifact: &ArtifactView| vec![artifact.id.clone(), units::bytes(artifact.bytes)];
    print_table(&["artifact", "size"], artifacts.iter().map(row), 1);
    Ok(())
}

fn state_text(job: &JobView) -> String {
    let state = format!("{:?}", job.state).to_uppercase();
    match &job.reason {
        Some(reason) => format!("{state}: {reason}"),
        None => state,
    }
}

/// The columns from `numbers` on are numbers.
fn print_table(heads: &[&str], rows: impl Iterator<Item = Vec<String>>, numbers: usize) {
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

fn json(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// A cluster's API.
struct Api {
    client: reqwest::blocking::Client,
    base: String,
}

impl Api {
    fn new(args: &ClusterArgs) -> anyhow::Result<Self> {
        // That there is one already is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // No time limit: an upload is compiled before it is answered, a savepoint written.
        let client = reqwest::blocking::Client::builder().timeout(None).build().context("no HTTP client")?;
        Ok(Self { client, base: format!("{}/api/v1", args.cluster.trim_end_matches('/')) })
    }

    fn get(&self, path: &str) -> reqwest::blocking::RequestBuilder {
        self.client.get(format!("{}/{path}", self.base))
    }

    fn post(&self, path: &str) -> reqwest::blocking::RequestBuilder {
        self.client.post(format!("{}/{path}", self.base))
    }

    fn json(&self, path: &str, body: &impl Serialize) -> reqwest::blocking::RequestBuilder {
        self.post(path).json(body)
    }

    fn answer<T: DeserializeOwned>(&self, request: reqwest::blocking::RequestBuilder) -> anyhow::Result<T> {
        let unreachable = |e: reqwest::Error| {
            let reason = Error::invalid(format!("the cluster at {} can't be reached: {e}", self.base))
                .mend("Start one with `tidemill coordinator` and `tidemill worker`, or name it with --cluster URL.");
            anyhow!(reason)
        };
        let response = request.send().map_err(unreachable)?;
        let status = response.status();
        if status.is_success() {
            return response.json().context("the cluster's answer can't be read");
        }
        let text = response.text().unwrap_or_default();
        match serde_json::from_str::<ProblemBody>(&text) {
            Ok(problem) => Err(anyhow!(problem.detail)),
            Err(_) => Err(anyhow!("the cluster answered {status}: {text}")),
        }
    }
}
