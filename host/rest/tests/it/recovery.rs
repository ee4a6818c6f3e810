//! What the next coordinator finds of the one before it, and does with what it can't read.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};
use tidemill_connector_kit::Registry;

use crate::{Cluster, registry};

/// A registry without files.
fn without_files() -> Arc<Registry> {
    let mut registry = Registry::new();
    tidemill_connector_builtin::register(&mut registry);
    Arc::new(registry)
}

impl Cluster {
    fn job_file(&self, id: &str, suffix: &str) -> PathBuf {
        self.storage.path().join(format!("jobs/{id}.{suffix}"))
    }

    async fn shown(&self, id: &str) -> Value {
        self.get(&format!("/api/v1/jobs/{id}")).await.value()
    }
}

/// That it is shown as one that can't be gone on with, for these reasons, and that nothing can be done to it as it is.
async fn is_not_recovered(cluster: &Cluster, id: &str, words: &[&str]) {
    let path = format!("/api/v1/jobs/{id}");
    let shown = cluster.until(&path, |job| job["state"] == "FAILED_TO_RECOVER").await;
    let reason = shown["reason"].as_str().unwrap();
    let cancel = format!("`tidemill cancel {id}` takes it off the list");
    for words in words.iter().copied().chain(["mend: ", &cancel]) {
        assert!(reason.contains(words), "not '{words}': {reason}");
    }
    let listed = cluster.get("/api/v1/jobs").await.value();
    let listed: Vec<&Value> = listed.as_array().unwrap().iter().filter(|job| job["id"] == id).collect();
    assert_eq!(listed[0]["state"], "FAILED_TO_RECOVER");
    cluster.json(&format!("{path}/stop"), &json!({})).await.refuses(409, "FAILED_TO_RECOVER");
    for path in [format!("{path}/checkpoints"), format!("{path}/logs"), "/metrics".to_owned(), "/ready".to_owned()] {
        assert!(cluster.get(&path).await.status.as_u16() < 500, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_can_not_be_read_keeps_no_other_from_going_on() {
    let first = Cluster::start();
    let (good, newer, damaged) = (first.job("").await, first.job("").await, first.job("").await);
    let written = |id: &str| fs::read_to_string(first.job_file(id, "job")).unwrap();
    let (newer_text, damaged_text) = (written(&newer), written(&damaged));
    // As another version would write the manifest, and half a file.
    fs::write(first.job_file(&newer, "job"), newer_text.replace("component =", "priority = 7\\ncomponent =")).unwrap();
    fs::write(first.job_file(&damaged, "job"), &damaged_text[..50]).unwrap();

    let second = first.again(registry());
    assert_eq!(second.shown(&good).await["state"], "CREATED");
    let newer_file = first.job_file(&newer, "job").display().to_string();
    is_not_recovered(&second, &newer, &[&newer_file, "tidemill.toml", "priority"]).await;
    let damaged_file = first.job_file(&damaged, "job").display().to_string();
    is_not_recovered(&second, &damaged, &[&damaged_file, "can't be read", "Put the file back"]).await;
    assert_eq!(second.shown(&newer).await["name"], "evil");
    let artifact = second.shown(&good).await["artifact"].as_str().unwrap().to_owned();
    second.post(&format!("/api/v1/jobs/{good}/cancel"), "").await;
    second.post(&format!("/api/v1/jobs/{newer}/cancel"), "").await;
    second.until(&format!("/api/v1/jobs/{good}"), |job| job["state"] == "CANCELED").await;
    second.delete(&format!("/api/v1/artifacts/{artifact}")).await.refuses(409, &damaged);

    // One is off the list, and its file is there; the other one is mended.
    fs::write(first.job_file(&newer, "job"), &newer_text).unwrap();
    fs::write(first.job_file(&damaged, "job"), &damaged_text).unwrap();
    let third = first.again(registry());
    assert_eq!(third.shown(&damaged).await["state"], "CREATED");
    assert_eq!(third.shown(&good).await["state"], "CANCELED");
    third.get(&format!("/api/v1/jobs/{newer}")).await.refuses(404, &newer);
    assert_eq!(written(&newer), newer_text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_can_not_be_read_is_taken_off_the_list_when_it_is_cancelled() {
    let first = Cluster::start();
    let id = first.job("").await;
    fs::write(first.job_file(&id, "job"), "{").unwrap();
    let second = first.again(registry());
    let cancelled = second.post(&format!("/api/v1/jobs/{id}/cancel"), "").await;
    assert_eq!(cancelled.status, 202);
    let cancelled = cancelled.value();
    assert_eq!(cancelled["state"], "CANCELED");
    let reason = cancelled["reason"].as_str().unwrap();
    assert!(reason.contains("off the list") && reason.contains("checkpoints"), "{reason}");
    assert_eq!(second.get("/api/v1/jobs").await.value(), json!([]));
    second.post(&format!("/api/v1/jobs/{id}/cancel"), "").await.refuses(404, &id);
    assert_eq!(fs::read_to_string(first.job_file(&id, "job")).unwrap(), "{");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_connector_that_is_gone_waits_for_a_coordinator_that_has_it() {
    let first = Cluster::start();
    let id = first.job("").await;
    let second = first.again(without_files());
    is_not_recovered(&second, &id, &["source 'in'", "files"]).await;
    assert!(!first.job_file(&id, "end").exists(), "it is not over");
    let third = first.again(registry());
    assert_eq!(third.shown(&id).await["state"], "CREATED");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_is_under_way_is_gone_on_with_and_its_outcome_is_kept() {
    let first = Cluster::start();
    let checkpoints = first.storage.path().join("checkpoints");
    let job = first.job(&format!("[checkpoints]\nlocation = \"{}\"", checkpoints.display())).await;
    let rescale = async |cluster: &Cluster, parallelism: u32| {
        let begun = cluster.json(&format!("/api/v1/jobs/{job}/rescale"), &json!({"parallelism": parallelism})).await;
        assert_eq!(begun.status, 202, "{}", begun.text);
        begun.headers["location"].to_str().unwrap().to_owned()
    };
    // There are no slots, so it waits, and so does the one that takes its place.
    let (superseded, operation) = (rescale(&first, 2).await, rescale(&first, 3).await);
    let failed = first.until(&superseded, |of| of["state"] == "FAILED").await;
    assert!(failed["failure"].as_str().unwrap().contains("another rescaling"), "{failed}");

    let second = first.again(registry());
    assert_eq!(second.get(&superseded).await.value(), failed);
    assert_eq!(second.get(&operation).await.value()["state"], "RUNNING");
    second.worker(1 << 30).await;
    let done = second.until(&operation, |of| of["state"] == "COMPLETED").await;
    assert_eq!((&done["parallelism"], &done["kind"], &done["job"]), (&json!(3), &json!("RESCALE"), &json!(job)));
    let all = second.get("/api/v1/operations").await.value();
    assert_eq!(all, json!([failed, done]));
    second.post(&format!("/api/v1/jobs/{job}/cancel"), "").await;
    second.until(&format!("/api/v1/jobs/{job}"), |job| job["state"] == "CANCELED").await;
    let third = first.again(registry());
    assert_eq!(third.get("/api/v1/operations").await.value(), all);
    assert_eq!(third.get(&operation).await.value(), done);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_job_logged_is_shown_by_the_next_coordinator() {
    let first = Cluster::start();
    let job = first.job("").await;
    let path = format!("/api/v1/jobs/{job}/logs");
    let before =
        first.until(&path, |logs| logs["entries"][0]["message"].as_str().is_some_and(|t| t.contains("waits"))).await;
    first.coordinator.write_logs();
    first.coordinator.write_logs();
    let segments = || fs::read_dir(first.storage.path().join("logs").join(&job)).unwrap().count();
    assert_eq!(segments(), 1);

    let second = first.again(registry());
    let texts = |logs: &Value| {
        let entries = logs["entries"].as_array().unwrap().iter();
        entries.map(|entry| entry["message"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let after = second.until(&path, |logs| logs["entries"].as_array().unwrap().len() > 1).await;
    assert_eq!(after["entries"][0], before["entries"][0]);
    assert_eq!((&after["not_stored"], &after["incomplete"]), (&json!(0), &json!(null)));
    // Who follows goes on where it was.
    let rest = second.get(&format!("{path}?after={}", before["next"])).await.value();
    assert_eq!(texts(&rest), texts(&after)[1..]);
    let page = second.get(&format!("{path}?after=0&limit=1")).await.value();
    assert_eq!((texts(&page), &page["next"]), (texts(&before), &before["next"]));
    assert_eq!(texts(&second.get(&format!("{path}?limit=1")).await.value()), texts(&after)[1..]);

    // What the storage has can't be read: what is in memory is shown, and why there is no more.
    let folder = first.storage.path().join("logs").join(&job);
    fs::rename(&folder, folder.with_extension("away")).unwrap();
    fs::write(&folder, "").unwrap();
    let partly = second.get(&path).await.value();
    assert_eq!(texts(&partly), texts(&after)[1..]);
    assert!(partly["incomplete"].as_str().unwrap().contains(&job), "{partly}");
    fs::remove_file(&folder).unwrap();
    fs::rename(folder.with_extension("away"), &folder).unwrap();

    second.post(&format!("/api/v1/jobs/{job}/cancel"), "").await;
    second.until(&format!("/api/v1/jobs/{job}"), |job| job["state"] == "CANCELED").await;
    second.coordinator.write_logs();
    let ended = first.again(registry()).get(&path).await.value();
    assert_eq!(texts(&ended).last().map(String::as_str), Some("it is over: CANCELED"));
    assert_eq!((texts(&ended)[0].clone(), &ended["over"]), (texts(&before)[0].clone(), &json!(true)));
}
