//! Text and bytes: offsets and one run of bytes. Read without copying as `&str` and `&[u8]`, or as owned copies.
#![allow(clippy::indexing_slicing, reason = "the hot loops: readers are made for rows 0..n and are asked for those")]

use std::str;

use tidemill_plan::DataType;

use super::{Cursor, Value, Writer};
use crate::abi::ColumnView;

/// The offsets of text: an s32 each.
pub type Offsets<'a> = &'a [[u8; 4]];

/// Finds texts in a batch.
#[derive(Clone, Copy, Debug)]
pub struct TextReader<'a> {
    offsets: Offsets<'a>,
    values: &'a [u8],
}

impl<'a> TextReader<'a> {
    fn new(columns: &mut Cursor<'_, 'a>, rows: usize) -> Self {
        let column = columns.take();
        // A column of no rows may come without its one offset.
        let offsets = column.offsets.as_chunks::<4>().0;
        Self { offsets: &offsets[..(rows + 1).min(offsets.len())], values: column.values }
    }

    #[inline(always)]
    fn bytes(&self, row: usize) -> &'a [u8] {
        let start = u32::from_le_bytes(self.offsets[row]) as usize;
        let end = u32::from_le_bytes(self.offsets[row + 1]) as usize;
        &self.values[start..end]
    }

    #[inline(always)]
    fn text(&self, row: usize) -> &'a str {
        // Checked: the host promises UTF-8, but a wrong promise must not become undefined behaviour here.
        str::from_utf8(self.bytes(row)).unwrap_or("\u{FFFD}")
    }
}

/// Collects texts.
#[derive(Debug)]
pub struct TextWriter {
    offsets: Vec<[u8; 4]>,
    values: Vec<u8>,
}

impl Default for TextWriter {
    fn default() -> Self {
        Self { offsets: vec![[0; 4]], values: Vec::new() }
    }
}

impl TextWriter {
    #[inline]
    fn push(&mut self, bytes: &[u8]) {
        self.values.extend_from_slice(bytes);
        self.end_value();
    }

    #[inline]
    fn end_value(&mut self) {
        // A batch of over 2 GiB of text gives offsets that the host refuses by name.
        self.offsets.push((self.values.len() as u32).to_le_bytes());
    }
}

impl Writer for TextWriter {
    fn reserve(&mut self, rows: usize) {
        self.offsets.reserve(rows);
    }

    fn push_absent(&mut self) {
        self.end_value();
    }

    fn columns<'a>(&'a self, out: &mut Vec<ColumnView<'a>>) {
        out.push(ColumnView { validity: &[], offsets: self.offsets.as_flattened(), values: &self.values });
    }

    fn clear(&mut self) {
        self.offsets.truncate(1);
        self.values.clear();
    }
}

macro_rules! text {
    ($($type:ty, $view:ty, $data_type:ident, |$reader:ident, $row:ident| $get:expr, |$value:ident| $bytes:expr;)*) => {$(
        impl Value for $type {
            type View<'a> = $view;
            type Reader<'a> = TextReader<'a>;
            type Writer = TextWriter;

            fn data_type() -> DataType {
                DataType::$data_type
            }

            fn reader<'a>(columns: &mut Cursor<'_, 'a>, rows: usize) -> TextReader<'a> {
                TextReader::new(columns, rows)
            }

            #[inline(always)]
            fn get<'a>($reader: &Self::Reader<'a>, $row: usize) -> Self::View<'a> {
                $get
            }

            #[inline(always)]
            fn push(writer: &mut TextWriter, $value: &Self::View<'_>) {
                writer.push($bytes);
            }
        }
    )*};
}

text! {
    &'static str, &'a str, Utf8, |reader, row| reader.text(row), |value| value.as_bytes();
    &'static [u8], &'a [u8], Binary, |reader, row| reader.bytes(row), |value| value;
    String, String, Utf8, |reader, row| reader.text(row).to_owned(), |value| value.as_bytes();
    Vec<u8>, Vec<u8>, Binary, |reader, row| reader.bytes(row).to_owned(), |value| value;
}
