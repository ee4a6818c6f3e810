//! From a file to rows.

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::{Schema, SchemaRef};
use arrow_ipc::reader::StreamDecoder;
use tidemill_core::{Error, Result};

use super::{Block, Footer, MAGIC, Part, width};
use crate::framed::{self, Place};

/// A file that was read, and whose footer makes sense.
pub(crate) struct PortableFile {
    bytes: Buffer,
    pub(crate) footer: Footer,
    path: String,
}

impl PortableFile {
    /// `path` is for messages.
    pub(crate) fn parse(path: &str, content: Vec<u8>) -> Result<Self> {
        let mut file = Self {
            bytes: Buffer::from_vec(content),
            footer: Footer {
                operator: String::new(),
                max_parallelism: 0,
                key_groups: tidemill_core::snapshot::KeyGroupRange { first: 0, last: 0 },
                keys: 0,
                base: true,
                savepoint: false,
                parts: Vec::new(),
            },
            path: path.to_owned(),
        };
        file.footer = parse_footer(&file.bytes).map_err(|what| file.wrong(what))?;
        Ok(file)
    }

    /// The columns of a part's entries.
    pub(crate) fn schema(&self, part: &Part) -> Result<SchemaRef> {
        let mut decoder = StreamDecoder::new();
        let mut bytes = self.at(part.schema)?;
        decoder.decode(&mut bytes).map_err(|e| self.wrong(format!("has a schema that can't be read: {e}")))?;
        decoder.schema().ok_or_else(|| self.wrong("has a part without a schema"))
    }

    /// The rows of a block of a part that has this schema.
    pub(crate) fn rows(&self, schema: &Schema, block: &Block) -> Result<Vec<RecordBatch>> {
        let columns: Vec<usize> = (0..width(block.change, self.footer.keys, schema)).collect();
        let expected = schema.project(&columns).map_err(|e| self.wrong(e.to_string()))?;
        let mut decoder = StreamDecoder::new();
        let mut bytes = self.at(block.place)?;
        let (mut batches, mut rows) = (Vec::new(), 0);
        while !bytes.is_empty() {
            let decoded = decoder.decode(&mut bytes);
            let Some(batch) = decoded.map_err(|e| self.wrong(format!("has a block that can't be read: {e}")))? else {
                break;
            };
            if batch.schema_ref().fields() != expected.fields() {
                return Err(self.wrong("has a block of other columns than its part's"));
            }
            rows += batch.num_rows() as u64;
            batches.push(batch);
        }
        if rows != block.rows {
            return Err(self.wrong(format!("has a block of {rows} rows that announces {}", block.rows)));
        }
        Ok(batches)
    }

    /// An error about this file.
    pub(crate) fn wrong(&self, what: impl AsRef<str>) -> Error {
        let whose = match self.footer.operator.as_str() {
            "" => String::new(),
            operator => format!(" (state of operator '{operator}')"),
        };
        Error::invalid(format!("the snapshot file '{}'{whose} {}", self.path, what.as_ref()))
            .mend("Restore from another checkpoint, or with the version of Tidemill that wrote this one.")
    }

    pub(super) fn at(&self, place: Place) -> Result<Buffer> {
        framed::at(&self.bytes, place).map_err(|what| self.wrong(what))
    }
}

fn parse_footer(bytes: &[u8]) -> Result<Footer, String> {
    let footer: Footer = framed::footer(bytes, MAGIC, "is not a snapshot in the portable format, version 1")?;
    let max_parallelism = tidemill_core::ids::MaxParallelism::new(footer.max_parallelism);
    if max_parallelism.is_none()
        || footer.key_groups.first > footer.key_groups.last
        || footer.key_groups.last >= footer.max_parallelism
    {
        return Err(format!("has {} of {}", footer.key_groups, footer.max_parallelism));
    }
    Ok(footer)
}
