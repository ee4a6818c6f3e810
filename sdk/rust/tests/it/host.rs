//! A host for tests: hands batches to the code of a node, and writes down what it does, as text.

use std::fmt::Write;

use tidemill::abi::{BatchView, CallClock, ColumnView, Failure, HostCalls, NodeRuntime, OwnedColumn, TimeDomain};
use tidemill::flow::{Built, build};
use tidemill::row::EmitRow;
use tidemill::value::Writer;
use tidemill::{Flow, IntoRow};

pub const CLOCK: CallClock = CallClock { watermark: 5_000, processing_time: 77_000 };

/// The job, or what is wrong with it.
pub fn job(define: impl FnOnce(&mut Flow)) -> Built {
    build("test", define, &[]).expect("the job is right")
}

/// The code of a node, found by its uid.
pub fn code(built: Built, uid: &str) -> Box<dyn NodeRuntime> {
    let at = built.plan.nodes.iter().position(|n| n.uid == uid).expect("a node with this uid");
    built.runtimes.into_iter().nth(at).flatten().expect("it has code")
}

/// Rows as columns.
pub fn columns<V: IntoRow>(rows: Vec<V>) -> <V::Row as EmitRow>::Writer {
    let mut writer = <V::Row as EmitRow>::Writer::default();
    for row in rows {
        V::Row::write(&mut writer, &row.into_view());
    }
    writer
}

/// Runs a transform over rows; what it emitted, as text.
pub fn transform<V: IntoRow>(code: &mut dyn NodeRuntime, rows: Vec<V>) -> Result<String, Failure> {
    let count = rows.len();
    let writer = columns(rows);
    let mut views = Vec::new();
    writer.columns(&mut views);
    let mut host = Notes::default();
    let batch = BatchView { rows: count, timestamps: &[], columns: &views };
    code.transform(CLOCK, 0, &batch, &mut host)?;
    Ok(host.0)
}

/// Little-endian bytes.
pub fn bytes_i64(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Little-endian bytes.
pub fn bytes_u32(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Writes down what code does: a line per call, columns as their bytes read as s64s where they have that length.
#[derive(Default)]
pub struct Notes(pub String, /* The states that are maps. */ pub Vec<u32>);

impl HostCalls for Notes {
    fn forward(&mut self, port: u32, rows: Option<&[u32]>, columns: &[ColumnView<'_>]) {
        let rows = rows.map_or("all".to_owned(), |r| format!("{r:?}"));
        writeln!(self.0, "forward {port} of {rows}: {}", shown(columns)).expect("text");
    }

    fn emit(&mut self, port: u32, rows: u32, timestamps: &[i64], columns: &[ColumnView<'_>]) {
        writeln!(self.0, "emit {port} {rows} at {timestamps:?}: {}", shown(columns)).expect("text");
    }

    fn put(&mut self, state: u32, keys: &[u32], values: &[ColumnView<'_>]) {
        writeln!(self.0, "put {state} of {keys:?}: {}", shown(values)).expect("text");
    }

    fn append(&mut self, state: u32, keys: &[u32], items: &[ColumnView<'_>]) {
        writeln!(self.0, "append {state} to {keys:?}: {}", shown(items)).expect("text");
    }

    fn insert(&mut self, state: u32, keys: &[u32], map_keys: &[ColumnView<'_>], values: &[ColumnView<'_>]) {
        writeln!(self.0, "insert {state} of {keys:?}: {} -> {}", shown(map_keys), shown(values)).expect("text");
    }

    fn remove(&mut self, state: u32, keys: &[u32], map_keys: &[ColumnView<'_>]) {
        writeln!(self.0, "remove {state} of {keys:?}: {}", shown(map_keys)).expect("text");
    }

    fn clear(&mut self, state: u32, keys: &[u32]) {
        writeln!(self.0, "clear {state} of {keys:?}").expect("text");
    }

    /// Of each key the list of its number and one more, or the map of its number to one more.
    fn read(&mut self, state: u32, keys: &[u32]) -> Vec<OwnedColumn> {
        writeln!(self.0, "read {state} of {keys:?}").expect("text");
        let numbers = |add: i64| keys.iter().flat_map(|&k| [i64::from(k), i64::from(k) + 1]).map(move |n| n + add);
        let values = |add| OwnedColumn { values: bytes_i64(&numbers(add).collect::<Vec<_>>()), ..Default::default() };
        let offsets = bytes_u32(&(0..=keys.len() as u32).map(|n| 2 * n).collect::<Vec<_>>());
        let lists = OwnedColumn { offsets, ..Default::default() };
        if self.1.contains(&state) {
            return vec![lists, OwnedColumn::default(), values(0), values(100)];
        }
        vec![lists, values(0)]
    }

    /// Of each even map key a hundred more.
    fn get(&mut self, state: u32, keys: &[u32], map_keys: &[ColumnView<'_>]) -> Vec<OwnedColumn> {
        writeln!(self.0, "get {state} of {keys:?}: {}", shown(map_keys)).expect("text");
        let wanted: Vec<i64> = map_keys[0].values.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
        let mut validity = vec![0u8; wanted.len().div_ceil(8)];
        wanted.iter().enumerate().filter(|(_, k)| *k % 2 == 0).for_each(|(i, _)| validity[i / 8] |= 1 << (i % 8));
        let values = bytes_i64(&wanted.iter().map(|k| k + 100).collect::<Vec<_>>());
        vec![OwnedColumn { validity, values, ..Default::default() }]
    }

    fn set_timers(&mut self, domain: TimeDomain, keys: &[u32], timestamps: &[i64]) {
        writeln!(self.0, "set {domain:?} {keys:?} at {timestamps:?}").expect("text");
    }

    fn delete_timers(&mut self, domain: TimeDomain, keys: &[u32], timestamps: &[i64]) {
        writeln!(self.0, "delete {domain:?} {keys:?} at {timestamps:?}").expect("text");
    }
}

fn shown(columns: &[ColumnView<'_>]) -> String {
    let one = |c: &ColumnView<'_>| {
        let validity = if c.validity.is_empty() { String::new() } else { format!("{:b}?", c.validity[0]) };
        if c.offsets.is_empty() {
            let values: Vec<i64> = c.values.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
            return format!("{validity}{values:?}");
        }
        let offsets: Vec<usize> =
            c.offsets.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b) as usize).collect();
        let texts: Vec<&str> =
            offsets.windows(2).map(|w| std::str::from_utf8(&c.values[w[0]..w[1]]).expect("UTF-8")).collect();
        format!("{validity}{texts:?}")
    };
    columns.iter().map(one).collect::<Vec<_>>().join(" ")
}
