//! What each operation refuses, and in which words: wrong bodies, too much, unknown ids, wrong states, hostile components.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use serde_json::{Value, json};

use tidemill_coordinator::{SlotSettings, WhenFull};
use tidemill_rest::Settings;

use crate::{Cluster, guests, operations};

const CHECKPOINTS: &str = "[checkpoints]\nlocation = \"/nowhere/checkpoints\"";

#[tokio::test]
async fn unknown_ids_are_not_found() {
    let cluster = Cluster::start();
    let document = cluster.get("/api/v1/openapi.json").await.value();
    let mut asked = 0;
    for (method, path, operation) in operations(&document).into_iter().filter(|(_, path, _)| path.contains("{id}")) {
        asked += 1;
        let mut request = Request::builder().method(&method).uri(path.replace("{id}", "none"));
        let mut body = Body::empty();
        if operation.get("requestBody").is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
            body = Body::from(r#"{"location": "/x", "parallelism": 1}"#);
            // Each takes one of these.
            body = if path.ends_with("/stop") { Body::from("{}") } else { body };
            body = if path.ends_with("/savepoints") { Body::from(r#"{"location": "/x"}"#) } else { body };
            body = if path.ends_with("/rescale") { Body::from(r#"{"parallelism": 1}"#) } else { body };
        }
        cluster.send(request.body(body).unwrap()).await.refuses(404, "'none'");
    }
    assert!(asked > 12, "only {asked} operations");
}

#[tokio::test]
async fn bodies_that_are_not_what_they_should_be_are_refused() {
    let cluster = Cluster::start();
    let document = cluster.get("/api/v1/openapi.json").await.value();
    let takes_json = |operation: &Value| operation.pointer("/requestBody/content/application~1json").is_some();
    let mut asked = 0;
    for (_, path, _) in operations(&document).into_iter().filter(|(_, _, operation)| takes_json(operation)) {
        asked += 1;
        let job = cluster.job("").await;
        let path = path.replace("{id}", &job);
        cluster.post(&path, "{}").await.refuses(415, "Content-Type");
        cluster.json(&path, &json!({"unknown": 1})).await.refuses(422, "unknown field");
        cluster.json(&path, &json!([])).await.refuses(422, "invalid");
        let send = async |body: Body| {
            let request = Request::post(&path).header(header::CONTENT_TYPE, "application/json");
            cluster.send(request.body(body).unwrap()).await
        };
        send(Body::from("{")).await.refuses(400, "JSON");
        send(Body::from(vec![b' '; 2 << 20])).await.refuses(413, "1024 KiB");
    }
    assert_eq!(asked, 4);
}

#[tokio::test]
async fn paths_and_methods_that_are_none_are_refused() {
    let cluster = Cluster::start();
    for path in ["/", "/nothing", "/api/v1", "/api/v1/", "/api/v1/nothing", "/api/v1/jobs/a/b/c"] {
        cluster.get(path).await.refuses(404, path);
    }
    for (method, path, allowed) in [
        (Method::DELETE, "/api/v1/jobs", "GET,HEAD,POST"),
        (Method::POST, "/api/v1/overview", "GET,HEAD"),
        (Method::GET, "/api/v1/jobs/x/cancel", "POST"),
        (Method::PUT, "/health", "GET,HEAD"),
    ] {
        let refused = cluster.send(Request::builder().method(method).uri(path).body(Body::empty()).unwrap()).await;
        refused.refuses(405, path);
        assert_eq!(refused.headers[header::ALLOW], allowed, "{path}");
    }
    cluster.get("/api/v1/jobs/%FF").await.refuses(400, "UTF-8");
}

#[tokio::test]
async fn uploads_that_are_too_large_or_no_jobs_are_refused() {
    let cluster = Cluster::start();
    let path = "/api/v1/artifacts";
    let told = Request::post(path).header(header::CONTENT_LENGTH, 65 << 20);
    cluster.send(told.body(Body::empty()).unwrap()).await.refuses(413, "64 MiB");
    cluster.post(path, vec![0; (64 << 20) + 1]).await.refuses(413, "64 MiB");
    cluster.post(path, "").await.refuses(422, "wasm");
    cluster.post(path, "no component").await.refuses(422, "wasm");
    cluster.post(path, guests::module()).await.refuses(422, "component");
    for (deed, words) in [
        ("refuse", "no job here"),
        ("no-json", "plan"),
        ("unknown", "vision"),
        ("deep", "plan"),
        ("huge", "plan"),
        ("trap", "plan"),
        ("loop", "plan"),
        ("memory", "plan"),
        ("recurse", "plan"),
        ("emit", "plan"),
    ] {
        let refused = cluster.post(path, guests::with_plan(deed)).await;
        assert!([413, 422].contains(&refused.status.as_u16()), "{deed}: {}", refused.text);
        refused.refuses(refused.status.as_u16(), words);
    }
    assert_eq!(cluster.get(path).await.value(), json!([]), "nothing of it is kept");
}

#[tokio::test]
async fn submissions_that_can_not_run_are_refused() {
    let cluster = Cluster::start();
    let artifact = cluster.artifact().await;
    let submit = async |artifact: &str, manifest: &str, more: Value| {
        let mut body = json!({"artifact": artifact, "manifest": manifest});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        cluster.json("/api/v1/jobs", &body).await
    };
    let job = "[job]\ncomponent = \"x\"\n";
    submit("../../etc/passwd", job, json!({})).await.refuses(422, "names no artifact");
    submit(&"0".repeat(64), job, json!({})).await.refuses(422, "no artifact");
    submit(&artifact, "[job", json!({})).await.refuses(422, "tidemill.toml");
    submit(&artifact, "[jobs]", json!({})).await.refuses(422, "did you mean");
    submit(&artifact, job, json!({})).await.refuses(422, "source 'in'");
    submit(&artifact, job, json!({"folder": "relative"})).await.refuses(422, "not absolute");
    submit(&artifact, job, json!({"set": ["x"]})).await.refuses(422, "--set x");
    submit(&artifact, job, json!({"parallelism": 0})).await.refuses(422, "parallelism");
    submit(&artifact, job, json!({"parallelism": u32::MAX})).await.refuses(422, "parallelism");
    submit(&artifact, job, json!({"from": "yesterday"})).await.refuses(422, "yesterday");
    submit(&artifact, job, json!({"from": "latest"})).await.refuses(422, "takes no checkpoints");
    submit(&artifact, job, json!({"from": {"savepoint": "/x"}})).await.refuses(422, "takes no checkpoints");
    assert_eq!(cluster.get("/api/v1/jobs").await.value(), json!([]));
}

#[tokio::test]
async fn what_a_job_can_not_do_as_it_is_now_is_a_conflict() {
    let cluster = Cluster::start();
    let id = cluster.job("").await;
    let job = format!("/api/v1/jobs/{id}");
    let artifact = cluster.get(&job).await.value()["artifact"].as_str().unwrap().to_owned();
    let delete = async || {
        let request = Request::delete(format!("/api/v1/artifacts/{artifact}"));
        cluster.send(request.body(Body::empty()).unwrap()).await
    };
    // It waits for slots.
    assert_eq!(cluster.get(&job).await.value()["state"], "CREATED");
    cluster.json(&format!("{job}/stop"), &json!({})).await.refuses(409, "does not run now");
    cluster.json(&format!("{job}/stop"), &json!({"savepoint": "/x"})).await.refuses(409, "takes no checkpoints");
    cluster.json(&format!("{job}/savepoints"), &json!({"location": "/x"})).await.refuses(409, "takes no checkpoints");
    cluster.json(&format!("{job}/savepoints"), &json!({"location": "x"})).await.refuses(422, "neither absolute");
    cluster.post(&format!("{job}/checkpoints"), "").await.refuses(409, "takes no checkpoints");
    cluster.json(&format!("{job}/rescale"), &json!({"parallelism": 2})).await.refuses(409, "takes no checkpoints");
    cluster.json(&format!("{job}/rescale"), &json!({"parallelism": 0})).await.refuses(409, "parallelism");
    delete().await.refuses(409, "in use by the job");
    let other = Cluster::start();
    let waits = format!("/api/v1/jobs/{}", other.job(CHECKPOINTS).await);
    other.json(&format!("{waits}/savepoints"), &json!({"location": "/x"})).await.refuses(409, "does not run now");
    other.post(&format!("{waits}/checkpoints"), "").await.refuses(409, "does not run now");
    other.submit(CHECKPOINTS).await.refuses(422, "keeps its checkpoints in");

    assert_eq!(cluster.post(&format!("{job}/cancel"), "").await.status, StatusCode::ACCEPTED);
    cluster.until(&job, |job| job["state"] == "CANCELED").await;
    cluster.post(&format!("{job}/cancel"), "").await.refuses(409, "is over");
    cluster.json(&format!("{job}/stop"), &json!({})).await.refuses(409, "is over");
    cluster.json(&format!("{job}/rescale"), &json!({"parallelism": 2})).await.refuses(409, "is over");

    assert_eq!(delete().await.status, StatusCode::NO_CONTENT);
    delete().await.refuses(404, "no artifact");
}

#[tokio::test]
async fn a_job_that_does_not_fit_is_refused_where_that_is_set() {
    let slots = SlotSettings { when_full: WhenFull::Refuse, standby: 4 };
    let cluster = Cluster::of_slots(Settings::default(), slots);
    cluster.submit("").await.refuses(503, "needs 1 slots, and 0 of 0 are free");
    cluster.worker(1 << 30).await;
    cluster.submit("").await.refuses(503, "needs 1 slots, 4 of 4 are free, 4 of these are kept as standby");
    assert_eq!(cluster.get("/api/v1/overview").await.value()["standby_slots"], 4);
    assert_eq!(cluster.get("/api/v1/jobs").await.value(), json!([]), "nothing of it is kept");
}

#[tokio::test]
async fn a_job_that_never_ran_waits_for_slots_that_are_not_kept() {
    let cluster = Cluster::of_slots(Settings::default(), SlotSettings { standby: 4, ..SlotSettings::default() });
    cluster.worker(1 << 30).await;
    let waits = cluster.job("").await;
    let reason = "1 slots are needed, 4 of 4 are free, 4 of these are kept as standby";
    let job = cluster.until(&format!("/api/v1/jobs/{waits}"), |job| job["reason"] != json!(null)).await;
    assert_eq!(job["state"], "CREATED");
    assert!(job["reason"].as_str().unwrap().starts_with(reason), "{job}");
}

#[tokio::test]
async fn questions_for_logs_that_make_no_sense_are_refused() {
    let cluster = Cluster::start();
    let logs = format!("/api/v1/jobs/{}/logs", cluster.job("").await);
    for (query, words) in [
        ("limit=0", "'limit' is 0"),
        ("limit=1001", "Give 1 to 1000"),
        ("limit=-1", "limit"),
        ("limit=many", "limit"),
        ("wait_ms=30001", "Give 0 to 30000"),
        ("after=-1", "after"),
        ("after=18446744073709551616", "after"),
        ("task=a&task=b", "task"),
        ("operator=map", "unknown field"),
    ] {
        cluster.get(&format!("{logs}?{query}")).await.refuses(422, words);
    }
    cluster
        .get("/api/v1/jobs/none/logs?limit=5")
        .await
        .refuses(404, "there is no job 'none'\n  mend: GET /api/v1/jobs");
    // All that is right, and most that is odd, is answered.
    for query in
        ["", "?limit=1000", "?after=18446744073709551615", "?task=anything/0", "?task=%00", "?wait_ms=1&after=0"]
    {
        let answer = cluster.get(&format!("{logs}{query}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{query}: {}", answer.text);
    }
}

#[tokio::test]
async fn an_operation_is_asked_for_until_it_is_over() {
    let cluster = Cluster::start();
    let id = cluster.job(CHECKPOINTS).await;
    let job = format!("/api/v1/jobs/{id}");
    let begin = async |parallelism: u32| {
        let begun = cluster.json(&format!("{job}/rescale"), &json!({"parallelism": parallelism})).await;
        assert_eq!(begun.status, StatusCode::ACCEPTED, "{}", begun.text);
        assert_eq!(begun.value()["state"], "RUNNING");
        begun.headers[header::LOCATION].to_str().unwrap().to_owned()
    };
    let (first, second) = (begin(2).await, begin(3).await);
    let superseded = cluster.until(&first, |operation| operation["state"] != "RUNNING").await;
    assert_eq!(superseded["state"], "FAILED");
    assert!(superseded["failure"].as_str().unwrap().contains("took its place"), "{superseded}");
    assert_eq!(cluster.get(&second).await.value()["state"], "RUNNING");
    cluster.post(&format!("{job}/cancel"), "").await;
    let ended = cluster.until(&second, |operation| operation["state"] != "RUNNING").await;
    assert!(ended["failure"].as_str().unwrap().contains("ended before as CANCELED"), "{ended}");
    assert_eq!(cluster.get("/api/v1/operations").await.value().as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_storage_that_is_gone_is_noticed() {
    let cluster = Cluster::start();
    assert_eq!(cluster.get("/ready").await.value(), json!({"ready": true}));
    std::fs::remove_dir_all(cluster.storage.path()).unwrap();
    cluster.get("/ready").await.refuses(503, "the storage does not answer");
    assert_eq!(cluster.get("/health").await.text, "ok\n");
}
