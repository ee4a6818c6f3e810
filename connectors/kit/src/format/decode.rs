//! From chunks of records to batches, and what happens to a record that can't be read.
//!
//! Invariant: a malformed record never disappears silently and never takes its neighbours with it: it fails the job with
//! its place and reason, or is counted, or is handed out as a dead letter, as the options say.

use arrow::datatypes::SchemaRef;
use tidemill_core::Batch;
use tidemill_core::error::{Error, Result};
use tidemill_core::operator::DeadLetter;

use super::chunk::{Chunk, record_length};
use super::columns::{self, Column, Place};
use super::csv::{CsvRecord, CsvStyle};
use super::json::JsonRecord;
use super::nested::NestedJson;
use crate::options::{ByteSize, Key, OptionSpec, Options};

const FORMAT: Key<String> = Key::new(
    "format",
    "What a record is: a JSON object per line, CSV fields, or a line of text for the only column. Without it, what the \
     name of the file says (if there is one), else JSON.",
)
.one_of(&["json", "csv", "lines"]);
const ON_ERROR: Key<String> =
    Key::new("on-error", "What happens to a malformed record: the job fails, it is skipped and counted, or set aside.")
        .or("fail")
        .one_of(&["fail", "skip", "dead-letter"]);
const MAX_RECORD: Key<ByteSize> =
    Key::new("max-record-bytes", "A longer record is malformed; it does not enter memory.").or("1 MiB");
const DELIMITER: Key<char> = Key::new("delimiter", "CSV: what stands between two fields.").or(",");
const HEADER: Key<bool> = Key::new(
    "header",
    "CSV: whether the first line names the fields. If not, they are the declared columns, all and in order.",
)
.or("true");
const NULL: Key<Vec<String>> = Key::new("null", "CSV: fields (without quotes) that mean null.").or("['']");
const QUOTED_BREAKS: Key<bool> = Key::new(
    "quoted-line-breaks",
    "CSV: whether a quoted field may have line breaks. Such files are not read in several parts at once.",
)
.or("false");

/// Chunks of records are decoded from memory that 32-bit offsets can reach, and a limit above this is no limit.
const MAX_RECORD_LIMIT: u64 = 256 << 20;
/// Shown of a malformed record in the error that fails a job.
const SHOWN: usize = 200;

/// How records are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeFormat {
    kind: Kind,
    on_error: OnError,
    max_record_bytes: usize,
    header: bool,
    quoted_breaks: bool,
    style: CsvStyle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Json,
    Csv,
    Lines,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnError {
    Fail,
    Skip,
    DeadLetter,
}

impl DecodeFormat {
    /// The options that choose a format, for a source's declaration.
    pub fn options() -> Vec<OptionSpec> {
        vec![
            FORMAT.spec(),
            ON_ERROR.spec(),
            MAX_RECORD.spec(),
            DELIMITER.spec(),
            HEADER.spec(),
            NULL.spec(),
            QUOTED_BREAKS.spec(),
        ]
    }

    /// From options that were declared with [`DecodeFormat::options`]. `extension` is the end of the file's name, if
    /// there is a file and it has one.
    pub fn from_options(options: &Options, extension: Option<&str>) -> Result<Self> {
        let named = options.get(&FORMAT)?;
        let kind = match named.as_deref().or(extension) {
            Some("csv" | "tsv") => Kind::Csv,
            Some("lines" | "txt" | "log") => Kind::Lines,
            _ => Kind::Json,
        };
        let on_error = match options.need(&ON_ERROR)?.as_str() {
            "skip" => OnError::Skip,
            "dead-letter" => OnError::DeadLetter,
            _ => OnError::Fail,
        };
        let max = options.need(&MAX_RECORD)?;
        if !(1..=MAX_RECORD_LIMIT).contains(&max.0) {
            return Err(options.error(&MAX_RECORD, format!("{} bytes is not between 1 and {MAX_RECORD_LIMIT}", max.0)));
        }
        let tabs = extension == Some("tsv") && !options.is_given(&DELIMITER);
        let delimiter = if tabs { b'\t' } else { super::delimiter(options, &DELIMITER)? };
        let nulls = options.need(&NULL)?.into_iter().map(String::into_bytes).collect();
        Ok(Self {
            kind,
            on_error,
            max_record_bytes: max.as_usize(),
            header: options.need(&HEADER)?,
            quoted_breaks: options.need(&QUOTED_BREAKS)? && kind == Kind::Csv,
            style: CsvStyle { delimiter, nulls },
        })
    }

    /// Longest record that is read.
    pub fn max_record_bytes(&self) -> usize {
        self.max_record_bytes
    }

    /// Whether the first record of a stream is no record but names the fields.
    pub fn has_header(&self) -> bool {
        self.kind == Kind::Csv && self.header
    }

    /// Whether a record may have line breaks, so that none can be found from the middle of a stream.
    pub fn has_quoted_breaks(&self) -> bool {
        self.quoted_breaks
    }

    /// Whether columns of these types can be read, else which can't and why.
    pub fn check(&self, schema: &SchemaRef) -> Result<()> {
        let fields = schema.fields();
        if self.kind == Kind::Lines && !matches!(fields.as_ref(), [f] if Column::new(f).is_some_and(|c| c.is_text())) {
            return Err(Error::invalid(format!(
                "format \"lines\" gives one text column, and {} are declared",
                names(schema)
            ))
            .mend("declare one column of text, or set format = \"json\" or \"csv\""));
        }
        match fields.iter().find(|f| Column::new(f).is_none()) {
            Some(field) if self.kind == Kind::Csv => {
                Err(Error::invalid(format!("column '{}' is nested, which CSV has not", field.name()))
                    .mend("declare flat columns, or set format = \"json\""))
            }
            _ => Ok(()),
        }
    }

    /// A decoder of the columns of `schema`, which are some of those that the job `declared`. `place` says whose records
    /// these are (`file 'x.csv'`); `header` is the first record, where there is one.
    pub fn decoder(
        &self,
        place: String,
        declared: &SchemaRef,
        schema: &SchemaRef,
        header: Option<&[u8]>,
    ) -> Result<Decoder> {
        let flat: Option<Vec<Column>> = schema.fields().iter().map(|f| Column::new(f)).collect();
        let (columns, rows) = match (self.kind, flat) {
            (Kind::Json, Some(columns)) => {
                let record = JsonRecord::new(&columns);
                (columns, Rows::Json(record))
            }
            (Kind::Json, None) => (Vec::new(), Rows::Nested(NestedJson::new(schema.clone()))),
            (Kind::Csv, Some(columns)) => {
                let style = self.style.clone();
                let record = match header {
                    Some(header) => CsvRecord::from_header(style, trim_end(header), &columns),
                    None => {
                        let names: Vec<String> = declared.fields().iter().map(|f| f.name().clone()).collect();
                        CsvRecord::from_names(style, &names, &columns)
                    }
                };
                (columns, Rows::Csv(record.map_err(|e| e.prefixed(&place))?))
            }
            (Kind::Lines, Some(columns)) => (columns, Rows::Lines),
            (Kind::Csv | Kind::Lines, None) => return Err(Error::internal("nested columns were not refused")),
        };
        Ok(Decoder { place, on_error: self.on_error, quoted_breaks: self.quoted_breaks, columns, rows })
    }
}

/// How far a chunk was decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Bytes of the chunk.
    pub at: usize,
    /// Lines of the chunk.
    pub line: u64,
}

/// Rows, and what could not become one.
#[derive(Debug)]
pub struct Decoded {
    /// The rows.
    pub batch: Batch,
    /// The malformed records.
    pub rejects: Rejects,
}

/// Malformed records that do not fail the job.
#[derive(Debug, Default)]
pub struct Rejects {
    /// To be counted in `records_skipped`.
    pub skipped: u64,
    /// To be set aside.
    pub letters: Vec<DeadLetter>,
}

/// Decodes the chunks of one stream.
#[derive(Debug)]
pub struct Decoder {
    place: String,
    on_error: OnError,
    quoted_breaks: bool,
    columns: Vec<Column>,
    rows: Rows,
}

#[derive(Debug)]
enum Rows {
    Json(JsonRecord),
    Csv(CsvRecord),
    Lines,
    Nested(NestedJson),
}

impl Decoder {
    /// Decodes at most `max_rows` rows from where the cursor stands, and moves it. The chunk is done when the cursor
    /// stands at its end.
    pub fn decode(&mut self, chunk: &Chunk, cursor: &mut Cursor, max_rows: usize) -> Result<Decoded> {
        if matches!(self.rows, Rows::Nested(_)) {
            return self.decode_nested(chunk, cursor, max_rows);
        }
        let mut rejects = Rejects::default();
        let mut rows = 0;
        for column in &mut self.columns {
            column.reserve(max_rows.min(chunk.text().len() - cursor.at));
        }
        while rows < max_rows
            && let Some(record) = self.next_record(chunk, cursor)
        {
            match self.decode_record(chunk, &record, rows) {
                Ok(()) => rows += 1,
                Err(reason) => {
                    self.columns.iter_mut().for_each(|c| c.truncate(rows));
                    self.reject(&mut rejects, chunk, &record, reason)?;
                }
            }
        }
        let columns = columns::finish(&mut self.columns, chunk.text())?;
        Ok(Decoded { batch: Batch::new(rows, columns, None)?, rejects })
    }

    /// What becomes of a record that was too long to be read ([`super::Piece::TooLong`]).
    pub fn too_long(&self, offset: u64, line: u64, bytes: u64, start: &[u8]) -> Result<Rejects> {
        let mut rejects = Rejects::default();
        let reason = format!("it has {bytes} bytes, which is more than max-record-bytes");
        self.reject_at(&mut rejects, offset, line, start, reason)?;
        Ok(rejects)
    }

    /// Takes the next record that is not blank.
    fn next_record<'c>(&self, chunk: &'c Chunk, cursor: &mut Cursor) -> Option<Record<'c>> {
        loop {
            let rest = chunk.text().as_slice().get(cursor.at..).filter(|rest| !rest.is_empty())?;
            let length = record_length(rest, self.quoted_breaks);
            let whole = rest.get(..length).unwrap_or_default();
            let text = trim_end(whole);
            let record = Record { text, at: cursor.at, line: cursor.line };
            cursor.at += length;
            cursor.line += if self.quoted_breaks { memchr::memchr_iter(b'\n', whole).count() as u64 } else { 1 };
            // Few lines begin with a space: the rest of them is not looked at.
            let blank = text.first().is_none_or(u8::is_ascii_whitespace) && text.trim_ascii().is_empty();
            if !blank || matches!(self.rows, Rows::Lines) {
                return Some(record);
            }
        }
    }

    #[inline]
    fn decode_record(&mut self, chunk: &Chunk, record: &Record<'_>, rows: usize) -> Result<(), String> {
        if !chunk.is_utf8()
            && let Err(error) = std::str::from_utf8(record.text)
        {
            return Err(format!("byte {} is not UTF-8", error.valid_up_to() + 1));
        }
        match &mut self.rows {
            Rows::Json(json) => json.decode(record.text, record.at, &mut self.columns, rows),
            Rows::Csv(csv) => csv.decode(record.text, record.at, &mut self.columns),
            Rows::Lines => self.columns.iter_mut().try_for_each(|c| c.push_text(record.text, Place::Chunk(record.at))),
            Rows::Nested(_) => Err("it is nested".to_owned()),
        }
    }

    fn decode_nested(&self, chunk: &Chunk, cursor: &mut Cursor, max_rows: usize) -> Result<Decoded> {
        let Rows::Nested(nested) = &self.rows else { return Err(Error::internal("the columns are flat")) };
        let mut rejects = Rejects::default();
        let mut records = Vec::new();
        while records.len() < max_rows
            && let Some(record) = self.next_record(chunk, cursor)
        {
            records.push(record);
        }
        let texts: Vec<&[u8]> = records.iter().map(|r| r.text).collect();
        if chunk.is_utf8()
            && let Ok(columns) = nested.decode(&texts)
        {
            let columns = if records.is_empty() { nested.empty() } else { columns };
            return Ok(Decoded { batch: Batch::new(records.len(), columns, None)?, rejects });
        }
        let mut rows = Vec::new();
        for record in &records {
            match std::str::from_utf8(record.text)
                .map_err(|e| e.to_string())
                .and_then(|_| nested.decode(&[record.text]))
            {
                Ok(row) => rows.push(row),
                Err(reason) => self.reject(&mut rejects, chunk, record, reason)?,
            }
        }
        Ok(Decoded { batch: Batch::new(rows.len(), nested.concat(&rows)?, None)?, rejects })
    }

    fn reject(&self, rejects: &mut Rejects, chunk: &Chunk, record: &Record<'_>, reason: String) -> Result<()> {
        let (offset, line) = (chunk.offset() + record.at as u64, chunk.line() + record.line);
        self.reject_at(rejects, offset, line, record.text, reason)
    }

    #[cold]
    fn reject_at(&self, rejects: &mut Rejects, offset: u64, line: u64, text: &[u8], reason: String) -> Result<()> {
        let place = format!("{}, line {} (byte {offset})", self.place, line + 1);
        match self.on_error {
            OnError::Fail => {
                let (shown, more) = text.get(..SHOWN).map_or((text, ""), |start| (start, "..."));
                let shown = String::from_utf8_lossy(shown);
                Err(Error::invalid(format!("{place}: the record is malformed: {reason}\n  record: {shown}{more}"))
                    .mend("correct the record or the declared columns, or set on-error = \"skip\" or \"dead-letter\""))
            }
            OnError::Skip => {
                rejects.skipped += 1;
                Ok(())
            }
            OnError::DeadLetter => {
                let record = String::from_utf8_lossy(text).into_owned();
                rejects.letters.push(DeadLetter { reason: format!("{place}: {reason}"), record, timestamp: None });
                Ok(())
            }
        }
    }
}

struct Record<'a> {
    text: &'a [u8],
    at: usize,
    line: u64,
}

/// A record without its line break.
fn trim_end(record: &[u8]) -> &[u8] {
    let record = record.strip_suffix(b"\n").unwrap_or(record);
    record.strip_suffix(b"\r").unwrap_or(record)
}

fn names(schema: &SchemaRef) -> String {
    schema.fields().iter().map(|f| format!("'{}' ({})", f.name(), f.data_type())).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
