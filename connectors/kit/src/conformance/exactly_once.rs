//! What a sink that says "exactly once" must keep, at every edge of the protocol at which its process may die.
//!
//! A process that dies is a writer that is forgotten: neither flushed nor dropped, with whatever its threads are at. Another
//! process is another sink, made anew from the same options, which knows of the first nothing but its committables.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use tidemill_core::Batch;
use tidemill_core::connector::{Attempt, Committable, Guarantee, Sink, SinkContext, SinkWriter};
use tidemill_core::ids::Epoch;

use super::{sink_context, subtask};

const JOB: &str = "test";

/// The outside system of one scenario, which nothing was written to.
pub trait Outside {
    /// The sink, as another process makes it. Its rows are those of [`schema`].
    fn sink(&self) -> Arc<dyn Sink>;

    /// What a reader sees now, in any order.
    fn visible(&self) -> Vec<i64>;
}

/// The columns that are written: a number.
pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]))
}

/// Its name, and what it does.
type Scenario = (&'static str, fn(&dyn Outside));

/// Runs every scenario, each with an outside of its own.
pub fn exactly_once<O: Outside>(outside: impl Fn() -> O) {
    let scenarios: [Scenario; 9] = [
        ("nothing is visible before the commit", nothing_is_visible_before_the_commit),
        ("crash before prepare", crash_before_prepare),
        ("crash between prepare and claim", crash_between_prepare_and_claim),
        ("crash between claim and commit", crash_between_claim_and_commit),
        ("crash during commit", crash_during_commit),
        ("commit by another process after a rescale", commit_by_another_process_after_a_rescale),
        ("two processes commit at once", two_processes_commit_at_once),
        ("the process that was replaced is still there", the_replaced_process_is_still_there),
        ("given up checkpoints", given_up_checkpoints),
    ];
    for (name, scenario) in scenarios {
        // The name of the scenario that fails is the last one that is printed.
        println!("{name}");
        scenario(&outside());
    }
}

fn nothing_is_visible_before_the_commit(outside: &dyn Outside) {
    let sink = outside.sink();
    assert_eq!(sink.guarantee(), Guarantee::ExactlyOnce);
    let mut writer = begin(&sink, 1, false, 1).remove(0);
    assert!(writer.prepare(Epoch(1)).unwrap().is_empty(), "without rows there is nothing to commit");
    write(&mut writer, &[1, 2]);
    let prepared = writer.prepare(Epoch(2)).unwrap();
    write(&mut writer, &[3]);
    assert_visible(outside, &[]);
    commit(&sink, &prepared);
    assert_visible(outside, &[1, 2]);
    commit(&sink, &prepared);
    assert_visible(outside, &[1, 2]);
    // The end of the input.
    commit(&sink, &writer.prepare(Epoch(3)).unwrap());
    assert_visible(outside, &[1, 2, 3]);
}

fn crash_before_prepare(outside: &dyn Outside) {
    let mut died = begin(&outside.sink(), 1, false, 1).remove(0);
    write(&mut died, &[1, 2]);
    std::mem::forget(died);
    let sink = outside.sink();
    let mut writer = begin(&sink, 2, false, 1).remove(0);
    assert_visible(outside, &[]);
    write(&mut writer, &[1, 2, 3]);
    commit(&sink, &writer.prepare(Epoch(1)).unwrap());
    assert_visible(outside, &[1, 2, 3]);
}

fn crash_between_prepare_and_claim(outside: &dyn Outside) {
    let sink = outside.sink();
    let mut died = begin(&sink, 1, false, 1).remove(0);
    write(&mut died, &[1]);
    commit(&sink, &died.prepare(Epoch(1)).unwrap());
    write(&mut died, &[2]);
    assert!(!died.prepare(Epoch(2)).unwrap().is_empty());
    write(&mut died, &[3]);
    std::mem::forget(died);
    // The checkpoint was never claimed: what it prepared is garbage, and its number is given again.
    let sink = outside.sink();
    let mut writer = begin(&sink, 2, true, 1).remove(0);
    assert_visible(outside, &[1]);
    write(&mut writer, &[2, 3]);
    commit(&sink, &writer.prepare(Epoch(2)).unwrap());
    assert_visible(outside, &[1, 2, 3]);
}

fn crash_between_claim_and_commit(outside: &dyn Outside) {
    let mut died = begin(&outside.sink(), 1, false, 1).remove(0);
    write(&mut died, &[1, 2]);
    let prepared = died.prepare(Epoch(1)).unwrap();
    write(&mut died, &[3]);
    std::mem::forget(died);
    let sink = outside.sink();
    commit(&sink, &prepared);
    let mut writer = begin(&sink, 2, true, 1).remove(0);
    assert_visible(outside, &[1, 2]);
    // Its marker was lost: the next attempt commits it once more.
    commit(&sink, &prepared);
    write(&mut writer, &[3]);
    commit(&sink, &writer.prepare(Epoch(2)).unwrap());
    assert_visible(outside, &[1, 2, 3]);
}

fn crash_during_commit(outside: &dyn Outside) {
    let mut died = begin(&outside.sink(), 1, false, 3);
    let mut prepared = Vec::new();
    for (n, writer) in (0..).zip(&mut died) {
        write(writer, &[n]);
        prepared.extend(writer.prepare(Epoch(1)).unwrap());
    }
    std::mem::forget(died);
    assert!(prepared.len() > 1);
    commit(&outside.sink(), prepared.get(..1).unwrap());
    let sink = outside.sink();
    commit(&sink, &prepared);
    begin(&sink, 2, true, 3);
    assert_visible(outside, &[0, 1, 2]);
}

fn commit_by_another_process_after_a_rescale(outside: &dyn Outside) {
    let mut died = begin(&outside.sink(), 1, false, 1).remove(0);
    write(&mut died, &[0]);
    let prepared = died.prepare(Epoch(1)).unwrap();
    std::mem::forget(died);
    let sink = outside.sink();
    commit(&sink, &prepared);
    let mut writers = begin(&sink, 2, true, 3);
    let mut more = Vec::new();
    for (n, writer) in (1..).zip(&mut writers) {
        write(writer, &[n]);
        more.extend(writer.prepare(Epoch(2)).unwrap());
    }
    std::mem::forget(writers);
    let sink = outside.sink();
    commit(&sink, &more);
    let mut writer = begin(&sink, 3, true, 1).remove(0);
    write(&mut writer, &[4]);
    commit(&sink, &writer.prepare(Epoch(3)).unwrap());
    assert_visible(outside, &[0, 1, 2, 3, 4]);
}

fn two_processes_commit_at_once(outside: &dyn Outside) {
    let mut writers = begin(&outside.sink(), 1, false, 8);
    let sinks = [outside.sink(), outside.sink()];
    // Not every time do they come to the same thing at the same moment.
    for round in 0..10 {
        let mut prepared = Vec::new();
        for (n, writer) in (0..).zip(&mut writers) {
            write(writer, &[8 * round + n]);
            prepared.extend(writer.prepare(Epoch(1 + round as u64)).unwrap());
        }
        std::thread::scope(|scope| {
            for sink in &sinks {
                scope.spawn(|| commit(sink, &prepared));
            }
        });
        assert_visible(outside, &(0..8 * (round + 1)).collect::<Vec<_>>());
    }
}

fn the_replaced_process_is_still_there(outside: &dyn Outside) {
    let mut old = begin(&outside.sink(), 1, false, 1).remove(0);
    write(&mut old, &[1]);
    let prepared = old.prepare(Epoch(1)).unwrap();
    write(&mut old, &[2]);
    let sink = outside.sink();
    commit(&sink, &prepared);
    let mut writer = begin(&sink, 2, true, 1).remove(0);
    write(&mut writer, &[2, 3]);
    let more = writer.prepare(Epoch(2)).unwrap();
    // It may fail, since what it had in the making is gone, or not; nobody commits it. And it ends in order.
    drop(old.prepare(Epoch(2)));
    drop(old);
    commit(&sink, &more);
    assert_visible(outside, &[1, 2, 3]);
}

fn given_up_checkpoints(outside: &dyn Outside) {
    let sink = outside.sink();
    let mut writer = begin(&sink, 1, false, 1).remove(0);
    let mut prepared = Vec::new();
    for n in 1..4 {
        write(&mut writer, &[n]);
        prepared.extend(writer.prepare(Epoch(n as u64)).unwrap());
    }
    // Those before the third were given up; what they prepared belongs to it.
    commit(&sink, &prepared);
    assert_visible(outside, &[1, 2, 3]);
}

/// Begins an attempt with so many writers.
fn begin(sink: &Arc<dyn Sink>, number: u64, goes_on: bool, writers: u32) -> Vec<Box<dyn SinkWriter>> {
    sink.begin(&Attempt { job: JOB, number, goes_on }).unwrap();
    let context = |index| SinkContext { subtask: subtask(index, writers), attempt: number, ..sink_context(schema()) };
    (0..writers).map(|index| sink.writer(context(index)).unwrap()).collect()
}

fn write(writer: &mut Box<dyn SinkWriter>, numbers: &[i64]) {
    let column: ArrayRef = Arc::new(Int64Array::from(numbers.to_vec()));
    writer.write(&Batch::new(numbers.len(), vec![column], None).unwrap()).unwrap();
}

fn commit(sink: &Arc<dyn Sink>, committables: &[Committable]) {
    sink.committer().unwrap().commit(committables).unwrap();
}

fn assert_visible(outside: &dyn Outside, expected: &[i64]) {
    let mut visible = outside.visible();
    visible.sort_unstable();
    assert_eq!(visible, expected);
}
