//! Which receiver a row goes to.
//!
//! By hash: one pass hashes the keys, one counts rows per receiver, one sorts row numbers by receiver (a counting sort,
//! so rows keep their order), then each column is taken once per receiver. A batch that goes to one receiver as a whole
//! is handed on without a copy.
#![allow(clippy::indexing_slicing, reason = "a loop per row; every index is a receiver or row counted just before")]

use arrow::array::UInt32Array;
use arrow::buffer::ScalarBuffer;
use tidemill_core::ids::{KeyGroup, MaxParallelism};
use tidemill_core::keys::KeyCodec;
use tidemill_core::{Batch, Result};

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
        let mut counts = vec![0_u32; receivers];
        self.receiver_of_row.clear();
        self.receiver_of_row.reserve(batch.rows());
        for &hash in &self.hashes {
            let receiver = self.receivers[usize::from(self.max_parallelism.key_group(hash).0)];
            counts[receiver as usize] += 1;
            self.receiver_of_row.push(receiver);
        }
        if let Some(only) = counts.iter().position(|&count| count as usize == batch.rows()) {
            send(only, batch);
            return Ok(());
        }
        let rows = self.rows_by_receiver(&counts);
        let mut start = 0;
        for (receiver, count) in counts.iter().map(|&count| count as usize).enumerate() {
            if count > 0 {
                send(receiver, batch.take(&UInt32Array::new(rows.slice(start, count), None))?);
                start += count;
            }
        }
        Ok(())
    }

    fn rows_by_receiver(&self, counts: &[u32]) -> ScalarBuffer<u32> {
        let mut next: Vec<u32> = Vec::with_capacity(counts.len());
        let mut sum = 0;
        for &count in counts {
            next.push(sum);
            sum += count;
        }
        let mut rows = vec![0_u32; self.receiver_of_row.len()];
        for (row, &receiver) in self.receiver_of_row.iter().enumerate() {
            let at = &mut next[receiver as usize];
            rows[*at as usize] = row as u32;
            *at += 1;
        }
        rows.into()
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
