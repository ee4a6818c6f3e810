//! What can't be processed: it is named, set aside or fails the job, and the rest takes effect exactly once.

use std::sync::atomic::{AtomicU32, Ordering};

use arrow::array::AsArray;
use tidemill_core::plan::Exchange;
use tidemill_core::user::{EmittedRows, UserFailure};
use tidemill_dataflow::run;

use crate::support::*;

fn plan() -> PlanBuilder {
    let mut plan = PlanBuilder::new();
    let source = plan.source("in", event_time(0, None));
    let map = plan.transform("parse", source, Exchange::Hash(vec![0]));
    plan.sink("out", map, Exchange::Forward);
    plan
}

fn poisonous(parallelism: u32) -> Job {
    let rows: Vec<Row> = (0..1_000).map(|i| (i, i + 5)).collect();
    let mut job = job(plan(), parallelism, vec![("in", MemorySource::rows(vec![rows], 100))]);
    job.spec.user_code = code(|_, _, batch, effects| {
        let keys = keys(batch);
        if keys.iter().any(|k| k % 333 == 332) {
            return Err(UserFailure::Trap("wasm trap: unreachable".into()));
        }
        let bad = keys.iter().enumerate().filter(|(_, k)| **k == 500).map(|(i, _)| (i as u32, "500 is odd".to_owned()));
        let bad: Vec<_> = bad.collect();
        if !bad.is_empty() {
            return Err(UserFailure::Rows(bad));
        }
        effects.emissions.push(forward(EmittedRows::All));
        Ok(())
    });
    job
}

#[test]
fn poisonous_rows_are_set_aside_and_the_rest_takes_effect_once() {
    for parallelism in [1, 2] {
        let job = poisonous(parallelism).with_letters();
        let stepper = job.step_to_end(4).unwrap();
        let expected: Vec<Row> = (0..1_000).filter(|k| k % 333 != 332 && *k != 500).map(|k| (k, k + 5)).collect();
        assert_eq!(job.out.sorted(), expected);
        let mut letters = Vec::new();
        for batch in &*job.letters.batches.lock().unwrap() {
            let text = |column: usize, row| batch.column(column).unwrap().as_string_view().value(row).to_owned();
            letters.extend((0..batch.rows()).map(|r| (text(1, r), text(3, r), text(4, r))));
        }
        letters.sort();
        let letter =
            |reason: &str, k: i64| ("parse".to_owned(), reason.to_owned(), format!(r#"{{"k":{k},"t":{}}}"#, k + 5));
        let mut expected = vec![letter("500 is odd", 500)];
        expected.extend([332, 665, 998].map(|k| letter("wasm trap: unreachable", k)));
        expected.sort();
        assert_eq!(letters, expected);
        let aside: u64 = stepper.tasks().iter().map(|t| t.metrics.records_dead_lettered.get()).sum();
        assert_eq!(aside, 4);
        assert_eq!(job.letters.committed.lock().unwrap().len(), parallelism as usize);
    }
}

#[test]
fn without_a_dead_letter_sink_the_first_poisonous_row_fails_the_job_by_name() {
    let job = poisonous(1);
    let error = job.step_to_end(4).err().unwrap().to_string();
    let parts = ["job 'job'", "operator 'parse' (1/1)", "wasm trap: unreachable", r#""k":332"#, "bind [dead-letter]"];
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    assert!(job.out.committed.lock().unwrap().is_empty());
    let error = run(poisonous(2).spec).unwrap().wait().err().unwrap().to_string();
    assert!(error.contains("operator 'parse'") && error.contains("bind [dead-letter]"), "{error}");
}

#[test]
fn a_retry_waits_by_the_clock_and_does_not_hold_up_the_slot() {
    let mut plan = PlanBuilder::new();
    let source = plan.source("in", None);
    let slow = plan.transform("slow", source, Exchange::Forward);
    plan.sink("out", slow, Exchange::Forward);
    let quick = plan.transform("quick", source, Exchange::Forward);
    plan.sink("out", quick, Exchange::Forward);
    let mut job = job(plan, 1, vec![("in", MemorySource::rows(vec![vec![(1, 1), (2, 2)]], 1))]);
    let tries = AtomicU32::new(0);
    job.spec.user_code = code(move |name, _, _, effects| {
        if name == "slow" && tries.fetch_add(1, Ordering::SeqCst) < 3 {
            return Err(UserFailure::Retry("busy".into()));
        }
        effects.emissions.push(forward(EmittedRows::All));
        Ok(())
    });
    let mut stepper = tidemill_dataflow::Stepper::new(job.spec.clone(), 0).unwrap();
    assert_eq!(stepper.step_until_idle().unwrap().map(|t| t.0), Some(20));
    assert_eq!(job.out.sorted(), vec![(1, 1), (2, 2)], "the quick way is not held up");
    while let Some(at) = stepper.step_until_idle().unwrap() {
        job.clock.0.fetch_max(at.0, Ordering::SeqCst);
    }
    assert!(stepper.finished());
}

#[test]
fn a_panic_in_a_slot_becomes_an_error_and_stops_the_others() {
    let source = MemorySource::of(vec![vec![Poll::Panic], vec![Poll::Rows(vec![(1, 1)]), Poll::Until(i64::MAX)]]);
    let error = run(job(plan(), 2, vec![("in", source)]).spec).unwrap().wait().err().unwrap().to_string();
    assert!(error.contains("panicked: reader panics") && error.contains("defect"), "{error}");
}

#[test]
fn an_unbound_source_or_sink_is_named_with_the_mend() {
    let error = |spec| run(spec).err().unwrap().to_string();
    let mut spec = job(plan(), 1, vec![]).spec;
    assert!(error(spec.clone()).contains("[sources.in]"), "{}", error(spec));
    spec = job(plan(), 1, vec![("in", MemorySource::of(vec![]))]).spec;
    spec.sinks.clear();
    assert!(error(spec.clone()).contains("[sinks.out]"), "{}", error(spec.clone()));
    spec.settings.parallelism = 1_000;
    assert!(error(spec.clone()).contains("1 to 128"), "{}", error(spec));
}
