//! Counts, record by record, what is there against what must be.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::jobs::{Job, SinkSpec};
use crate::reference::{Outputs, Row};

/// Records shown of each kind of difference.
const SHOWN: usize = 5;

/// What a comparison found.
#[derive(Clone, Debug, Default)]
pub struct Difference {
    /// Rows that must be there and are not.
    pub lost: u64,
    /// Rows that are there once more than they must.
    pub duplicated: u64,
    /// Rows that must not be there at all: a wrong count, say.
    pub wrong: u64,
    /// Some of them.
    pub examples: Vec<String>,
}

/// Compares the rows of all sinks.
pub fn compare(expected: &Outputs, found: &Outputs) -> Difference {
    let mut difference = Difference::default();
    for (sink, rows) in expected {
        let mut left: HashMap<&Row, i64> = HashMap::new();
        for row in rows {
            *left.entry(row).or_default() += 1;
        }
        let must: HashMap<&Row, i64> = left.clone();
        for row in found.get(sink).into_iter().flatten() {
            *left.entry(row).or_default() -= 1;
        }
        let mut differing: Vec<_> = left.into_iter().filter(|(_, n)| *n != 0).collect();
        differing.sort_unstable();
        for (row, n) in differing {
            let (kind, count) = match (n, must.contains_key(row)) {
                (1.., _) => ("lost", &mut difference.lost),
                (_, true) => ("duplicated", &mut difference.duplicated),
                (_, false) => ("wrong", &mut difference.wrong),
            };
            *count += n.unsigned_abs();
            let example = format!("{kind} {} x in {sink}: {}", n.unsigned_abs(), row.join(","));
            let shown = difference.examples.iter().filter(|e| e.starts_with(kind)).count();
            if shown < SHOWN {
                difference.examples.push(example);
            }
        }
    }
    difference
}

/// The rows that a job's sinks have made visible.
pub fn found(job: Job, folder: &Path) -> Result<Outputs> {
    let mut outputs: BTreeMap<&'static str, Vec<Row>> = BTreeMap::new();
    for sink in job.sinks() {
        let rows = read(sink, &folder.join(sink.name))?;
        match sink.name {
            // A record is in its window, as often as that says, or late.
            "in-time" => outputs.entry("in-time or late").or_default().extend(in_time(&rows)),
            "late" => outputs.entry("in-time or late").or_default().extend(rows.iter().map(|r| id(r, 0))),
            "dead-letters" => outputs.entry("dead letters").or_default().extend(rows.iter().map(letter)),
            name => outputs.entry(name).or_default().extend(rows),
        }
    }
    Ok(outputs)
}

/// Hidden part files: after a clean end there are none.
pub fn left_behind(job: Job, folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for sink in job.sinks() {
        for name in list(&folder.join(sink.name))? {
            if name.starts_with('.') {
                names.push(format!("{}/{name}", sink.name));
            }
        }
    }
    Ok(names)
}

fn in_time(rows: &[Row]) -> Vec<Row> {
    let times = |row: &Row| row.get(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    rows.iter().flat_map(|row| std::iter::repeat_n(id(row, 0), times(row))).collect()
}

fn id(row: &Row, column: usize) -> Row {
    row.get(column).cloned().into_iter().collect()
}

/// The number of the record that a dead letter is about: in the reason of the job's code, or else in the record.
fn letter(row: &Row) -> Row {
    let [reason, record] = row.as_slice() else { return row.clone() };
    let number = |text: &str, mark: &str| Some(text.split_once(mark)?.1.split_once('.')?.0.to_owned());
    number(reason, "refused ").or_else(|| number(record, "broken-")).map_or_else(|| row.clone(), |n| vec![n])
}

fn list(folder: &Path) -> Result<Vec<String>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

fn read(sink: &SinkSpec, folder: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for name in list(folder)?.into_iter().filter(|name| name.starts_with("part-")) {
        let path = folder.join(&name);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        if !text.ends_with('\n') {
            bail!("{} is torn: it does not end with a line", path.display());
        }
        let lines = text.lines().skip(usize::from(!sink.json));
        for line in lines {
            rows.push(match sink.json {
                true => json(sink, line).with_context(|| format!("{}: {line}", path.display()))?,
                false => line.split(',').map(str::to_owned).collect(),
            });
        }
    }
    Ok(rows)
}

fn json(sink: &SinkSpec, line: &str) -> Result<Row> {
    let object: serde_json::Value = serde_json::from_str(line)?;
    let value = |column: &&str| match object.get(*column) {
        Some(serde_json::Value::String(text)) => Ok(text.clone()),
        Some(other) => Ok(other.to_string()),
        None => bail!("there is no column '{column}'"),
    };
    sink.columns.iter().map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_duplicated_and_wrong_rows_are_told_apart() {
        let rows = |texts: &[&str]| BTreeMap::from([("s", texts.iter().map(|t| vec![(*t).to_owned()]).collect())]);
        let difference = compare(&rows(&["a", "b", "b", "c"]), &rows(&["a", "b", "b", "b", "b", "d"]));
        assert_eq!((difference.lost, difference.duplicated, difference.wrong), (1, 2, 1));
        assert_eq!(difference.examples, ["duplicated 2 x in s: b", "lost 1 x in s: c", "wrong 1 x in s: d"]);
        let same = compare(&rows(&["a", "b"]), &rows(&["b", "a"]));
        assert_eq!((same.lost, same.duplicated, same.wrong), (0, 0, 0));
    }
}
