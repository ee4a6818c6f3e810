//! CSV records (RFC 4180, with any delimiter) to columns.
//!
//! The header, or the order of the declared columns, says which field is which column; fields that nobody reads are only
//! counted. A quoted field is text, never null.

use tidemill_core::error::{Error, Result};

use super::columns::{Column, Place};
use crate::suggest;

/// A header with more fields is refused: it is no header.
const MAX_FIELDS: usize = 10_000;

/// How CSV is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CsvStyle {
    pub(super) delimiter: u8,
    pub(super) nulls: Vec<Vec<u8>>,
}

/// Finds the columns of a record's fields.
#[derive(Debug)]
pub(super) struct CsvRecord {
    style: CsvStyle,
    /// The column of each field.
    fields: Vec<Option<usize>>,
    /// Where quotes are resolved.
    scratch: Vec<u8>,
}

impl CsvRecord {
    /// By the names of a header.
    pub(super) fn from_header(style: CsvStyle, header: &[u8], columns: &[Column]) -> Result<Self> {
        let names = header_names(&style, header.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(header))?;
        Self::from_names(style, &names, columns)
    }

    /// By the order of these names.
    pub(super) fn from_names(style: CsvStyle, names: &[String], columns: &[Column]) -> Result<Self> {
        let mut fields = vec![None; names.len()];
        for (i, column) in columns.iter().enumerate() {
            let mut places = names.iter().enumerate().filter(|(_, n)| *n == column.name()).map(|(place, _)| place);
            let (Some(place), None) = (places.next(), places.next()) else {
                return Err(wrong_column(column.name(), names));
            };
            if let Some(field) = fields.get_mut(place) {
                *field = Some(i);
            }
        }
        Ok(Self { style, fields, scratch: Vec::new() })
    }

    /// Appends a record's values to the columns; it begins at `base` of its chunk.
    /// After an error the columns may be longer.
    pub(super) fn decode(&mut self, record: &[u8], base: usize, columns: &mut [Column]) -> Result<(), String> {
        let (mut at, mut count) = (0, 0);
        loop {
            let column = self.fields.get(count).copied().flatten().and_then(|i| columns.get_mut(i));
            count += 1;
            let end = if record.get(at) == Some(&b'"') {
                let (text, escaped, end) = quoted(record, at)?;
                if let Some(column) = column {
                    if escaped {
                        self.scratch.clear();
                        unquote(text, &mut self.scratch);
                        column.push_field(&self.scratch, Place::Elsewhere)?;
                    } else {
                        column.push_field(text, Place::Chunk(base + at + 1))?;
                    }
                }
                end
            } else {
                let rest = record.get(at..).unwrap_or_default();
                let length = rest.iter().position(|b| *b == self.style.delimiter).unwrap_or(rest.len());
                if let Some(column) = column {
                    let text = rest.get(..length).unwrap_or_default();
                    push(&self.style, column, text, base + at)?;
                }
                at + length
            };
            match record.get(end) {
                None => break,
                Some(byte) if *byte == self.style.delimiter => at = end + 1,
                Some(_) => return Err(format!("field {count} goes on after its closing quote")),
            }
        }
        if count != self.fields.len() {
            return Err(format!("it has {count} fields where there are {} columns", self.fields.len()));
        }
        Ok(())
    }
}

#[inline]
fn push(style: &CsvStyle, column: &mut Column, text: &[u8], at: usize) -> Result<(), String> {
    let is_null = style.nulls.iter().any(|null| null == text);
    if is_null && (column.is_nullable() || !column.is_text()) {
        return column.push_null();
    }
    column.push_field(text, Place::Chunk(at))
}

/// The text of the quoted field at `at`, whether it has doubled quotes, and where the field ends.
fn quoted(record: &[u8], at: usize) -> Result<(&[u8], bool, usize), String> {
    let start = at + 1;
    let (mut end, mut escaped) = (start, false);
    loop {
        let rest = record.get(end..).unwrap_or_default();
        let Some(found) = memchr::memchr(b'"', rest) else {
            return Err(format!(
                "the quote at byte {} has no end (if fields may have line breaks, set quoted-line-breaks = true)",
                at + 1
            ));
        };
        end += found;
        if record.get(end + 1) != Some(&b'"') {
            return Ok((record.get(start..end).unwrap_or_default(), escaped, end + 1));
        }
        escaped = true;
        end += 2;
    }
}

fn unquote(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(at) = memchr::memchr(b'"', rest) {
        out.extend_from_slice(rest.get(..=at).unwrap_or_default());
        rest = rest.get(at + 2..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
}

fn header_names(style: &CsvStyle, header: &[u8]) -> Result<Vec<String>> {
    let wrong = |reason: String| Error::invalid(format!("the header is malformed: {reason}"));
    let (mut names, mut at) = (Vec::new(), 0);
    loop {
        if names.len() == MAX_FIELDS {
            return Err(wrong(format!("it has more than {MAX_FIELDS} fields")));
        }
        let mut name = Vec::new();
        let end = if header.get(at) == Some(&b'"') {
            let (text, _, end) = quoted(header, at).map_err(wrong)?;
            unquote(text, &mut name);
            end
        } else {
            let rest = header.get(at..).unwrap_or_default();
            let length = rest.iter().position(|b| *b == style.delimiter).unwrap_or(rest.len());
            name.extend_from_slice(rest.get(..length).unwrap_or_default());
            at + length
        };
        let name = String::from_utf8(name).map_err(|_| wrong(format!("name {} is not UTF-8", names.len() + 1)))?;
        names.push(name.trim().to_owned());
        match header.get(end) {
            None => return Ok(names),
            Some(byte) if *byte == style.delimiter => at = end + 1,
            Some(_) => return Err(wrong(format!("name {} goes on after its closing quote", names.len()))),
        }
    }
}

fn wrong_column(name: &str, names: &[String]) -> Error {
    const SHOWN: usize = 30;
    let there = || names.iter().map(String::as_str);
    if names.iter().any(|n| n == name) {
        return Error::invalid(format!("the header names column '{name}' twice")).mend("name each column once");
    }
    let more = if names.len() > SHOWN { ", ..." } else { "" };
    Error::invalid(format!("the header has no column '{name}'")).mend(format!(
        "{}rename the job's column or the file's; the header has: {}{more}. If the file has no header, set header = false",
        suggest::did_you_mean(name, there()),
        suggest::list(there().take(SHOWN))
    ))
}
