//! Values that can be absent: a bit each, in front of the values.

use tidemill_plan::DataType;

use super::{Bits, Cursor, Value, Writer, bit};
use crate::abi::ColumnView;

/// Finds values that can be absent.
pub struct OptionReader<'a, T: Value> {
    validity: &'a [u8],
    values: T::Reader<'a>,
}

impl<T: Value> Clone for OptionReader<'_, T> {
    fn clone(&self) -> Self {
        Self { validity: self.validity, values: self.values.clone() }
    }
}

/// Collects values that can be absent.
#[derive(Debug, Default)]
pub struct OptionWriter<W> {
    /// So many values at the beginning are all there: as long as none is absent, no bit is written.
    present: usize,
    /// Of all values, from the first absent one on.
    validity: Bits,
    absent: bool,
    values: W,
}

impl<W: Writer> OptionWriter<W> {
    #[inline(always)]
    fn note_present(&mut self) {
        if self.absent {
            self.validity.push(true);
        } else {
            self.present += 1;
        }
    }

    #[cold]
    fn begin_validity(&mut self) {
        self.absent = true;
        (0..self.present).for_each(|_| self.validity.push(true));
    }
}

impl<W: Writer> Writer for OptionWriter<W> {
    fn reserve(&mut self, rows: usize) {
        self.values.reserve(rows);
    }

    fn push_absent(&mut self) {
        if !self.absent {
            self.begin_validity();
        }
        self.validity.push(false);
        self.values.push_absent();
    }

    fn columns<'a>(&'a self, out: &mut Vec<ColumnView<'a>>) {
        let own = out.len();
        self.values.columns(out);
        if let Some(column) = out.get_mut(own).filter(|_| self.absent) {
            column.validity = self.validity.bytes();
        }
    }

    fn clear(&mut self) {
        self.validity.clear();
        (self.present, self.absent) = (0, false);
        self.values.clear();
    }
}

/// `Option` of an `Option` is refused by the plan's shape: there is one bit. It would read as absent or present twice.
impl<T: Value> Value for Option<T> {
    type View<'a> = Option<T::View<'a>>;
    type Reader<'a> = OptionReader<'a, T>;
    type Writer = OptionWriter<T::Writer>;

    const NULLABLE: bool = {
        assert!(!T::NULLABLE, "an Option in an Option can't be a column: there is only one kind of null");
        true
    };

    fn data_type() -> DataType {
        T::data_type()
    }

    fn reader<'a>(columns: &mut Cursor<'_, 'a>, rows: usize) -> Self::Reader<'a> {
        OptionReader { validity: columns.peek().validity, values: T::reader(columns, rows) }
    }

    #[inline(always)]
    fn get<'a>(reader: &Self::Reader<'a>, row: usize) -> Self::View<'a> {
        (reader.validity.is_empty() || bit(reader.validity, row)).then(|| T::get(&reader.values, row))
    }

    #[inline(always)]
    fn push(writer: &mut Self::Writer, view: &Self::View<'_>) {
        match view {
            Some(value) => {
                writer.note_present();
                T::push(&mut writer.values, value);
            }
            None => writer.push_absent(),
        }
    }
}
