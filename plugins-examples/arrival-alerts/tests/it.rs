//! The job on three flights, natively.

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
