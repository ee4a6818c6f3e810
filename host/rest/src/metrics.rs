//! Figures for Prometheus, gathered when they are asked for. `docs/metrics.md` says what each means; a test compares.
//!
//! A series is a subtask, a job that is not over, or a worker. They are bounded: what is more is left out, and counted.

use std::fmt;
use std::sync::atomic::AtomicU64;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tidemill_coordinator::view::{JobState, JobView, Overview, SubtaskView, WorkerView};
use tidemill_core::Error;

use crate::extract::{Id, blocking};
use crate::jobs::find;
use crate::{Answer, Shared};

/// So many subtasks are shown, with a series of each figure: some megabytes of text.
const SUBTASKS: usize = 5_000;
/// What `encode` writes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SubtaskLabels {
    job: String,
    vertex: String,
    subtask: u32,
    worker: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobLabels {
    job: String,
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WorkerLabels {
    worker: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: String,
}

type Figure<T> = (&'static str, &'static str, fn(&T) -> u64);

/// What grows, for as long as an attempt at the job runs.
const OF_SUBTASKS: [Figure<SubtaskView>; 12] = [
    ("subtask_records_in", "Rows that came in", |of| of.records_in),
    ("subtask_records_out", "Rows that went out", |of| of.records_out),
    ("subtask_batches_in", "Batches that came in", |of| of.counters.batches_in),
    ("subtask_bytes_in", "Bytes of the rows that came in, in memory", |of| of.counters.bytes_in),
    ("subtask_bytes_out", "Bytes of the rows that went out, in memory", |of| of.counters.bytes_out),
    ("subtask_backpressured_milliseconds", "How long its slot stood still since receivers were full", |of| {
        of.counters.backpressured_ms
    }),
    ("subtask_records_late", "Rows that came too late for every window", |of| of.counters.records_late),
    ("subtask_records_dead_lettered", "Rows that were set aside", |of| of.counters.records_dead_lettered),
    ("subtask_records_skipped", "Malformed records that were skipped", |of| of.counters.records_skipped),
    ("subtask_crossings", "Calls into the sandbox", |of| of.counters.crossings),
    ("subtask_bytes_copied", "Bytes copied into and out of the sandbox", |of| of.counters.bytes_copied),
    ("subtask_retries", "Calls of user code that were repeated after a failure", |of| of.counters.retries),
];

/// What grows and falls.
const NOW_OF_SUBTASKS: [Figure<SubtaskView>; 2] = [
    ("subtask_state_entries", "Entries, rows and timers held in state", |of| of.counters.state_entries),
    ("subtask_state_bytes", "Bytes of state in memory", |of| of.counters.state_bytes),
];

/// What grows, of jobs.
const OF_JOBS: [Figure<JobView>; 3] = [
    ("job_restarts", "Times that it was started again after a failure", |of| of.restarts),
    ("job_checkpoints_completed", "Checkpoints of this attempt that are complete", |of| {
        of.checkpoints.as_ref().map_or(0, |checkpoints| checkpoints.completed)
    }),
    ("job_checkpoints_failed", "Checkpoints of this attempt that were given up", |of| {
        of.checkpoints.as_ref().map_or(0, |checkpoints| checkpoints.failed)
    }),
];

/// What grows and falls.
const NOW_OF_JOBS: [Figure<JobView>; 4] = [
    ("job_running", "1: all its slots run", |of| u64::from(of.state == JobState::Running)),
    ("job_slots", "Slots that it has or waits for", |of| u64::from(of.parallelism)),
    ("job_checkpoint_duration_milliseconds", "How long the newest checkpoint took", |of| {
        of.checkpoints.as_ref().map_or(0, |checkpoints| checkpoints.duration_ms)
    }),
    ("job_checkpoint_size_bytes", "What the files of the newest checkpoint have", |of| {
        of.checkpoints.as_ref().map_or(0, |checkpoints| checkpoints.bytes)
    }),
];

/// Of workers.
const NOW_OF_WORKERS: [Figure<WorkerView>; 9] = [
    ("worker_slots", "Slots that it offers", |of| u64::from(of.slots)),
    ("worker_slots_free", "Slots in which nothing runs", |of| u64::from(of.free_slots)),
    ("worker_memory_limit_bytes", "What jobs may hold there", |of| of.memory_bytes),
    ("worker_memory_resident_bytes", "What its process has in memory", |of| of.resident_bytes),
    ("worker_memory_guests_bytes", "Held by user code", |of| of.held.guests_bytes),
    ("worker_memory_code_bytes", "Held by compiled components", |of| of.held.code_bytes),
    ("worker_memory_state_bytes", "Held by state", |of| of.held.state_bytes),
    ("worker_memory_exchange_bytes", "Held by queues between slots", |of| of.held.exchange_bytes),
    ("worker_memory_connectors_bytes", "Held by sources and sinks", |of| of.held.connectors_bytes),
];

/// Figures of the cluster for Prometheus, as OpenMetrics text
#[utoipa::path(get, operation_id = "get_metrics", path = "/metrics", tag = "metrics",
    responses((status = 200, body = String, content_type = "application/openmetrics-text",
        description = "docs/metrics.md says what each means")))]
pub async fn metrics(State(shared): State<Shared>) -> Answer<impl IntoResponse> {
    let gathered = blocking(move || {
        let coordinator = &shared.coordinator;
        let mut registry = Registry::with_prefix("tidemill");
        of_cluster(&mut registry, &coordinator.overview(), &coordinator.workers());
        of_jobs(&mut registry, &coordinator.jobs());
        text(&registry)
    });
    Ok(([(header::CONTENT_TYPE, OPEN_METRICS)], gathered.await?))
}

/// The figures of a job, as OpenMetrics text
#[utoipa::path(get, operation_id = "get_job_metrics", path = "/jobs/{id}/metrics", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, body = String, content_type = "application/openmetrics-text",
        description = "docs/metrics.md says what each means")))]
pub async fn of_job(State(shared): State<Shared>, Id(id): Id) -> Answer<impl IntoResponse> {
    let job = find(&shared.coordinator, &id)?.view();
    let mut registry = Registry::with_prefix("tidemill");
    of_jobs(&mut registry, &[job]);
    Ok(([(header::CONTENT_TYPE, OPEN_METRICS)], text(&registry)?))
}

fn text(registry: &Registry) -> Result<String, Error> {
    let mut text = String::new();
    encode(&mut text, registry).map_err(|fmt::Error| Error::internal("figures that can't be written"))?;
    Ok(text)
}

fn of_cluster(registry: &mut Registry, overview: &Overview, workers: &[WorkerView]) {
    registry.register("build", "The version of Tidemill", Info::new([("version", overview.version.clone())]));
    let figures: [(&str, &str, u64); 4] = [
        ("workers", "Workers that are there", overview.workers),
        ("slots", "Slots of all workers", overview.slots),
        ("slots_free", "Slots in which nothing runs", overview.free_slots),
        ("slots_standby", "Free slots that are kept for jobs that are started again", overview.standby_slots),
    ];
    for (name, help, value) in figures {
        registry.register(name, help, gauge(value));
    }
    let labels = |of: &WorkerView| WorkerLabels { worker: of.id.clone() };
    let workers: Vec<_> = workers.iter().map(|of| (labels(of), of)).collect();
    NOW_OF_WORKERS.iter().for_each(|figure| gauges(registry, figure, &workers));
}

fn of_jobs(registry: &mut Registry, jobs: &[JobView]) {
    let states: Family<StateLabels, Gauge<u64, AtomicU64>> = Family::default();
    for job in jobs {
        states.get_or_create(&StateLabels { state: job.state.to_string() }).inc();
    }
    registry.register("jobs", "Jobs that are known, by their state", states);
    let labels = |of: &JobView| JobLabels { job: of.id.clone(), name: of.name.clone() };
    let jobs: Vec<_> = jobs.iter().filter(|of| !of.state.is_final()).map(|of| (labels(of), of)).collect();
    OF_JOBS.iter().for_each(|figure| counters(registry, figure, &jobs));
    NOW_OF_JOBS.iter().for_each(|figure| gauges(registry, figure, &jobs));
    let subtasks = || jobs.iter().flat_map(|(_, job)| subtasks(job));
    let left_out = subtasks().count().saturating_sub(SUBTASKS);
    let shown: Vec<_> = subtasks().take(SUBTASKS).collect();
    OF_SUBTASKS.iter().for_each(|figure| counters(registry, figure, &shown));
    NOW_OF_SUBTASKS.iter().for_each(|figure| gauges(registry, figure, &shown));
    let watermarks: Family<SubtaskLabels, Gauge<f64, AtomicU64>> = Family::default();
    for (labels, subtask) in &shown {
        if let Some(watermark) = subtask.watermark {
            watermarks.get_or_create(labels).set(watermark as f64 / 1e3);
        }
    }
    let help = "How far event time is, since 1970";
    registry.register_with_unit("subtask_watermark", help, Unit::Seconds, watermarks);
    registry.register("subtasks_left_out", "Subtasks that are not shown here", gauge(left_out as u64));
}

fn subtasks(job: &JobView) -> impl Iterator<Item = (SubtaskLabels, &SubtaskView)> {
    job.vertices.iter().flat_map(move |vertex| {
        (0..).zip(&vertex.subtasks).map(move |(subtask, of)| {
            let worker = of.worker.clone().unwrap_or_default();
            (SubtaskLabels { job: job.id.clone(), vertex: vertex.uid.clone(), subtask, worker }, of)
        })
    })
}

trait Labels: Clone + std::hash::Hash + Eq + EncodeLabelSet + fmt::Debug + Send + Sync + 'static {}

impl<T: Clone + std::hash::Hash + Eq + EncodeLabelSet + fmt::Debug + Send + Sync + 'static> Labels for T {}

fn counters<L: Labels, T>(registry: &mut Registry, (name, help, value): &Figure<T>, of: &[(L, &T)]) {
    let family: Family<L, Counter<u64, AtomicU64>> = Family::default();
    of.iter().for_each(|(labels, of)| _ = family.get_or_create(labels).inc_by(value(of)));
    registry.register(*name, *help, family);
}

fn gauges<L: Labels, T>(registry: &mut Registry, (name, help, value): &Figure<T>, of: &[(L, &T)]) {
    let family: Family<L, Gauge<u64, AtomicU64>> = Family::default();
    of.iter().for_each(|(labels, of)| _ = family.get_or_create(labels).set(value(of)));
    registry.register(*name, *help, family);
}

fn gauge(value: u64) -> Gauge<u64, AtomicU64> {
    let gauge = Gauge::default();
    gauge.set(value);
    gauge
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A job with so many subtasks, on one worker.
    fn job(subtasks: usize) -> JobView {
        let subtask = json!({"worker": "w", "records_in": 7, "records_out": 5, "watermark": 1500});
        let vertices = json!([{
            "uid": "map", "name": "map", "kind": "transform", "subtasks": vec![subtask; subtasks],
        }]);
        let job = json!({
            "id": "j", "name": "a \"job\"", "state": "RUNNING", "reason": null, "artifact": "", "parallelism": 1,
            "submitted_ms": 0, "ended_ms": null, "restarts": 2, "exceptions": [], "vertices": vertices,
            "checkpoints": null, "savepoint": null,
        });
        serde_json::from_value(job).unwrap()
    }

    fn shown(jobs: &[JobView]) -> String {
        let worker: Value = json!({
            "id": "w", "address": "a", "slots": 2, "free_slots": 1, "memory_bytes": 3, "resident_bytes": 4,
        });
        let overview: Value = json!({
            "version": "1", "workers": 1, "slots": 2, "free_slots": 1, "jobs_running": 1, "jobs": 1,
        });
        let mut registry = Registry::with_prefix("tidemill");
        let (overview, worker) = (serde_json::from_value(overview).unwrap(), serde_json::from_value(worker).unwrap());
        of_cluster(&mut registry, &overview, &[worker]);
        of_jobs(&mut registry, jobs);
        text(&registry).unwrap()
    }

    #[test]
    fn every_figure_is_documented() {
        let (text, documented) = (shown(&[job(1)]), include_str!("../../../docs/metrics.md"));
        let types: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        assert!(types.len() > 25, "{text}");
        for line in types {
            let (name, kind) = line.split_once(' ').unwrap();
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            assert!(documented.contains(&format!("`{name}{suffix}`")), "{name}{suffix} is not in docs/metrics.md");
        }
    }

    #[test]
    fn series_are_labelled_and_bounded() {
        let text = shown(&[job(SUBTASKS + 3)]);
        let of_one = "tidemill_subtask_records_in_total{job=\"j\",vertex=\"map\",subtask=\"0\",worker=\"w\"} 7\n";
        assert!(text.contains(of_one), "{}", text.get(..4_000).unwrap_or(&text));
        assert!(text.contains("tidemill_job_restarts_total{job=\"j\",name=\"a \\\"job\\\"\"} 2\n"));
        assert_eq!(text.matches("tidemill_subtask_records_in_total{").count(), SUBTASKS);
        assert!(text.contains("tidemill_subtasks_left_out 3\n"));
        assert!(text.contains("subtask_watermark_seconds{job=\"j\",vertex=\"map\",subtask=\"0\",worker=\"w\"} 1.5\n"));
    }
}
