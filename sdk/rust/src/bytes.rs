//! Numbers as the bytes that cross. The contract is little endian, as the wasm target is.
#![allow(unsafe_code, reason = "viewing integers as their bytes")]

const _: () = assert!(cfg!(target_endian = "little"), "the contract's numbers are little endian");

/// The bytes of u32s.
pub(crate) fn of_u32(numbers: &[u32]) -> &[u8] {
    // SAFETY: any initialised memory can be viewed as bytes; the length in bytes is that of the slice.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

/// The bytes of s64s.
pub(crate) fn of_i64(numbers: &[i64]) -> &[u8] {
    // SAFETY: any initialised memory can be viewed as bytes; the length in bytes is that of the slice.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}
