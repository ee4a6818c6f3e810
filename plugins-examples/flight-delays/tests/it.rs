//! The job on a few flights, natively: event time, not the order of arrival, decides.

use tidemill_testkit::{Harness, json};

#[test]
fn a_flight_counts_in_the_hour_in_which_it_left() {
    let mut job = Harness::new("flight-delays", flight_delays::flight_delays).unwrap();
    let flight = |hour: &str, minute: i64, delay: Option<i64>| {
        json!({"time_hour": format!("2013-07-01T{hour}:00:00Z"), "minute": minute, "dep_delay": delay,
               "origin": "JFK", "carrier": "UA"})
    };
    job.push("flights", &[flight("23", 30, Some(45)), flight("10", 0, Some(-1)), flight("10", 5, None)]).unwrap();
    job.end().unwrap();
    let hours: Vec<(String, i64)> = job
        .rows("per-hour")
        .unwrap()
        .iter()
        .map(|r| (r["window_start"].as_str().unwrap().to_owned(), r["flights"].as_i64().unwrap()))
        .collect();
    assert_eq!(hours, [("2013-07-01T09:00:00".to_owned(), 1), ("2013-07-02T00:00:00".to_owned(), 1)]);
    let means: Vec<f64> = job.rows("per-carrier").unwrap().iter().map(|r| r["mean_delay"].as_f64().unwrap()).collect();
    assert_eq!(means, [-1.0, 45.0]);
}
