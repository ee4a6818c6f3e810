//! What the API says of itself, and what it shows.

use serde_json::json;
use tidemill_rest::Settings;

use crate::{Cluster, operations};

#[tokio::test]
async fn the_document_and_the_page_have_all_operations() {
    let cluster = Cluster::start();
    let document = cluster.get("/api/v1/openapi.json").await.value();
    assert_eq!(document["openapi"], "3.1.0");
    let operations = operations(&document);
    let mut ids: Vec<&str> = operations.iter().map(|(_, _, of)| of["operationId"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), operations.len(), "each has an id of its own");
    let page = cluster.get("/docs").await.text;
    for (method, path, operation) in &operations {
        assert!(page.contains(&format!(">{method}</span> <code>{path}</code>")), "{method} {path} is not on the page");
        assert!(!operation["summary"].as_str().unwrap_or_default().is_empty(), "{method} {path} has no summary");
        assert!(operation["responses"]["default"].is_object(), "{method} {path} says not how it refuses");
    }
    // It has to work where nothing else can be reached.
    for elsewhere in ["://", "src=", "@import", "url("] {
        assert!(!page.contains(elsewhere), "the page needs something else: {elsewhere}");
    }
}

#[tokio::test]
async fn figures_are_open_metrics() {
    let cluster = Cluster::start();
    cluster.job("").await;
    let answer = cluster.get("/metrics").await;
    assert!(answer.headers["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    assert!(answer.text.contains("tidemill_jobs{state=\"CREATED\"} 1\n"), "{}", answer.text);
    assert!(answer.text.ends_with("# EOF\n"), "{}", answer.text);
}

#[tokio::test]
async fn a_job_is_shown_from_all_sides() {
    let cluster = Cluster::start();
    let id = cluster.job("").await;
    let job = cluster.get(&format!("/api/v1/jobs/{id}")).await.value();
    assert_eq!(job["state"], "CREATED");
    let plan = cluster.get(&format!("/api/v1/jobs/{id}/plan")).await.value();
    assert_eq!((&plan["name"], plan["nodes"].as_array().unwrap().len()), (&json!("evil"), 2));
    assert_eq!(cluster.get(&format!("/api/v1/jobs/{id}/vertices")).await.value(), json!([]));
    assert_eq!(cluster.get(&format!("/api/v1/jobs/{id}/exceptions")).await.value(), json!([]));
    let checkpoints = cluster.get(&format!("/api/v1/jobs/{id}/checkpoints")).await.value();
    assert_eq!(checkpoints, json!({"latest": null, "kept": []}));
    let figures = cluster.get(&format!("/api/v1/jobs/{id}/metrics")).await.text;
    assert!(figures.contains(&format!("tidemill_job_slots{{job=\"{id}\",name=\"evil\"}} 1")), "{figures}");
    let artifact = cluster.get(&format!("/api/v1/artifacts/{}", job["artifact"].as_str().unwrap())).await.value();
    assert_eq!(artifact["plan"], plan);
    assert!(artifact["bytes"].as_u64().unwrap() > 1_000);
    cluster
        .until(&format!("/api/v1/jobs/{id}"), |job| {
            job["reason"].as_str().is_some_and(|reason| reason.contains("1 slots are needed, and 0 of 0 are free"))
        })
        .await;
}

#[tokio::test]
async fn the_settings_are_shown_as_they_were_given() {
    let configuration = json!({"listen": {"value": "127.0.0.1:6123", "from": "default"}});
    let cluster = Cluster::with(Settings { configuration: configuration.clone(), ..Settings::default() });
    assert_eq!(cluster.get("/api/v1/configuration").await.value(), configuration);
}
