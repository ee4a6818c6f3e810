//! JSON lines with lists or structs among their columns: left to `arrow-json`, which decodes a batch as a whole.
//!
//! It says only that a batch has a malformed record, so a failed batch is decoded again line by line.

use arrow::array::ArrayRef;
use arrow::datatypes::SchemaRef;
use arrow_json::ReaderBuilder;
use tidemill_core::error::{Error, Result};

/// Decodes records into one row each.
#[derive(Debug)]
pub(super) struct NestedJson {
    schema: SchemaRef,
}

impl NestedJson {
    pub(super) fn new(schema: SchemaRef) -> Self {
        Self { schema }
    }

    /// The rows of these records, or the reason for which one of them (it does not say which) can't be read.
    pub(super) fn decode(&self, records: &[&[u8]]) -> Result<Vec<ArrayRef>, String> {
        let builder = ReaderBuilder::new(self.schema.clone()).with_batch_size(records.len().max(1));
        let mut decoder = builder.build_decoder().map_err(|e| e.to_string())?;
        for record in records {
            for part in [*record, b"\n"] {
                // A record may hold more than one object, which `decode` reads as several rows: they are counted below.
                let read = decoder.decode(part).map_err(|e| e.to_string())?;
                if read < part.len() {
                    return Err("it is more than one object".to_owned());
                }
            }
            if decoder.has_partial_record() {
                return Err("it ends within the object".to_owned());
            }
        }
        let batch = decoder.flush().map_err(|e| e.to_string())?;
        let rows = batch.as_ref().map_or(0, |b| b.num_rows());
        if rows != records.len() {
            return Err(format!("it is {rows} objects and not one"));
        }
        Ok(batch.map(|b| b.columns().to_vec()).unwrap_or_default())
    }

    /// No rows.
    pub(super) fn empty(&self) -> Vec<ArrayRef> {
        self.schema.fields().iter().map(|f| arrow::array::new_empty_array(f.data_type())).collect()
    }

    /// Rows one below the other.
    pub(super) fn concat(&self, rows: &[Vec<ArrayRef>]) -> Result<Vec<ArrayRef>> {
        let column = |i: usize| {
            let parts: Vec<_> = rows.iter().filter_map(|r| r.get(i)).map(|c| c.as_ref()).collect();
            arrow::compute::concat(&parts).map_err(Error::from)
        };
        if rows.is_empty() { Ok(self.empty()) } else { (0..self.schema.fields().len()).map(column).collect() }
    }
}
