//! The component: exports the contract of `wit/tidemill.wit` on the wasm target, on top of [`crate::abi`].
//!
//! An instance is one node of the job after `open`. It is kept in a thread-local, as a component has one thread; each
//! call borrows it for its length, and the host never calls back into a call.

use std::cell::RefCell;
use std::marker::PhantomData;

use crate::abi::{self, BatchView, CallClock, ColumnView, HostCalls, KeySetView, NodeRuntime, OwnedColumn, TimersView};
use crate::bytes;
use crate::flow::{Built, Flow, build};
use bindings::exports::tidemill::job::{aggregate, keyed, lifecycle, transform};
use bindings::tidemill::job::types::{
    Batch, Clock, ColumnParam, ColumnResult, Failure, KeySet, RowFailure, Subtask, TimeDomain,
};
use bindings::tidemill::job::{collections, logging, output, state};

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

/// The job of a component. `#[tidemill::job]` implements it.
pub trait Job {
    /// The function's name.
    const NAME: &'static str;

    /// Describes the job.
    fn define(flow: &mut Flow);
}

/// The exports of a component that is this job.
pub struct Component<J>(PhantomData<J>);

thread_local! {
    static NODE: RefCell<Option<Box<dyn NodeRuntime>>> = const { RefCell::new(None) };
}

/// Logs through the host.
pub(crate) fn log(level: abi::Level, message: &str) {
    let level = match level {
        abi::Level::Debug => logging::Level::Debug,
        abi::Level::Info => logging::Level::Info,
        abi::Level::Warn => logging::Level::Warn,
        abi::Level::Error => logging::Level::Error,
    };
    logging::log(level, message);
}

impl<J: Job> lifecycle::Guest for Component<J> {
    fn plan() -> Result<String, String> {
        let built = build(J::NAME, J::define, &[])?;
        serde_json::to_string(&built.plan).map_err(|e| e.to_string())
    }

    fn open(subtask: Subtask, config: Vec<(String, String)>) -> Result<(), Failure> {
        let Built { plan, mut runtimes } = build(J::NAME, J::define, &config).map_err(Failure::Fatal)?;
        if !config.is_empty() {
            let without = build(J::NAME, J::define, &[]).map_err(Failure::Fatal)?;
            if without.plan != plan {
                let message = "the job's graph depends on its parameters; they can go into functions of rows only";
                return Err(Failure::Fatal(message.to_owned()));
            }
        }
        let runtime = runtimes.get_mut(subtask.node as usize).and_then(Option::take);
        let Some(runtime) = runtime else {
            return Err(Failure::Fatal(format!("node {} of the plan has no user code", subtask.node)));
        };
        NODE.with_borrow_mut(|node| *node = Some(runtime));
        Ok(())
    }

    fn close() -> Result<(), Failure> {
        NODE.with_borrow_mut(|node| *node = None);
        Ok(())
    }
}

impl<J: Job> transform::Guest for Component<J> {
    fn process(clock: Clock, input: u32, batch: Batch) -> Result<(), Failure> {
        let columns = views(&batch.columns);
        call(|node, host| node.transform(call_clock(clock), input, &batch_view(&batch, &columns), host))
    }
}

impl<J: Job> keyed::Guest for Component<J> {
    fn process(clock: Clock, input: u32, batch: Batch, keys: KeySet) -> Result<(), Failure> {
        let (columns, states) = (views(&batch.columns), views(&keys.states));
        let keys = key_set_view(&keys, &states);
        call(|node, host| node.process(call_clock(clock), input, &batch_view(&batch, &columns), &keys, host))
    }

    fn on_timers(
        clock: Clock,
        domain: TimeDomain,
        timestamps: Vec<u8>,
        key_columns: Vec<ColumnResult>,
        keys: KeySet,
    ) -> Result<(), Failure> {
        let (key_columns, states) = (views(&key_columns), views(&keys.states));
        let domain = match domain {
            TimeDomain::EventTime => abi::TimeDomain::Event,
            TimeDomain::ProcessingTime => abi::TimeDomain::Processing,
        };
        let keys = key_set_view(&keys, &states);
        let timers = TimersView { domain, timestamps: &timestamps, key_columns: &key_columns, keys };
        call(|node, host| node.on_timers(call_clock(clock), &timers, host))
    }
}

impl<J: Job> aggregate::Guest for Component<J> {
    fn accumulate(
        aggregator: u32,
        groups: u32,
        group_of_row: Vec<u8>,
        batch: Batch,
        accumulators: Vec<ColumnResult>,
    ) -> Result<(), Failure> {
        let (columns, accumulators) = (views(&batch.columns), views(&accumulators));
        let batch = batch_view(&batch, &columns);
        call(|node, host| node.accumulate(aggregator, groups as usize, &group_of_row, &batch, &accumulators, host))
    }

    fn merge(aggregator: u32, groups: u32, left: Vec<ColumnResult>, right: Vec<ColumnResult>) -> Result<(), Failure> {
        let (left, right) = (views(&left), views(&right));
        call(|node, host| node.merge(aggregator, groups as usize, &left, &right, host))
    }

    fn finish(aggregator: u32, groups: u32, accumulators: Vec<ColumnResult>) -> Result<(), Failure> {
        let accumulators = views(&accumulators);
        call(|node, host| node.finish(aggregator, groups as usize, &accumulators, host))
    }
}

fn call(run: impl FnOnce(&mut dyn NodeRuntime, &mut dyn HostCalls) -> Result<(), abi::Failure>) -> Result<(), Failure> {
    NODE.with_borrow_mut(|node| match node {
        Some(node) => run(node.as_mut(), &mut Imports).map_err(failure),
        None => Err(Failure::Fatal("the host called an instance that is not open".to_owned())),
    })
}

/// The host, through the component's imports.
struct Imports;

impl HostCalls for Imports {
    fn forward(&mut self, port: u32, rows: Option<&[u32]>, columns: &[ColumnView<'_>]) {
        output::forward(port, rows.map(bytes::of_u32), &parameters(columns));
    }

    fn emit(&mut self, port: u32, rows: u32, timestamps: &[i64], columns: &[ColumnView<'_>]) {
        output::emit(port, rows, bytes::of_i64(timestamps), &parameters(columns));
    }

    fn put(&mut self, state: u32, keys: &[u32], values: &[ColumnView<'_>]) {
        state::put(state, bytes::of_u32(keys), &parameters(values));
    }

    fn append(&mut self, state: u32, keys: &[u32], items: &[ColumnView<'_>]) {
        collections::append(state, bytes::of_u32(keys), &parameters(items));
    }

    fn insert(&mut self, state: u32, keys: &[u32], map_keys: &[ColumnView<'_>], values: &[ColumnView<'_>]) {
        collections::insert(state, bytes::of_u32(keys), &parameters(map_keys), &parameters(values));
    }

    fn remove(&mut self, state: u32, keys: &[u32], map_keys: &[ColumnView<'_>]) {
        collections::remove(state, bytes::of_u32(keys), &parameters(map_keys));
    }

    fn clear(&mut self, state: u32, keys: &[u32]) {
        collections::clear(state, bytes::of_u32(keys));
    }

    fn read(&mut self, state: u32, keys: &[u32]) -> Vec<OwnedColumn> {
        owned(collections::read(state, bytes::of_u32(keys)))
    }

    fn get(&mut self, state: u32, keys: &[u32], map_keys: &[ColumnView<'_>]) -> Vec<OwnedColumn> {
        owned(collections::get(state, bytes::of_u32(keys), &parameters(map_keys)))
    }

    fn set_timers(&mut self, domain: abi::TimeDomain, keys: &[u32], timestamps: &[i64]) {
        state::set_timers(time_domain(domain), bytes::of_u32(keys), bytes::of_i64(timestamps));
    }

    fn delete_timers(&mut self, domain: abi::TimeDomain, keys: &[u32], timestamps: &[i64]) {
        state::delete_timers(time_domain(domain), bytes::of_u32(keys), bytes::of_i64(timestamps));
    }
}

fn views(columns: &[ColumnResult]) -> Vec<ColumnView<'_>> {
    let columns = columns.iter();
    columns.map(|c| ColumnView { validity: &c.validity, offsets: &c.offsets, values: &c.values }).collect()
}

fn owned(columns: Vec<ColumnResult>) -> Vec<OwnedColumn> {
    let columns = columns.into_iter();
    columns.map(|c| OwnedColumn { validity: c.validity, offsets: c.offsets, values: c.values }).collect()
}

fn parameters<'a>(columns: &[ColumnView<'a>]) -> Vec<ColumnParam<'a>> {
    let parameter = |c: &ColumnView<'a>| ColumnParam { validity: c.validity, offsets: c.offsets, values: c.values };
    columns.iter().map(parameter).collect()
}

fn batch_view<'a>(batch: &'a Batch, columns: &'a [ColumnView<'a>]) -> BatchView<'a> {
    BatchView { rows: batch.rows as usize, timestamps: &batch.timestamps, columns }
}

fn key_set_view<'a>(keys: &'a KeySet, states: &'a [ColumnView<'a>]) -> KeySetView<'a> {
    KeySetView { keys: keys.keys as usize, key_of_row: &keys.key_of_row, states }
}

fn call_clock(clock: Clock) -> CallClock {
    CallClock { watermark: clock.watermark, processing_time: clock.processing_time }
}

fn time_domain(domain: abi::TimeDomain) -> TimeDomain {
    match domain {
        abi::TimeDomain::Event => TimeDomain::EventTime,
        abi::TimeDomain::Processing => TimeDomain::ProcessingTime,
    }
}

fn failure(failure: abi::Failure) -> Failure {
    match failure {
        abi::Failure::Retry(message) => Failure::Retry(message),
        abi::Failure::Rows(rows) => {
            Failure::Rows(rows.into_iter().map(|(row, reason)| RowFailure { row, reason }).collect())
        }
        abi::Failure::Fatal(message) => Failure::Fatal(message),
    }
}
