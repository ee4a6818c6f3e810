//! Turns what user code emitted into batches of its ports: the columns it made, and those that the host copies.
//!
//! Used by every operator that runs user code on rows. Invariant: a batch that leaves here has exactly the (pruned)
//! fields of its port, in order. A forward of every row copies no value: its columns and timestamps are shared.

use arrow::array::{ArrayRef, UInt32Array};
use arrow::buffer::ScalarBuffer;
use arrow::compute;
use tidemill_core::batch::take_timestamps;
use tidemill_core::ids::{InputIndex, Port};
use tidemill_core::plan::{Node, Origin};
use tidemill_core::user::{Emission, EmittedRows};
use tidemill_core::{Batch, Error, Result};

/// Where each column of each port comes from.
#[derive(Debug)]
pub struct PortPlans {
    ports: Vec<Vec<ColumnSource>>,
}

#[derive(Clone, Copy, Debug)]
enum ColumnSource {
    /// The emission's next column.
    New,
    /// A column of the rows of the call.
    Input { input: u32, column: usize },
}

impl PortPlans {
    /// Of a pruned node.
    pub fn new(node: &Node) -> Result<Self> {
        let source = |origin: Origin| match origin {
            Origin::New => Ok(ColumnSource::New),
            Origin::Input { input, column } => Ok(ColumnSource::Input { input, column: column as usize }),
            other => Err(Error::internal(format!("user code of '{}' has a column of origin {other:?}", node.name))),
        };
        let ports = node
            .outputs
            .iter()
            .map(|output| output.fields.iter().map(|field| source(field.origin)).collect())
            .collect::<Result<_>>()?;
        Ok(Self { ports })
    }

    /// The batch of one emission.
    ///
    /// `rows` are the rows of the call with all columns of the input (not only those that the code reads), from input
    /// `input`. For calls without rows of an input (timers) its columns may be empty; ports that copy columns can't be
    /// emitted to then.
    pub fn batch(&self, emission: Emission, input: InputIndex, rows: &Batch) -> Result<(Port, Batch)> {
        let Emission { port, rows: derived, columns } = emission;
        let plan = self.ports.get(port.index()).ok_or_else(|| Error::internal(format!("an emission to {port}")))?;
        let mut made = columns.into_iter();
        let indices = match derived {
            EmittedRows::All => None,
            EmittedRows::Of(indices) => Some(UInt32Array::new(indices, None)),
            EmittedRows::New { rows, timestamps } => {
                return new_rows(plan, rows, timestamps, made).map(|batch| (port, batch));
            }
        };
        let mut out = Vec::with_capacity(plan.len());
        for source in plan {
            out.push(match *source {
                ColumnSource::New => next_column(&mut made)?,
                ColumnSource::Input { input: of, column } => {
                    if of != input.0 {
                        return Err(wrong_input(port, of, input));
                    }
                    let column = rows.column(column)?;
                    indices.as_ref().map_or_else(|| Ok(column.clone()), |i| compute::take(column, i, None))?
                }
            });
        }
        let timestamps = match (rows.timestamps(), &indices) {
            (Some(all), Some(indices)) => Some(take_timestamps(all, indices.values())?),
            (all, _) => all.cloned(),
        };
        let count = indices.map_or(rows.rows(), |i| i.values().len());
        Ok((port, Batch::new(count, out, timestamps)?))
    }
}

fn new_rows(
    plan: &[ColumnSource],
    rows: usize,
    timestamps: Option<ScalarBuffer<i64>>,
    mut made: impl Iterator<Item = ArrayRef>,
) -> Result<Batch> {
    let columns = plan
        .iter()
        .map(|source| match source {
            ColumnSource::New => next_column(&mut made),
            ColumnSource::Input { .. } => Err(Error::invalid("new rows were emitted to a port that copies columns")
                .mend("Emit rows that derive from rows of the input there, or make all columns of the port new.")),
        })
        .collect::<Result<Vec<_>>>()?;
    Batch::new(rows, columns, timestamps)
}

fn next_column(made: &mut impl Iterator<Item = ArrayRef>) -> Result<ArrayRef> {
    made.next().ok_or_else(|| Error::internal("an emission with too few columns"))
}

fn wrong_input(port: Port, of: u32, input: InputIndex) -> Error {
    Error::invalid(format!("{port} copies columns of input {of}, but rows of {input} were emitted to it"))
        .mend("Make those columns new, or emit to that port only for rows of the input they come from.")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::Int64Type;
    use tidemill_core::plan::{DataType, Exchange, Field, Input, NodeKind, Output, OutputField};

    use super::*;

    fn node() -> Node {
        let field = |name: &str, origin| OutputField { field: Field::new(name, DataType::Int64, false), origin };
        Node {
            uid: "n".into(),
            name: "n".into(),
            parallelism: None,
            inputs: vec![Input { node: 0, port: 0, exchange: Exchange::Forward, reads: vec![] }],
            outputs: vec![Output {
                name: "main".into(),
                fields: vec![
                    field("b", Origin::Input { input: 0, column: 1 }),
                    field("made", Origin::New),
                    field("a", Origin::Input { input: 0, column: 0 }),
                ],
            }],
            kind: NodeKind::Transform { reads_timestamps: false },
        }
    }

    fn input() -> Batch {
        let column = |values: [i64; 3]| Arc::new(Int64Array::from(values.to_vec())) as ArrayRef;
        let timestamps = ScalarBuffer::from(vec![10, 20, 30]);
        Batch::new(3, vec![column([1, 2, 3]), column([4, 5, 6])], Some(timestamps)).unwrap()
    }

    fn emission(rows: EmittedRows, made: Vec<i64>) -> Emission {
        Emission { port: Port(0), rows, columns: vec![Arc::new(Int64Array::from(made))] }
    }

    #[test]
    fn a_forward_of_all_rows_shares_the_columns() {
        let (rows, plans) = (input(), PortPlans::new(&node()).unwrap());
        let (_, out) = plans.batch(emission(EmittedRows::All, vec![7, 8, 9]), InputIndex(0), &rows).unwrap();
        assert!(Arc::ptr_eq(out.column(0).unwrap(), rows.column(1).unwrap()));
        assert!(Arc::ptr_eq(out.column(2).unwrap(), rows.column(0).unwrap()));
        assert!(out.timestamps().unwrap().ptr_eq(rows.timestamps().unwrap()));
    }

    #[test]
    fn derived_rows_inherit_columns_and_time() {
        let (rows, plans) = (input(), PortPlans::new(&node()).unwrap());
        let of = EmittedRows::Of(ScalarBuffer::from(vec![2, 0, 2]));
        let (_, out) = plans.batch(emission(of, vec![7, 8, 9]), InputIndex(0), &rows).unwrap();
        let column = |i| out.column(i).unwrap().as_primitive::<Int64Type>().values().to_vec();
        assert_eq!((column(0), column(1), column(2)), (vec![6, 4, 6], vec![7, 8, 9], vec![3, 1, 3]));
        assert_eq!(out.timestamps().unwrap().to_vec(), vec![30, 10, 30]);
    }

    #[test]
    fn new_rows_can_not_fill_copied_columns() {
        let (rows, plans) = (input(), PortPlans::new(&node()).unwrap());
        let new = EmittedRows::New { rows: 1, timestamps: None };
        let error = plans.batch(emission(new, vec![7]), InputIndex(0), &rows).unwrap_err();
        assert!(error.to_string().contains("copies columns"), "{error}");
    }

    #[test]
    fn rows_of_another_input_can_not_fill_copied_columns() {
        let (rows, plans) = (input(), PortPlans::new(&node()).unwrap());
        let error = plans.batch(emission(EmittedRows::All, vec![7, 8, 9]), InputIndex(1), &rows).unwrap_err();
        assert!(error.to_string().contains("input 0"), "{error}");
    }
}
