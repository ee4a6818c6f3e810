//! The macros of the Tidemill SDK. They only write what one could write by hand; what it means is in `tidemill`.

mod job;
mod row;

use proc_macro::TokenStream;

/// Makes a struct with named fields a kind of row: each field is a column of that name.
///
/// Fields are integers, floats, `bool`, `&str`, `String`, `&[u8]`, `Vec<u8>`, `Timestamp`, `Date`, other structs that
/// derive `Row`, and `Option` of these where a value can be absent. `#[row(rename = "...")]` on a field names its column.
#[proc_macro_derive(Row, attributes(row))]
pub fn derive_row(input: TokenStream) -> TokenStream {
    row::derive(syn::parse_macro_input!(input)).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Makes a function `fn name(flow: &mut Flow)` the job of its crate: on the wasm target the component exports it.
#[proc_macro_attribute]
pub fn job(arguments: TokenStream, item: TokenStream) -> TokenStream {
    job::expand(&arguments.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}
