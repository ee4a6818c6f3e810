//! The job on three flights, natively; in the sandbox under `tidemill test --sandbox`.

use tidemill_testkit::harness::COMPONENT;
use tidemill_testkit::{Harness, json};

fn flight(number: i64, air_time: Option<i64>) -> serde_json::Value {
    json!({
        "time_hour": "2013-07-01T10:00:00Z", "minute": 30, "dep_delay": 5, "air_time": air_time,
        "carrier": "UA", "flight": number, "tailnum": "N1"
    })
}

#[test]
fn a_flight_that_does_not_arrive_in_time_raises_one_alert() {
    let mut job = Harness::new("arrival-alerts", arrival_alerts::arrival_alerts).unwrap();
    job.push("flights", &[flight(1, Some(120)), flight(2, None), flight(3, Some(400))]).unwrap();
    assert!(job.rows("alerts").unwrap().is_empty(), "the watermark waits");
    job.end().unwrap();
    let alerts = job.rows("alerts").unwrap();
    let flights: Vec<i64> = alerts.iter().map(|a| a["flight"].as_i64().unwrap()).collect();
    assert_eq!(flights, [2, 3], "one never arrived, one arrived after six hours");
    assert_eq!(alerts[0]["deadline"], "2013-07-01T16:35:00");
}

#[test]
fn the_alert_comes_when_event_time_passes_the_deadline() {
    let mut job = Harness::new("arrival-alerts", arrival_alerts::arrival_alerts).unwrap();
    assert_eq!(job.is_in_sandbox(), std::env::var_os(COMPONENT).is_some());
    let deadline = 1_372_696_500_000; // 2013-07-01T16:35:00Z
    job.push("flights", &[flight(2, None)]).unwrap();
    job.watermark(deadline - 1).unwrap();
    assert!(job.rows("alerts").unwrap().is_empty(), "a millisecond is left");
    job.watermark(deadline).unwrap();
    assert_eq!(job.rows("alerts").unwrap().len(), 1);
    job.watermark(deadline - 1).unwrap();
    job.end().unwrap();
    assert!(job.rows("alerts").unwrap().is_empty(), "it comes once");
}

#[test]
fn the_time_that_is_allowed_is_a_parameter() {
    let params = [("allowed-minutes", "100")];
    let mut job = Harness::with_params("arrival-alerts", arrival_alerts::arrival_alerts, &params).unwrap();
    job.push("flights", &[flight(1, Some(120))]).unwrap();
    job.end().unwrap();
    assert_eq!(job.rows("alerts").unwrap().len(), 1);
}
