//! The job on two lines, natively.

use tidemill_testkit::{Harness, json};

#[test]
fn each_word_is_counted_as_it_comes() {
    let mut job = Harness::new("word-count", word_count::word_count).unwrap();
    job.push("lines", &[json!({"line": "To be, or not to be"}), json!({"line": "be"})]).unwrap();
    job.end().unwrap();
    let rows = job.rows("counts").unwrap();
    let counts: Vec<(&str, i64)> =
        rows.iter().map(|r| (r["word"].as_str().unwrap(), r["count"].as_i64().unwrap())).collect();
    assert_eq!(counts, [("to", 1), ("be", 1), ("or", 1), ("not", 1), ("to", 2), ("be", 2), ("be", 3)]);
}
