//! What is seen of jobs that run, on a worker of this process: what they log, and the memory that they hold.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{Cluster, guests};

const MIB: u64 = 1 << 20;

impl Cluster {
    /// Rows for the sources of all jobs.
    fn rows(&self, file: &str, ids: impl Iterator<Item = u64>) {
        let text: String = ids.map(|id| format!("{id}\n")).collect();
        let (folder, name) = (self.storage.path().join("in"), format!("{file}.csv"));
        std::fs::write(folder.join(format!(".{file}.tmp")), format!("id\n{text}")).unwrap();
        std::fs::rename(folder.join(format!(".{file}.tmp")), folder.join(name)).unwrap();
    }

    /// A job whose operator does this.
    async fn runs(&self, name: &str, artifact: &str, deed: &str) -> String {
        let submitted = self.submit_as(name, artifact, &format!("[params]\ndo = \"{deed}\"")).await;
        assert_eq!(submitted.status, StatusCode::CREATED, "{}", submitted.text);
        let id = submitted.value()["id"].as_str().unwrap().to_owned();
        self.until(&format!("/api/v1/jobs/{id}"), |job| job["state"] != "CREATED").await;
        id
    }

    async fn state(&self, job: &str, state: &str) -> Value {
        self.until(&format!("/api/v1/jobs/{job}"), |job| job["state"] == state).await
    }

    async fn ends(&self, job: &str) {
        self.post(&format!("/api/v1/jobs/{job}/cancel"), "").await;
        self.state(job, "CANCELED").await;
    }

    /// What jobs hold of the worker's memory, when it is as wished.
    async fn held(&self, wished: impl Fn(&Value) -> bool) -> Value {
        self.until("/api/v1/workers", |workers| wished(&workers[0]["held"])).await[0]["held"].clone()
    }

    /// How many rows came out of the job's operator.
    async fn counted(&self, job: &str, rows: u64) {
        let counted = |vertices: &Value| vertices[1]["subtasks"][0]["records_in"].as_u64() >= Some(rows);
        self.until(&format!("/api/v1/jobs/{job}/vertices"), counted).await;
    }
}

fn messages(logs: &Value) -> Vec<&str> {
    logs["entries"].as_array().unwrap().iter().map(|entry| entry["message"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_job_logs_is_shown_and_followed() {
    let cluster = Cluster::start();
    cluster.worker(1 << 30).await;
    let flow = cluster.upload(guests::with_plan("flow")).await;
    let job = cluster.runs("logs", &flow, "process:log").await;
    let path = format!("/api/v1/jobs/{job}/logs");
    let begun = cluster.until(&path, |logs| messages(logs).contains(&"all its slots run")).await;
    assert!(messages(&begun)[0].starts_with("it is deployed: 1 slots on worker-"), "{begun}");

    // One who waits is answered when there is something.
    let follow = format!("{path}?task=deed&wait_ms=30000&after={}", begun["next"]);
    let waits = cluster.get(&follow);
    cluster.rows("1", 0..10);
    let logs = timeout(Duration::from_secs(20), waits).await.unwrap().value();
    let entry = &logs["entries"][0];
    assert_eq!(entry["message"], "it is \\u{1b}[31mred\\u{1b}[0m here");
    assert_eq!(
        (&entry["level"], &entry["job"], &entry["operator"], &entry["subtask"], &entry["node"]),
        (&json!("WARN"), &json!(job), &json!("deed"), &json!(0), &json!(1))
    );
    assert!(entry["worker"].as_str().unwrap().starts_with("worker-"), "{entry}");
    assert!(entry["at_ms"].as_i64().unwrap() > 1_600_000_000_000, "{entry}");
    for (task, there) in [("1/0", true), ("deed/0", true), ("in", false), ("out/0", false)] {
        let found = cluster.get(&format!("{path}?task={task}")).await.value();
        assert_eq!(!messages(&found).is_empty(), there, "{task}: {found}");
    }
    for (task, words) in [("none", "in, deed, out"), ("deed/1", "from 0 to 0"), ("7", "no operator '7'"), ("", "''")] {
        cluster.get(&format!("{path}?task={task}")).await.refuses(422, words);
    }
    // It is over: nobody waits any more, and what was logged is there still.
    let last = cluster.get(&path).await.value();
    let end = format!("{path}?wait_ms=30000&after={}", last["next"]);
    let (ended, ()) = tokio::join!(cluster.get(&end), cluster.ends(&job));
    assert!(messages(&ended.value()).contains(&"it is over: CANCELED"), "{}", ended.text);
    let after = cluster.get(&path).await.value();
    assert_eq!((&after["over"], messages(&after)[0]), (&json!(true), messages(&begun)[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_logs_in_a_loop_drowns_nobody() {
    let cluster = Cluster::start();
    cluster.worker(1 << 30).await;
    let flow = cluster.upload(guests::with_plan("flow")).await;
    let job = cluster.runs("flood", &flow, "process:log-flood").await;
    (0..20).for_each(|file| cluster.rows(&file.to_string(), 0..10));
    let path = format!("/api/v1/jobs/{job}/logs");
    let logs = cluster.until(&path, |logs| logs["dropped"].as_u64() > Some(100)).await;
    assert!(messages(&logs).iter().any(|text| text.ends_with("the job logs more than is kept")), "{logs}");
    cluster.counted(&job, 200).await;
    cluster.ends(&job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_code_grows_beyond_its_worker_ends_alone() {
    let cluster = Cluster::start();
    cluster.worker(64 * MIB).await;
    let flow = cluster.upload(guests::with_plan("flow")).await;
    let neighbour = cluster.runs("neighbour", &flow, "process:hold").await;
    cluster.rows("1", 0..10);
    cluster.counted(&neighbour, 10).await;
    let held = cluster.held(|held| held["guests_bytes"].as_u64() > Some(8 * MIB)).await;
    assert!(held["guests_bytes"].as_u64() < Some(16 * MIB), "{held}");
    assert_eq!((&held["state_bytes"], &held["connectors_bytes"]), (&json!(0), &json!(0)));

    let hoarder = cluster.runs("hoarder", &flow, "process:memory").await;
    let failed = cluster.state(&hoarder, "FAILED").await;
    let reason = failed["reason"].as_str().unwrap();
    for words in [
        "job 'hoarder', operator 'deed' (1/1), processing records: the component, which has ",
        " bytes of memory, got no more: the process may use 64 MiB of memory, which is not enough: job 'hoarder' asks for ",
        "; of the rest holds job 'neighbour' ",
        "mend: Use less in the operator, give workers more --memory",
    ] {
        assert!(reason.contains(words), "'{words}' is missing in {reason}");
    }
    let logs = cluster.get(&format!("/api/v1/jobs/{hoarder}/logs")).await.value();
    assert!(messages(&logs).contains(&reason), "{logs}");

    // The neighbour goes on, and what the other one held is there again.
    cluster.rows("2", 0..10);
    cluster.counted(&neighbour, 20).await;
    cluster.state(&neighbour, "RUNNING").await;
    cluster.held(|held| held["guests_bytes"].as_u64() < Some(16 * MIB)).await;
    cluster.ends(&neighbour).await;
    cluster.held(|held| held["guests_bytes"] == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_state_grows_beyond_its_worker_ends_and_leaves_nothing() {
    let cluster = Cluster::start();
    cluster.worker(16 * MIB).await;
    let count = cluster.upload(guests::with_plan("count")).await;
    let job = cluster.runs("keys", &count, "good").await;
    cluster.rows("1", 0..1_000);
    let held = cluster.held(|held| held["state_bytes"].as_u64() > Some(0)).await;
    assert!(held["state_bytes"].as_u64() > Some(16_000) && held["state_bytes"].as_u64() < Some(4 * MIB), "{held}");
    cluster.state(&job, "RUNNING").await;
    cluster.rows("2", 0..1_000_000);
    let failed = cluster.state(&job, "FAILED").await;
    let reason = failed["reason"].as_str().unwrap();
    for words in [
        "job 'keys', operator '",
        "the process may use 16 MiB of memory, which is not enough: job 'keys' holds ",
        "state 1",
        "no other job holds any",
        "[state] backend = \"rocksdb\"",
        "more workers",
    ] {
        assert!(reason.contains(words), "'{words}' is missing in {reason}");
    }
    assert_eq!(failed["restarts"], 0, "it would come to the same again");
    let held = cluster.held(|held| held["state_bytes"] == 0 && held["guests_bytes"] == 0).await;
    assert_eq!(held["exchange_bytes"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_for_which_others_leave_no_room_goes_to_another_worker_while_there_is_one() {
    let cluster = Cluster::start();
    cluster.worker_of(8, 16 * MIB).await;
    let flow = cluster.upload(guests::with_plan("flow")).await;
    let neighbour = cluster.runs("neighbour", &flow, "process:hold").await;
    cluster.rows("1", 0..10);
    cluster.counted(&neighbour, 10).await;
    let held = cluster.held(|held| held["guests_bytes"].as_u64() > Some(8 * MIB)).await;
    assert!(held["code_bytes"].as_u64() > Some(0), "{held}");
    // With fewer slots: who has most left comes first, and that is the full one.
    cluster.worker_of(2, 1 << 30).await;

    let refused = |job: &Value, name: &str| {
        let reason = job["exceptions"][0]["text"].as_str().unwrap().to_owned();
        let words = format!("job '{name}' asks for ");
        assert!(reason.contains(&words) && reason.contains("of the rest holds job 'neighbour' "), "{reason}");
    };
    // One has no room to begin with, though it takes no checkpoints: it has done nothing.
    let late = cluster.runs("late", &flow, "open:hold").await;
    let runs = cluster.state(&late, "RUNNING").await;
    assert_eq!(runs["restarts"], 1, "{runs}");
    refused(&runs, "late");
    // And one that grows where it is.
    let folder = cluster.storage.path().join("checkpoints").display().to_string();
    let checkpoints = format!("[params]\ndo = \"process:hold\"\n[checkpoints]\nlocation = \"{folder}\"");
    let grows = cluster.submit_as("grows", &flow, &checkpoints).await.value()["id"].as_str().unwrap().to_owned();
    cluster.counted(&grows, 10).await;
    let runs = cluster.state(&grows, "RUNNING").await;
    assert_eq!(runs["restarts"], 1, "{runs}");
    refused(&runs, "grows");

    // The other worker has no slot any more.
    let last = cluster.runs("last", &flow, "open:hold").await;
    let failed = cluster.state(&last, "FAILED").await;
    refused(&failed, "last");
    assert_eq!(failed["restarts"], 0, "{failed}");
    for job in [neighbour, late, grows] {
        cluster.ends(&job).await;
    }
}
