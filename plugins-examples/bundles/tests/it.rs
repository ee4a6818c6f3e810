//! The job, natively.

use serde_json::Value;
use tidemill_testkit::{Harness, json};

fn push(job: &mut Harness, messages: &[(&str, &str)]) {
    let rows: Vec<Value> = messages.iter().map(|(from, text)| json!({ "from": from, "text": text })).collect();
    job.push("messages", &rows).unwrap();
}

#[test]
fn messages_wait_for_their_bundle() {
    let mut job = Harness::with_params("bundles", bundles::bundles, &[("size", "3")]).unwrap();
    push(&mut job, &[("ada", "a"), ("bob", "b")]);
    assert!(job.rows("bundles").unwrap().is_empty());
    push(&mut job, &[("ada", "c"), ("ada", "d"), ("bob", "e"), ("bob", "f"), ("ada", "g")]);
    let bundle = |messages: i64, texts: &str| json!({ "messages": messages, "texts": texts });
    assert_eq!(
        job.rows("bundles").unwrap(),
        [bundle(3, "ada: a; bob: b; ada: c"), bundle(3, "ada: d; bob: e; bob: f")]
    );
    job.end().unwrap();
    assert_eq!(job.rows("bundles").unwrap(), [bundle(1, "ada: g")]);
}

#[test]
fn what_is_refused_is_in_no_bundle() {
    let mut job = Harness::new("bundles", bundles::bundles).unwrap().with_dead_letters().unwrap();
    push(&mut job, &[("ada", "a"), ("bob", ""), ("ada", "b")]);
    let letters = job.dead_letters().unwrap();
    assert_eq!((letters.len(), &letters[0]["reason"]), (1, &json!("bob says nothing")));
    job.end().unwrap();
    assert_eq!(job.rows("bundles").unwrap(), [json!({ "messages": 2, "texts": "ada: a; ada: b" })]);
}

#[test]
fn an_end_with_nothing_waiting_is_quiet() {
    let mut job = Harness::with_params("bundles", bundles::bundles, &[("size", "1")]).unwrap();
    push(&mut job, &[("ada", "a")]);
    assert_eq!(job.rows("bundles").unwrap().len(), 1);
    job.end().unwrap();
    assert!(job.rows("bundles").unwrap().is_empty());
}
