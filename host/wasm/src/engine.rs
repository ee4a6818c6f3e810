//! The engine: how components are compiled and run, the same for all of a process.

use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tidemill_core::{Error, Result};
use wasmtime::component::Linker;
use wasmtime::{Config, Engine, OptLevel, Strategy, WasmBacktraceDetails};
use xxhash_rust::xxh3::Xxh3;

use crate::cache::Cache;
use crate::host;
use crate::limits::Limits;
use crate::state::HostState;

/// How often the clock of call deadlines ticks. A deadline is kept to within one tick; each costs a microsecond.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// How a [`Sandbox`] is set up.
#[derive(Clone, Debug, Default)]
pub struct SandboxSettings {
    /// What instances may use.
    pub limits: Limits,
    /// Where compiled components are kept; made if missing. It must not be writable by others. `None`: nowhere.
    pub cache: Option<PathBuf>,
}

/// Loads and runs components. One per process is enough; cloning copies a pointer.
#[derive(Clone)]
pub struct Sandbox(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) engine: Engine,
    pub(crate) linker: Linker<HostState>,
    pub(crate) limits: Limits,
    pub(crate) cache: Option<Cache>,
    /// Covers version, configuration and CPU.
    pub(crate) fingerprint: u64,
    _ticker: Ticker,
}

impl Sandbox {
    /// Starts the engine, with a thread that ticks for the deadlines of calls.
    pub fn new(settings: SandboxSettings) -> Result<Self> {
        let failed = |error: wasmtime::Error| Error::internal(format!("the sandbox can't start: {error:#}"));
        let engine = Engine::new(&config(&settings.limits)).map_err(failed)?;
        let mut linker = Linker::new(&engine);
        host::link(&mut linker).map_err(failed)?;
        let mut hasher = Xxh3::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let cache = settings.cache.and_then(|folder| {
            let opened = Cache::open(&folder);
            opened.inspect_err(|e| tracing::warn!("the compile cache {} is not used: {e}", folder.display())).ok()
        });
        let ticker = Ticker::start(&engine)?;
        let fingerprint = hasher.finish();
        Ok(Self(Arc::new(Inner { engine, linker, limits: settings.limits, cache, fingerprint, _ticker: ticker })))
    }

    /// What instances may use.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }
}

fn config(limits: &Limits) -> Config {
    let mut config = Config::new();
    config.strategy(Strategy::Cranelift).cranelift_opt_level(OptLevel::Speed);
    // Calls are synchronous, on the slot's thread; without concurrency support an empty one takes half the time.
    config.concurrency_support(false);
    // Address space instead of bounds checks. Instances are made on demand, 15 us each: their number has no bound that a
    // pool could be laid out for, and one is made per subtask, not per call.
    config.memory_reservation(4 << 30).memory_guard_size(32 << 20).memory_may_move(false);
    config.epoch_interruption(true);
    config.max_wasm_stack(limits.stack_bytes);
    config.async_stack_size(limits.stack_bytes * 2);
    // Only what is deterministic, and nothing that a guest doesn't need: every feature is code that faces attackers.
    config.wasm_simd(true).wasm_relaxed_simd(false).relaxed_simd_deterministic(true);
    config.wasm_memory64(false).wasm_multi_memory(true).wasm_tail_call(true);
    config.cranelift_nan_canonicalization(false);
    // Function names come from the name section; DWARF would multiply the size of what is cached.
    config.wasm_backtrace_details(WasmBacktraceDetails::Disable).generate_address_map(true);
    config
}

/// Advances the epoch for as long as it lives.
struct Ticker {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    fn start(engine: &Engine) -> Result<Self> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let (shared, engine) = (Arc::clone(&stop), engine.weak());
        let tick = move || {
            let (stopped, wake) = &*shared;
            let mut guard = stopped.lock().unwrap_or_else(PoisonError::into_inner);
            while !*guard {
                guard = wake.wait_timeout(guard, TICK).unwrap_or_else(PoisonError::into_inner).0;
                let Some(engine) = engine.upgrade() else { return };
                engine.increment_epoch();
            }
        };
        let thread = std::thread::Builder::new().name("tidemill-epochs".into()).spawn(tick);
        let thread = thread.map_err(|e| Error::internal(format!("the sandbox can't start its clock: {e}")))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        let (stopped, wake) = &*self.stop;
        *stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        wake.notify_all();
        if let Some(thread) = self.thread.take() {
            // It only panics if the process is out of luck already; there is nothing to do about it here.
            drop(thread.join());
        }
    }
}
