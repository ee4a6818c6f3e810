//! The engine's answers against the reference: every query, natively and in the sandbox, at one slot and two, over
//! batches of one row and of more rows than there are, and over inputs that are small, odd, or last for hours of event
//! time.
//!
//! The list of queries is the engine's own ([`QUERIES`]), so one that is added there is tested here.
#![allow(clippy::unwrap_used, reason = "a failed test is what it means here")]

use std::path::Path;

use tempfile::TempDir;
use tidemill_bench::engine::{self, Code, Loaded, QUERIES};
use tidemill_bench::measure::Measured;
use tidemill_bench::query::{Answer, PUBLISHED_RECORDS, Parameters, Query};
use tidemill_bench::{hand, reference};

/// Records, auctions, bidders, records per second of event time.
type Input = (u64, u64, u64, u64);

/// What every query is run over natively, in batches of each size.
const INPUTS: [Input; 9] = [
    (0, 7, 3, 17),
    (1, 7, 3, 17),
    (999, 1, 1, 1),
    (999, 101, 17, 333),
    // One auction: everything meets everything, within minutes.
    (2_000, 1, 3, 17),
    (5_000, 7, 5_003, 1_000),
    // Hours of event time: more windows than batches.
    (20_000, 1_000, 3, 7),
    (20_000, 400, 1_000, 5_000),
    (20_000, 100_000, 100_000, 100_000),
];
const BATCH_ROWS: [usize; 5] = [1, 7, 64, 4_096, 10_000];

/// Where the sandbox's price per call makes small batches slow.
const SANDBOX_INPUTS: [Input; 4] = [(1, 7, 3, 17), (999, 1, 3, 17), (3_000, 7, 101, 333), (20_000, 400, 1_000, 5_000)];
const SANDBOX_BATCH_ROWS: [usize; 2] = [64, 4_096];

/// An input with what is computed of it once: its events, and the file of the query that reads one.
struct Given {
    parameters: Parameters,
    events: Vec<reference::Event>,
    folder: TempDir,
}

impl Given {
    fn new((records, auctions, bidders, rate): Input) -> Self {
        let parameters = Parameters::new(records, auctions, bidders, rate).unwrap();
        let folder = tempfile::tempdir().unwrap();
        hand::write_json_file(&parameters, &folder.path().join("bids.jsonl")).unwrap();
        Self { parameters, events: reference::events(&parameters), folder }
    }

    fn expected(&self, query: &str) -> Answer {
        match Query::from_name(query) {
            Some(query) => reference::run(query, &self.events),
            None => reference::json(&self.events).0,
        }
    }

    fn check(&self, query: &str, loaded: &Loaded, slots: u32, batch_rows: usize, expected: Answer) {
        let file = self.folder.path().join("bids.jsonl");
        let file = (query == "json").then_some(file.as_path());
        let how = How { slots, batch_rows, file, work: self.folder.path() };
        assert_eq!(
            answer(query, loaded.clone(), &self.parameters, &how).unwrap(),
            expected,
            "{query}, {slots} slots, batches of {batch_rows}, {:?}: left the engine, right the reference",
            self.parameters
        );
    }
}

/// How a query is run.
struct How<'a> {
    slots: u32,
    batch_rows: usize,
    file: Option<&'a Path>,
    work: &'a Path,
}

/// What the engine says.
fn answer(query: &str, loaded: Loaded, parameters: &Parameters, how: &How<'_>) -> anyhow::Result<Answer> {
    let mut measured = Measured {
        query: query.to_owned(),
        slots: how.slots,
        batch_rows: how.batch_rows,
        records: parameters.records(),
        ..Measured::default()
    };
    let keeping = engine::Keeping { disk: false, memory_bytes: None, checkpoint_ms: None };
    engine::run_loaded(&mut measured, parameters, loaded, how.file, how.work, &keeping)?;
    Ok(Answer { records: measured.out_records, checksum: measured.checksum })
}

/// Every query over every input.
fn check_all(code: Code, slots: &[u32], inputs: &[Input], batch_rows: &[usize]) {
    let given: Vec<Given> = inputs.iter().map(|&input| Given::new(input)).collect();
    for query in QUERIES {
        // One after the other: cargo gives the components of all queries the same path.
        let loaded = engine::load(query, code).unwrap();
        for given in &given {
            let expected = given.expected(query);
            for &slots in slots {
                batch_rows.iter().for_each(|&rows| given.check(query, &loaded, slots, rows, expected));
            }
        }
    }
}

#[test]
fn native_on_one_slot() {
    check_all(Code::Native, &[1], &INPUTS, &BATCH_ROWS);
}

#[test]
fn native_on_two_slots() {
    check_all(Code::Native, &[2], &INPUTS, &BATCH_ROWS);
}

#[test]
fn native_on_more_slots_than_there_are_records() {
    check_all(Code::Native, &[5], &[(3, 7, 3, 17), (999, 7, 3, 17)], &[7, 4_096]);
}

#[test]
fn sandboxed() {
    check_all(Code::Sandbox, &[1, 2], &SANDBOX_INPUTS, &SANDBOX_BATCH_ROWS);
}

#[test]
fn the_published_answers_on_the_engine() {
    let folder = tempfile::tempdir().unwrap();
    for query in Query::ALL.into_iter().filter(|query| QUERIES.contains(&query.name())) {
        let parameters = Parameters::published(query, PUBLISHED_RECORDS).unwrap();
        let loaded = engine::load(query.name(), Code::Native).unwrap();
        for slots in [1, 2] {
            let how = How { slots, batch_rows: 4_096, file: None, work: folder.path() };
            let answer = answer(query.name(), loaded.clone(), &parameters, &how).unwrap();
            assert_eq!(answer, query.published_answer(), "{} on {slots} slots", query.name());
        }
    }
}

#[test]
fn every_query_runs_and_no_other() {
    let names: Vec<&str> = Query::ALL.map(Query::name).into_iter().chain(["json"]).collect();
    assert!(names.iter().all(|name| QUERIES.contains(name)) && names.len() == QUERIES.len());
    assert!(engine::load("q999", Code::Native).is_err());
}
