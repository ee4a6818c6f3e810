//! The component: exports the contract of `wit/tidemill.wit` on the wasm target, on top of [`crate::abi`].
//!
//! An instance is one node of the job after `open`. It is kept in a thread-local, as a component has one thread; each
//! call borrows it for its length, and the host never calls back into a call.

use std::cell::RefCell;
use std::marker::PhantomData;

use crate::abi::{
    BatchView, CallClock, ColumnView, Failure, HostCalls, KeySetView, NodeRuntime, TimeDomain, TimersView,
};
use crate::flow::{Flow, build};

/// What `wit-bindgen` makes of the contract.
#[allow(missing_docs, unsafe_code, clippy::all, clippy::pedantic, clippy::restriction, reason = "generated")]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "job",
        ownership: Borrowing { duplicate_if_necessary: true },
        pub_export_macro: true,
        export_macro_name: "export_component",
        default_bindings_module: "tidemill::guest::bindings",
        runtime_path: "::tidemill::guest::wit_runtime",
    });
}

#[doc(hidden)]
pub use bindings::export_component;
#[doc(hidden)]
pub use wit_bindgen::rt as wit_runtime;
