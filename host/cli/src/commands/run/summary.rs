//! What a job did, when it is over: a line per operator, on stderr.

use std::collections::BTreeMap;
use std::time::Duration;

use tidemill_dataflow::TaskStatus;

use crate::commands::build::say;
use crate::report::{Align, table};
use crate::units;

/// The counters of an operator, over its subtasks.
#[derive(Default)]
struct Counts {
    name: String,
    kind: &'static str,
    records_in: u64,
    records_out: u64,
    late: u64,
    dead_lettered: u64,
    skipped: u64,
    crossings: u64,
}

/// Prints the table.
pub fn print(tasks: &[TaskStatus], elapsed: Duration) {
    let mut operators: BTreeMap<u32, Counts> = BTreeMap::new();
    for task in tasks {
        let counts = operators.entry(task.subtask.node.0).or_default();
        counts.name = task.subtask.operator.clone();
        counts.kind = task.kind;
        counts.records_in += task.metrics.records_in.get();
        counts.records_out += task.metrics.records_out.get();
        counts.late += task.metrics.records_late.get();
        counts.dead_lettered += task.metrics.records_dead_lettered.get();
        counts.skipped += task.metrics.records_skipped.get();
        counts.crossings += task.metrics.crossings.get();
    }
    let heads = ["operator", "kind", "in", "out", "late", "dead-lettered", "skipped", "sandbox calls"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for c in operators.into_values() {
        let numbers = [c.records_in, c.records_out, c.late, c.dead_lettered, c.skipped, c.crossings];
        let mut row = vec![c.name, c.kind.to_owned()];
        row.extend(numbers.map(units::count));
        rows.push(row);
    }
    let mut align = vec![Align::Left, Align::Left];
    align.extend(std::iter::repeat_n(Align::Right, heads.len() - 2));
    for line in table(&align, &rows) {
        eprintln!("  {line}");
    }
    say("ended", &format!("after {}", units::duration(elapsed)));
}
