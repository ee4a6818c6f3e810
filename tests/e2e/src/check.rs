//! Counts, record by record, what is there against what must be.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

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
        for Listed { path, name, .. } in list(&folder.join(sink.name))? {
            if name.starts_with('.') {
                names.push(path.strip_prefix(folder).unwrap_or(&path).display().to_string());
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

/// A file of a sink.
struct Listed {
    path: PathBuf,
    name: String,
    /// Columns and their values, by the names of the folders in which it is.
    partition: Vec<(String, String)>,
}

/// The files of a sink's folder and of the folders in it that are named after values.
fn list(folder: &Path) -> Result<Vec<Listed>> {
    let (mut files, mut folders) = (Vec::new(), vec![(folder.to_owned(), Vec::new())]);
    while let Some((folder, partition)) = folders.pop().filter(|(folder, _)| folder.exists()) {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())?.flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            match name.split_once('=').filter(|_| path.is_dir()) {
                Some((column, value)) => {
                    let own = [(column.to_owned(), value.to_owned())];
                    folders.push((path, partition.iter().cloned().chain(own).collect()));
                }
                None => files.push(Listed { path, name, partition: partition.clone() }),
            }
        }
    }
    Ok(files)
}

fn read(sink: &SinkSpec, folder: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for Listed { path, partition, .. } in list(folder)?.into_iter().filter(|file| file.name.starts_with("part-")) {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        if !text.ends_with('\n') {
            bail!("{} is torn: it does not end with a line", path.display());
        }
        let mut lines = text.lines();
        let header: Vec<&str> =
            if sink.json { Vec::new() } else { lines.next().unwrap_or_default().split(',').collect() };
        for line in lines {
            let row = if sink.json { json(sink, line, &partition) } else { csv(sink, &header, line, &partition) };
            rows.push(row.with_context(|| format!("{}: {line}", path.display()))?);
        }
    }
    Ok(rows)
}

fn json(sink: &SinkSpec, line: &str, partition: &[(String, String)]) -> Result<Row> {
    let object: serde_json::Value = serde_json::from_str(line)?;
    let value = |column: &str| match object.get(column)? {
        serde_json::Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    sink.columns.iter().map(|column| value_of(column, value(column), partition)).collect()
}

fn csv(sink: &SinkSpec, header: &[&str], line: &str, partition: &[(String, String)]) -> Result<Row> {
    let values: Row = line.split(',').map(str::to_owned).collect();
    if sink.columns.is_empty() {
        return Ok(values);
    }
    let value = |column: &str| values.get(header.iter().position(|name| *name == column)?).cloned();
    sink.columns.iter().map(|column| value_of(column, value(column), partition)).collect()
}

/// A column's value: in the file, or in the name of a folder; in both it must be the same.
fn value_of(column: &str, in_file: Option<String>, partition: &[(String, String)]) -> Result<String> {
    let in_folder = partition.iter().find(|(name, _)| name == column).map(|(_, value)| value.clone());
    match (in_file, in_folder) {
        (Some(one), Some(other)) if one != other => bail!("'{column}' is {one}, and the folder says {other}"),
        (Some(value), _) | (None, Some(value)) => Ok(value),
        (None, None) => bail!("there is no column '{column}'"),
    }
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

    #[test]
    fn partitioned_folders_are_read_with_and_without_their_columns_in_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let sinks: Vec<&SinkSpec> = Job::Windows.sinks().iter().filter(|sink| !sink.partition_by.is_empty()).collect();
        let (tumbling, sliding) = (sinks[0], sinks[1]);
        assert!(!tumbling.json && sliding.json && tumbling.partition_by == ["start"], "{sinks:?}");
        let put = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("tumbling/start=7/part-0-1-0.csv", "key,end,rows,sum\n1,8,3,4\n");
        put("tumbling/start=8/part-0-2-0.csv", "key,start,end,rows,sum\n2,8,9,5,6\n");
        put("tumbling/.part-0-unfinished", "key");
        put("sliding/start=7/more=1/part-0-1-0.jsonl", "{\"key\":1,\"end\":8,\"rows\":3,\"sum\":4}\n");
        let rows = |sink: &SinkSpec| {
            let mut rows = read(sink, &folder.path().join(sink.name)).unwrap();
            rows.sort();
            rows.iter().map(|row| row.join(",")).collect::<Vec<_>>()
        };
        assert_eq!(rows(tumbling), ["1,7,8,3,4", "2,8,9,5,6"]);
        assert_eq!(rows(sliding), ["1,7,8,3,4"]);
        assert_eq!(left_behind(Job::Windows, folder.path()).unwrap(), ["tumbling/.part-0-unfinished"]);
        put("sliding/start=9/part-0-1-0.jsonl", "{\"key\":1,\"start\":7,\"end\":8,\"rows\":3,\"sum\":4}\n");
        let error = format!("{:#}", read(sliding, &folder.path().join("sliding")).unwrap_err());
        assert!(error.contains("start=9") && error.contains("is 7, and the folder says 9"), "{error}");
        put("tumbling/start=9/part-0-3-0.csv", "key,end,rows,sum\n1,8");
        let error = read(tumbling, &folder.path().join("tumbling")).unwrap_err().to_string();
        assert!(error.contains("torn"), "{error}");
    }
}
