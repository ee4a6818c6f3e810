//! The job, with rules that change between readings.

use serde_json::Value;
use tidemill_testkit::{Harness, json};

fn job() -> Harness {
    Harness::new("limits", limits::limits).unwrap()
}

fn read(job: &mut Harness, sensor: i64, value: i64) {
    job.push("readings", &[json!({ "sensor": sensor, "value": value })]).unwrap();
}

fn alarms(job: &mut Harness) -> Vec<(String, i64, i64)> {
    let number = |row: &Value, name: &str| row[name].as_i64().unwrap();
    let rows = job.rows("alarms").unwrap();
    let alarm = |row: &Value| (row["room"].as_str().unwrap().to_owned(), number(row, "value"), number(row, "times"));
    rows.iter().map(alarm).collect()
}

#[test]
fn rules_hold_from_when_they_come() {
    let mut job = job();
    job.push("sensors", &[json!({ "sensor": 1, "room": "a" }), json!({ "sensor": 2, "room": "b" })]).unwrap();
    read(&mut job, 1, 50);
    assert!(alarms(&mut job).is_empty(), "no limit is known");
    job.push("limits", &[json!({ "room": "a", "most": 30 }), json!({ "room": "b", "most": 60 })]).unwrap();
    for (sensor, value) in [(1, 31), (1, 40), (2, 40), (1, 30), (1, 32)] {
        read(&mut job, sensor, value);
    }
    let expected = [(31, 1), (40, 2), (32, 1)].map(|(value, times)| ("a".to_owned(), value, times));
    assert_eq!(alarms(&mut job), expected);
    // Of several rows in one batch, the last one counts; a sensor moves.
    job.push("limits", &[json!({ "room": "a", "most": 99 }), json!({ "room": "a", "most": 10 })]).unwrap();
    job.push("sensors", &[json!({ "sensor": 2, "room": "a" })]).unwrap();
    read(&mut job, 2, 11);
    assert_eq!(alarms(&mut job), [("a".to_owned(), 11, 2)]);
}

#[test]
fn what_is_removed_is_not_known_any_more() {
    let mut job = job();
    job.push("sensors", &[json!({ "sensor": 1, "room": "a" })]).unwrap();
    job.push("limits", &[json!({ "room": "a", "most": 0 })]).unwrap();
    read(&mut job, 1, 5);
    assert_eq!(alarms(&mut job).len(), 1);
    job.push("sensors", &[json!({ "sensor": 1, "room": null })]).unwrap();
    read(&mut job, 1, 6);
    assert!(alarms(&mut job).is_empty());
    assert_eq!(job.rows("lost").unwrap(), [json!({ "sensor": 1, "value": 6 })]);
}
