//! What a job did, when it is over: a line per operator, on stderr.

use std::collections::BTreeMap;
use std::time::Duration;

use console::measure_text_width;
use tidemill_dataflow::{CheckpointFigures, TaskStatus};

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
pub fn print(tasks: &[TaskStatus], checkpoints: Option<&CheckpointFigures>, elapsed: Duration) {
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
    let mut lines = table(&align, &rows);
    let width = console::Term::stderr().size_checked().map_or(usize::MAX, |(_, columns)| usize::from(columns));
    if lines.iter().any(|line| measure_text_width(line) + 2 > width) {
        leave_out_zeros(&mut rows, &mut align);
        lines = table(&align, &rows);
    }
    for line in lines {
        eprintln!("  {line}");
    }
    if let Some(checkpoints) = checkpoints {
        say("checkpoints", &taken(checkpoints));
    }
    say("ended", &format!("after {}", units::duration(elapsed)));
}

/// Where there is no room for all columns, those that are zero for every operator say the least.
fn leave_out_zeros(rows: &mut [Vec<String>], align: &mut Vec<Align>) {
    for column in (0..align.len()).rev() {
        if rows.iter().skip(1).all(|row| row.get(column).is_none_or(|cell| cell == "0")) {
            rows.iter_mut().for_each(|row| drop(row.remove(column)));
            align.remove(column);
        }
    }
}

/// `12 taken, the last in 35 ms with 1.20 MB (200 kB of them new), aligned in 3 ms; 1 given up, the last since ...`.
fn taken(checkpoints: &CheckpointFigures) -> String {
    let mut text = format!("{} taken", units::count(checkpoints.completed));
    if checkpoints.completed > 0 {
        let took = units::duration(Duration::from_millis(checkpoints.duration_ms));
        let (all, new) = (units::bytes(checkpoints.bytes), units::bytes(checkpoints.new_bytes));
        text.push_str(&format!(", the last in {took} with {all} ({new} of them new)"));
        let aligned = units::duration(Duration::from_millis(checkpoints.alignment_ms));
        let in_flight = units::bytes(checkpoints.in_flight_bytes);
        text.push_str(&match checkpoints.unaligned {
            true => format!(", unaligned after {aligned} with {in_flight} in flight"),
            false => format!(", aligned in {aligned}"),
        });
        if checkpoints.completed_unaligned > 0 {
            text.push_str(&format!("; {} unaligned", units::count(checkpoints.completed_unaligned)));
        }
    }
    if checkpoints.failed > 0 {
        let why = checkpoints.failure.as_deref().unwrap_or("for no reason that is known");
        text.push_str(&format!("; {} given up, the last since {why}", units::count(checkpoints.failed)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_zeros_are_left_out() {
        let row = |cells: [&str; 4]| cells.map(str::to_owned).to_vec();
        let mut rows =
            vec![row(["operator", "in", "late", "skipped"]), row(["a", "0", "0", "0"]), row(["b", "3", "0", "1"])];
        let mut align = vec![Align::Left, Align::Right, Align::Right, Align::Right];
        leave_out_zeros(&mut rows, &mut align);
        assert_eq!(rows[0], ["operator", "in", "skipped"]);
        assert_eq!(rows[2], ["b", "3", "1"]);
        assert_eq!(align.len(), 3);
    }
}
