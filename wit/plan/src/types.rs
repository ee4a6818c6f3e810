//! The types of columns, states and accumulators: the part of Arrow's type system that the contract carries.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A named column type.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its type.
    pub data_type: DataType,
    /// Whether a value can be absent.
    #[serde(default)]
    pub nullable: bool,
}

impl Field {
    /// A field from its parts.
    pub fn new(name: impl Into<String>, data_type: DataType, nullable: bool) -> Self {
        Self { name: name.into(), data_type, nullable }
    }
}

/// A column type. In memory and across the boundary each has the Arrow layout of the type of that name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DataType {
    /// One bit per value.
    Boolean,
    /// Signed, 1 byte.
    Int8,
    /// Signed, 2 bytes.
    Int16,
    /// Signed, 4 bytes.
    Int32,
    /// Signed, 8 bytes.
    Int64,
    /// Unsigned, 1 byte.
    #[serde(rename = "uint8")]
    UInt8,
    /// Unsigned, 2 bytes.
    #[serde(rename = "uint16")]
    UInt16,
    /// Unsigned, 4 bytes.
    #[serde(rename = "uint32")]
    UInt32,
    /// Unsigned, 8 bytes.
    #[serde(rename = "uint64")]
    UInt64,
    /// IEEE 754, 4 bytes.
    Float32,
    /// IEEE 754, 8 bytes.
    Float64,
    /// UTF-8 text.
    Utf8,
    /// Bytes.
    Binary,
    /// Milliseconds since 1970-01-01 UTC, as an s64.
    Timestamp,
    /// Days since 1970-01-01, as an s32.
    Date,
    /// Several values under one.
    Struct(Vec<Field>),
    /// Any number of values of one type.
    List(Box<Field>),
}

impl DataType {
    /// Bytes per value; none for booleans and for types without a fixed width.
    pub fn fixed_width(&self) -> Option<usize> {
        match self {
            Self::Int8 | Self::UInt8 => Some(1),
            Self::Int16 | Self::UInt16 => Some(2),
            Self::Int32 | Self::UInt32 | Self::Float32 | Self::Date => Some(4),
            Self::Int64 | Self::UInt64 | Self::Float64 | Self::Timestamp => Some(8),
            Self::Boolean | Self::Utf8 | Self::Binary | Self::Struct(_) | Self::List(_) => None,
        }
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Boolean => "boolean",
            Self::Int8 => "int8",
            Self::Int16 => "int16",
            Self::Int32 => "int32",
            Self::Int64 => "int64",
            Self::UInt8 => "uint8",
            Self::UInt16 => "uint16",
            Self::UInt32 => "uint32",
            Self::UInt64 => "uint64",
            Self::Float32 => "float32",
            Self::Float64 => "float64",
            Self::Utf8 => "utf8",
            Self::Binary => "binary",
            Self::Timestamp => "timestamp",
            Self::Date => "date",
            Self::Struct(fields) => {
                f.write_str("struct<")?;
                for (i, field) in fields.iter().enumerate() {
                    let separator = if i == 0 { "" } else { ", " };
                    write!(f, "{separator}{}: {}", field.name, field.data_type)?;
                }
                return f.write_str(">");
            }
            Self::List(item) => return write!(f, "list<{}>", item.data_type),
        };
        f.write_str(name)
    }
}
