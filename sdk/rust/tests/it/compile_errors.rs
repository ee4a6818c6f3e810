//! What the compiler says to mistakes that are likely. Blessed texts stand beside the cases; they are of the Rust
//! version that this workspace is built with.

#[test]
fn mistakes_are_explained() {
    trybuild::TestCases::new().compile_fail("tests/compile_errors/*.rs");
}
