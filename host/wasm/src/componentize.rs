//! From what a compiler makes (a core module with the types of the contract in a custom section) to a component.

use tidemill_core::{Error, Result};
use wit_component::ComponentEncoder;

/// Turns a core module, built for `wasm32-unknown-unknown` with bindings of `wit/`, into a component.
///
/// The module needs no WASI. One that imports something which the contract does not have is refused, naming it.
pub fn componentize(core_module: &[u8]) -> Result<Vec<u8>> {
    let encode = || ComponentEncoder::default().validate(true).module(core_module)?.encode();
    encode().map_err(|error| {
        Error::invalid(format!("the module can't become a component: {error:#}")).mend(
            "Build it for wasm32-unknown-unknown as a cdylib that exports a job (with the SDK: #[tidemill::job]), \
             without crates that need an operating system.",
        )
    })
}
