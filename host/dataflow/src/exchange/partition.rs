//! Which receiver a row goes to.
//!
//! By hash: one pass hashes the keys, one finds receivers, then row numbers are brought in order of receivers (and keep
//! their order), and each column is taken once per receiver. A batch that goes to one receiver as a whole is handed on
//! without a copy.
#![allow(clippy::indexing_slicing, reason = "a loop per row; every index is a receiver or row counted just before")]

use arrow::array::UInt32Array;
use arrow::buffer::ScalarBuffer;
use tidemill_core::ids::{KeyGroup, MaxParallelism};
use tidemill_core::keys::KeyCodec;
use tidemill_core::{Batch, Result};

/// Up to so many receivers, a pass over the rows for each is faster than a counting sort, whose counters pass through
/// memory.
const FEW: usize = 6;

/// Distributes batches over the receivers of an edge.
#[derive(Debug)]
pub enum Partitioner {
    /// Batch by batch, in turn, from a receiver on.
    Turn(usize),
    /// Everything to everyone.
    Broadcast,
    /// By key group.
    Hash(Box<HashPartitioner>),
}

/// Distributes rows by the key group of their key.
#[derive(Debug)]
pub struct HashPartitioner {
    codec: KeyCodec,
    key: Vec<usize>,
    max_parallelism: MaxParallelism,
    /// Per key group: its receiver.
    receivers: Vec<u32>,
    hashes: Vec<u64>,
    receiver_of_row: Vec<u32>,
}

impl HashPartitioner {
    /// By these columns, over `parallelism` receivers.
    pub fn new(codec: KeyCodec, key: Vec<usize>, max_parallelism: MaxParallelism, parallelism: u32) -> Self {
        let group = |g| max_parallelism.subtask_of(KeyGroup(g), parallelism).0;
        let receivers = (0..max_parallelism.get()).map(group).collect();
        Self { codec, key, max_parallelism, receivers, hashes: Vec::new(), receiver_of_row: Vec::new() }
    }

    /// Cuts a batch into at most one per receiver, in order of receivers.
    pub fn split(&mut self, batch: Batch, receivers: usize, mut send: impl FnMut(usize, Batch)) -> Result<()> {
        let columns = self.key.iter().map(|&c| batch.column(c).cloned()).collect::<Result<Vec<_>>>()?;
        self.codec.hash(batch.rows(), &columns, &mut self.hashes)?;
        let receiver = |&hash: &u64| self.receivers[usize::from(self.max_parallelism.key_group(hash).0)];
        self.receiver_of_row.clear();
        self.receiver_of_row.extend(self.hashes.iter().map(receiver));
        let (rows, ends) = if receivers <= FEW { self.pick(receivers) } else { self.sort(receivers) };
        let mut start = 0;
        for (receiver, end) in ends.into_iter().enumerate() {
            if end - start == batch.rows() {
                send(receiver, batch);
                return Ok(());
            }
            if end > start {
                send(receiver, batch.take(&UInt32Array::new(rows.slice(start, end - start), None))?);
            }
            start = end;
        }
        Ok(())
    }

    /// Row numbers by receiver, and where those of each end: a pass per receiver, in which nothing waits for memory.
    fn pick(&self, receivers: usize) -> (ScalarBuffer<u32>, Vec<usize>) {
        // One longer, since each row is written and only then kept or not.
        let mut rows = vec![0_u32; self.receiver_of_row.len() + 1];
        let (mut end, mut ends) = (0, Vec::with_capacity(receivers));
        for receiver in 0..receivers as u32 {
            for (row, &of_row) in self.receiver_of_row.iter().enumerate() {
                rows[end] = row as u32;
                end += usize::from(of_row == receiver);
            }
            ends.push(end);
        }
        (rows.into(), ends)
    }

    /// The same by a counting sort.
    fn sort(&self, receivers: usize) -> (ScalarBuffer<u32>, Vec<usize>) {
        let mut next = vec![0; receivers];
        self.receiver_of_row.iter().for_each(|&receiver| next[receiver as usize] += 1);
        let mut sum = 0;
        for count in &mut next {
            sum += std::mem::replace(count, sum);
        }
        let mut rows = vec![0_u32; self.receiver_of_row.len()];
        for (row, &receiver) in self.receiver_of_row.iter().enumerate() {
            let at = &mut next[receiver as usize];
            rows[*at] = row as u32;
            *at += 1;
        }
        // Where the next row of a receiver would have gone is where its rows end.
        (rows.into(), next)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use arrow::array::{ArrayRef, AsArray, Int64Array};
    use arrow::datatypes::{DataType, Int64Type};

    use super::*;

    fn split(values: Vec<i64>, receivers: u32) -> Vec<(usize, Vec<i64>)> {
        let codec = KeyCodec::new(&[DataType::Int64], false).unwrap();
        let mut by_hash = HashPartitioner::new(codec, vec![0], MaxParallelism::DEFAULT, receivers);
        let column: ArrayRef = Arc::new(Int64Array::from(values.clone()));
        let timestamps = Some(ScalarBuffer::from(values));
        let batch = Batch::new(column.len(), vec![column], timestamps).unwrap();
        let mut parts = Vec::new();
        let send = |receiver, part: Batch| {
            let values = part.column(0).unwrap().as_primitive::<Int64Type>().values().to_vec();
            assert_eq!(part.timestamps().unwrap().to_vec(), values, "timestamps move with their rows");
            parts.push((receiver, values));
        };
        by_hash.split(batch, receivers as usize, send).unwrap();
        parts
    }

    #[test]
    fn each_key_goes_to_one_receiver_and_rows_keep_their_order() {
        let values: Vec<i64> = (0..10_000).map(|i| i * 7 % 500).collect();
        for receivers in [1, 2, 3, 7, 128] {
            let mut home = HashMap::new();
            let mut by_key: HashMap<i64, usize> = HashMap::new();
            for (receiver, part) in split(values.clone(), receivers) {
                for key in part {
                    assert_eq!(*home.entry(key).or_insert(receiver), receiver, "key {key}");
                    *by_key.entry(key).or_default() += 1;
                }
            }
            assert!(by_key.values().all(|&n| n == 20) && by_key.len() == 500);
        }
        for (_, part) in split((0..1_000).collect(), 3) {
            assert!(part.is_sorted());
        }
    }

    #[test]
    fn one_key_goes_whole() {
        assert_eq!(split(vec![5; 10], 4).len(), 1);
    }
}
