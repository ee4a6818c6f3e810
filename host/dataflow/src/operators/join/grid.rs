//! Event time cut into cells of equal length: the panes of windows, the buckets of intervals.
//!
//! Invariant: every timestamp that an i64 can hold has exactly one cell, and every cell exactly one namespace, also at
//! both ends of time, where the ends of a cell are cut off instead of overflowing.

use std::collections::BTreeMap;

use arrow::array::UInt32Array;
use arrow::buffer::NullBuffer;
use tidemill_core::state::Namespace;
use tidemill_core::time::Watermark;
use tidemill_core::{Batch, Result};

/// Cells `[offset + n * step, offset + (n + 1) * step)`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    step_ms: i64,
    /// From 0 up to the step: other offsets mean the same.
    offset_ms: i64,
}

impl Grid {
    /// A step of 0 counts as 1.
    pub(super) fn new(step_ms: u64, offset_ms: i64) -> Self {
        let step_ms = i64::try_from(step_ms).unwrap_or(i64::MAX).max(1);
        Self { step_ms, offset_ms: offset_ms.rem_euclid(step_ms) }
    }

    /// The cell of a time.
    pub(super) fn cell_of(&self, time: i64) -> i64 {
        clamp((i128::from(time) - i128::from(self.offset_ms)).div_euclid(i128::from(self.step_ms)))
    }

    /// The first millisecond of a cell.
    pub(super) fn first_of(&self, cell: i64) -> i64 {
        clamp(self.start(cell))
    }

    /// The last millisecond of a cell.
    pub(super) fn last_of(&self, cell: i64) -> i64 {
        clamp(self.start(cell) + i128::from(self.step_ms) - 1)
    }

    /// The last cell that is over, if any is; at the end of the input every cell is.
    pub(super) fn last_over(&self, watermark: Watermark) -> Option<i64> {
        match watermark {
            Watermark::MIN => None,
            Watermark::MAX => Some(i64::MAX),
            Watermark(ms) => {
                let end = i128::from(ms) + 1 - i128::from(self.offset_ms);
                Some(clamp(end.div_euclid(i128::from(self.step_ms)) - 1))
            }
        }
    }

    /// Where state keeps a cell: named by its last millisecond, which unlike its end is always a timestamp.
    pub(super) fn namespace(&self, cell: i64) -> Namespace {
        Namespace(self.last_of(cell))
    }

    /// The cell of a namespace.
    pub(super) fn cell_in(&self, namespace: Namespace) -> i64 {
        self.cell_of(namespace.0)
    }

    fn start(&self, cell: i64) -> i128 {
        i128::from(cell) * i128::from(self.step_ms) + i128::from(self.offset_ms)
    }
}

/// Some rows of a batch.
#[derive(Debug)]
pub(super) enum RowSet {
    /// So many from the first.
    Range { first: usize, rows: usize },
    /// These, ascending.
    Picked(UInt32Array),
}

impl RowSet {
    /// Those rows; a range copies nothing.
    pub(super) fn of(&self, batch: &Batch) -> Result<Batch> {
        match self {
            Self::Range { first: 0, rows } if *rows == batch.rows() => Ok(batch.clone()),
            Self::Range { first, rows } => Ok(batch.slice(*first, *rows)),
            Self::Picked(rows) => batch.take(rows),
        }
    }
}

/// The rows of a batch by cell.
#[derive(Debug, Default)]
pub(super) struct Split {
    /// Cells, ascending, with their rows in order of arrival.
    pub(super) cells: Vec<(i64, RowSet)>,
    /// How many rows were left out because they are late.
    pub(super) late: u64,
}

impl Split {
    /// Divides rows with these times. Left out are those at or before `late_upto` and those with a null in the key.
    pub(super) fn new(times: &[i64], key_nulls: Option<&NullBuffer>, late_upto: Option<i64>, grid: &Grid) -> Self {
        let (Some(&min), Some(&max)) = (times.iter().min(), times.iter().max()) else { return Self::default() };
        let cell = grid.cell_of(min);
        if key_nulls.is_none() && late_upto.is_none_or(|late| min > late) && max <= grid.last_of(cell) {
            return Self { cells: vec![(cell, RowSet::Range { first: 0, rows: times.len() })], late: 0 };
        }
        let mut late = 0;
        let mut cells: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
        // Most rows are in the cell of the row before: it is looked up once per run of them.
        let mut run = Vec::new();
        let (mut cell, mut first, mut last) = (cell, grid.first_of(cell), grid.last_of(cell));
        for (row, &time) in times.iter().enumerate() {
            if late_upto.is_some_and(|upto| time <= upto) {
                late += 1;
                continue;
            }
            if key_nulls.is_some_and(|nulls| nulls.is_null(row)) {
                continue;
            }
            if time < first || time > last {
                put(&mut cells, cell, &mut run);
                cell = grid.cell_of(time);
                (first, last) = (grid.first_of(cell), grid.last_of(cell));
            }
            run.push(row as u32);
        }
        put(&mut cells, cell, &mut run);
        Self { cells: cells.into_iter().map(|(cell, rows)| (cell, row_set(rows))).collect(), late }
    }
}

fn put(cells: &mut BTreeMap<i64, Vec<u32>>, cell: i64, run: &mut Vec<u32>) {
    if !run.is_empty() {
        cells.entry(cell).or_default().append(run);
    }
}

fn row_set(rows: Vec<u32>) -> RowSet {
    match (rows.first(), rows.last()) {
        (Some(&first), Some(&last)) if (last - first) as usize + 1 == rows.len() => {
            RowSet::Range { first: first as usize, rows: rows.len() }
        }
        _ => RowSet::Picked(rows.into()),
    }
}

fn clamp(value: i128) -> i64 {
    value.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_has_one_cell_and_every_cell_one_namespace() {
        let steps = [1, 2, 3, 10_000, 31_622_400_000];
        let offsets = [0, 1, -1, 7, i64::MIN, i64::MAX];
        let times = [i64::MIN, i64::MIN + 1, -10_001, -1, 0, 1, 9_999, 10_000, i64::MAX - 1, i64::MAX];
        for (step, offset) in steps.into_iter().flat_map(|s| offsets.map(|o| (s, o))) {
            let grid = Grid::new(step, offset);
            for time in times {
                let cell = grid.cell_of(time);
                assert!(grid.first_of(cell) <= time && time <= grid.last_of(cell), "{time} in {grid:?}");
                assert_eq!(grid.cell_in(grid.namespace(cell)), cell, "{time} in {grid:?}");
            }
        }
    }

    #[test]
    fn a_cell_is_over_when_the_watermark_reaches_its_last_millisecond() {
        let grid = Grid::new(10, 3);
        assert_eq!(grid.cell_of(2), -1);
        assert_eq!(grid.cell_of(3), 0);
        assert_eq!(grid.last_over(Watermark(11)), Some(-1));
        assert_eq!(grid.last_over(Watermark(12)), Some(0));
        assert_eq!(grid.last_over(Watermark::MIN), None);
        assert_eq!(grid.last_over(Watermark::MAX), Some(i64::MAX));
    }

    #[test]
    fn rows_are_split_by_cell_without_late_ones_and_null_keys() {
        let grid = Grid::new(10, 0);
        let nulls = NullBuffer::from(vec![true, true, false, true, true, true]);
        let split = Split::new(&[15, 25, 16, 3, 26, 17], Some(&nulls), Some(9), &grid);
        assert_eq!(split.late, 1);
        let rows: Vec<_> = split.cells.iter().map(|(cell, rows)| (*cell, format!("{rows:?}"))).collect();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].0, 1);
        assert!(matches!(&split.cells[0].1, RowSet::Picked(r) if r.values()[..] == [0, 5]));
        assert!(matches!(&split.cells[1].1, RowSet::Picked(r) if r.values()[..] == [1, 4]));
    }

    #[test]
    fn rows_of_one_cell_are_not_copied() {
        let split = Split::new(&[15, 11, 19], None, Some(10), &Grid::new(10, 0));
        assert!(matches!(split.cells[..], [(1, RowSet::Range { first: 0, rows: 3 })]));
    }
}
