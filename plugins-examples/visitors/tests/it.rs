//! The job with a clock that is moved by hand.

use serde_json::Value;
use tidemill_testkit::{Harness, json};

fn click(id: i64, visitor: &str, page: &str) -> Value {
    json!({ "id": id, "visitor": visitor, "page": page })
}

fn visits(job: &mut Harness) -> Vec<(String, i64, String)> {
    let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    let rows = job.rows("visits").unwrap();
    rows.iter().map(|row| (text(row, "visitor"), row["times"].as_i64().unwrap(), text(row, "trail"))).collect()
}

fn visit(visitor: &str, times: i64, trail: &str) -> (String, i64, String) {
    (visitor.to_owned(), times, trail.to_owned())
}

#[test]
fn a_click_counts_once_and_the_last_pages_are_kept() {
    let mut job = Harness::new("visitors", visitors::visitors).unwrap();
    let clicks = [(1, "/a"), (2, "/b"), (2, "/b"), (3, "/a"), (4, "/c"), (1, "/a"), (5, "/a")];
    job.push("clicks", &clicks.map(|(id, page)| click(id, "ada", page))).unwrap();
    job.push("clicks", &[click(6, "bob", "/a")]).unwrap();
    let expected = [
        visit("ada", 1, "/a"),
        visit("ada", 1, "/a > /b"),
        visit("ada", 2, "/a > /b > /a"),
        visit("ada", 1, "/b > /a > /c"),
        visit("ada", 3, "/a > /c > /a"),
        visit("bob", 1, "/a"),
    ];
    assert_eq!(visits(&mut job), expected);
}

#[test]
fn an_id_is_forgotten_an_hour_after_it_came_last() {
    let mut job = Harness::new("visitors", visitors::visitors).unwrap();
    let minutes = 60_000;
    for (at, passes) in [(0, true), (59, false), (118, false), (178, true)] {
        job.set_clock(at * minutes).unwrap();
        job.push("clicks", &[click(1, "ada", "/a")]).unwrap();
        assert_eq!(!visits(&mut job).is_empty(), passes, "after {at} minutes");
    }
}
