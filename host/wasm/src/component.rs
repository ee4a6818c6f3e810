//! A loaded job: compiled, checked against the contract, ready to be planned and run.

use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use tidemill_core::memory::{Account, ProcessMemory};
use tidemill_core::metrics::TaskMetrics;
use tidemill_core::process::Surroundings;
use tidemill_core::{Error, ErrorKind, Result};
use tidemill_plan::Plan;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{ComponentNamedList, Instance, InstancePre, Lift, Lower, TypedFunc};
use wasmtime::{Engine, Store};

use crate::cache::Key;
use crate::contract::{self, Wasi as WasiUse, interface};
use crate::engine::{Sandbox, TICK};
use crate::shape::Shape;
use crate::state::{Call, HostState, Identity};
use crate::wasi::{self, Wasi};
use crate::{trap, trusted};

/// The compiler recurses on what is nested, as deep as the validator lets it.
const COMPILER_STACK_BYTES: usize = 16 << 20;

/// A job's component. Cloning copies a pointer.
#[derive(Clone)]
pub struct Component(Arc<Loaded>);

struct Loaded {
    sandbox: Sandbox,
    what: String,
    compiled: wasmtime::component::Component,
    instances: InstancePre<HostState>,
    wasi: WasiUse,
    sizes: Sizes,
    /// What it takes, where that is counted.
    held: OnceLock<Account>,
}

/// An import or export, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extern {
    /// Like `tidemill:job/output@0.1.1`.
    pub name: String,
    /// The functions in it, if it is an interface.
    pub functions: Vec<String>,
}

/// How big a component is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The `.wasm` file, in bytes.
    pub component_bytes: usize,
    /// Its machine code and data, in bytes.
    pub compiled_bytes: usize,
    /// Whether the compile cache had it.
    pub from_cache: bool,
}

impl Sandbox {
    /// Compiles a component, or takes it from the cache, and checks that it is a job for this host. `what` names it in
    /// messages (a path, say).
    ///
    /// Refused, each with its reason: what is no WebAssembly or damaged, core modules, components that are no job or one
    /// for another version of the contract, imports that a job must not have.
    pub fn load(&self, what: &str, bytes: &[u8]) -> Result<Component> {
        let limit = self.limits().component_bytes;
        if bytes.len() > limit {
            let message = format!("{what} has {} bytes; limits.component is {limit}", bytes.len());
            return Err(
                Error::new(ErrorKind::Limit, message).mend("Strip it of debug information, or raise the limit.")
            );
        }
        check_header(what, bytes)?;
        let (compiled, from_cache) = self.compile(what, bytes)?;
        let (imports, exports) = (names(&compiled, Side::Imports), names(&compiled, Side::Exports));
        let wasi = contract::check(what, imports.iter().map(|e| &*e.name), exports.iter().map(|e| &*e.name))?;
        let mut linker = self.0.linker.clone();
        if wasi == WasiUse::Imported {
            wasi::link(&mut linker).map_err(|e| Error::internal(format!("WASI can't be linked: {e:#}")))?;
        }
        let instances = linker.instantiate_pre(&compiled).map_err(|error| {
            Error::invalid(format!("{what} does not fit the contract: {error:#}"))
                .mend("Build it against the wit/ folder of this Tidemill.")
        })?;
        let range = compiled.image_range();
        let compiled_bytes = (range.end as usize).saturating_sub(range.start as usize);
        let sizes = Sizes { component_bytes: bytes.len(), compiled_bytes, from_cache };
        let (sandbox, what) = (self.clone(), what.to_owned());
        Ok(Component(Arc::new(Loaded { sandbox, what, compiled, instances, wasi, sizes, held: OnceLock::new() })))
    }

    fn compile(&self, what: &str, bytes: &[u8]) -> Result<(wasmtime::component::Component, bool)> {
        let (engine, cache) = (&self.0.engine, self.0.cache.as_ref());
        let key = cache.map(|_| Key::new(bytes, self.0.fingerprint));
        if let Some(artifact) = cache.zip(key.as_ref()).and_then(|(cache, key)| cache.read(key)) {
            match trusted::deserialize_component(engine, &artifact) {
                Ok(compiled) => return Ok((compiled, true)),
                Err(error) => tracing::warn!("an entry of the compile cache is not used: {error:#}"),
            }
        }
        let compiled = self.compile_in_time(what, bytes)?.map_err(|error| {
            Error::invalid(format!("{what} is damaged, or uses what the sandbox does not allow: {error:#}"))
                .mend("Build it again with `tidemill build`; if it was copied, compare its size with the original's.")
        })?;
        if let Some((cache, key)) = cache.zip(key) {
            let written = compiled.serialize().map_err(|e| e.to_string());
            let written = written.and_then(|artifact| cache.write(&key, &artifact).map_err(|e| e.to_string()));
            if let Err(error) = written {
                tracing::warn!("the compile cache can't be written: {error}");
            }
        }
        Ok((compiled, false))
    }
}

impl Sandbox {
    /// The compiler can't be interrupted, so one that takes too long goes on alone, on a thread of its own, and what it
    /// makes is dropped: the caller does not wait for it. The size of what it works on is bounded by the caller.
    fn compile_in_time(&self, what: &str, bytes: &[u8]) -> Result<wasmtime::Result<wasmtime::component::Component>> {
        let limit_ms = self.limits().compile_ms;
        let (engine, bytes) = (self.0.engine.clone(), bytes.to_vec());
        let (answer, compiled) = mpsc::sync_channel(1);
        let compile = move || {
            // If nobody waits any more, it was told so.
            _ = answer.send(wasmtime::component::Component::from_binary(&engine, &bytes));
        };
        let thread = thread::Builder::new().name("tidemill-compile".into()).stack_size(COMPILER_STACK_BYTES);
        thread.spawn(compile).map_err(|e| Error::internal(format!("no thread could be started: {e}")))?;
        compiled.recv_timeout(Duration::from_millis(limit_ms)).map_err(|error| match error {
            mpsc::RecvTimeoutError::Timeout => {
                let message =
                    format!("{what} takes longer than {limit_ms} ms to compile, which is limits.compile-time");
                Error::new(ErrorKind::Limit, message)
                    .mend("Make it smaller, or split its largest functions; or raise the limit.")
            }
            mpsc::RecvTimeoutError::Disconnected => {
                Error::internal(format!("the compiler panicked on {what}")).mend("Build it with another toolchain.")
            }
        })
    }
}

impl Component {
    /// Asks the component for its job graph, and checks that it exports what the graph needs. The graph itself is
    /// checked by [`tidemill_core::graph::JobGraph::from_plan`].
    pub fn plan(&self) -> Result<Plan> {
        let what = &self.0.what;
        let (node, index) = Default::default();
        let identity = Identity { job: what.clone(), operator: "plan".into(), node, index };
        let mut store = self.store(identity, Arc::default(), Arc::default(), 0, &Surroundings::default());
        let failed = |error: wasmtime::Error, state: &mut HostState| {
            let message = format!("{what} can't be asked for its plan: {}", trap::explain(&error, state));
            Error::new(ErrorKind::UserCode, message).mend("The plan is made by the job's own code: correct that.")
        };
        let instance = self.instantiate(&mut store).map_err(|e| failed(e, store.data_mut()))?;
        let plan = self.function::<(), (Result<String, String>,)>(&mut store, &instance, "lifecycle", "plan");
        let (answer,) = plan?.call(&mut store, ()).map_err(|e| failed(e, store.data_mut()))?;
        let json = answer.map_err(|reason| {
            Error::invalid(format!("{what} has no valid job graph: {reason}")).mend("Correct the job.")
        })?;
        let limit = self.limits().plan_bytes;
        if json.len() > limit {
            let message = format!("{what} has a plan of {} bytes; limits.plan_bytes is {limit}", json.len());
            return Err(Error::new(ErrorKind::Limit, message).mend("Build a smaller job graph."));
        }
        let plan: Plan = serde_json::from_str(&json).map_err(|error| {
            Error::invalid(format!("{what} has a plan that can't be read: {error}"))
                .mend("Build it with the SDK that comes with this Tidemill; wit/plan.schema.json says what is valid.")
        })?;
        let exports = self.exports();
        contract::check_plan(what, &plan, |name| exports.iter().any(|e| contract::is_interface(&e.name, name)))?;
        Ok(plan)
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.0.what
    }

    /// What it imports.
    pub fn imports(&self) -> Vec<Extern> {
        names(&self.0.compiled, Side::Imports)
    }

    /// What it exports.
    pub fn exports(&self) -> Vec<Extern> {
        names(&self.0.compiled, Side::Exports)
    }

    /// How big it is.
    pub fn sizes(&self) -> Sizes {
        self.0.sizes
    }

    /// Counts its compiled code in the account of this process, for as long as anybody has it. An error: it is more than
    /// the process may use.
    pub fn count(&self, memory: &Arc<ProcessMemory>) -> Result<()> {
        let account = memory.component(self.0.sizes.compiled_bytes).map_err(|e| e.prefixed(&self.0.what))?;
        // Whoever came first has counted it.
        _ = self.0.held.set(account);
        Ok(())
    }

    /// Whether this is not the only handle on it.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    pub(crate) fn limits(&self) -> &crate::Limits {
        self.0.sandbox.limits()
    }

    /// A store for one instance, with a deadline for the first call.
    pub(crate) fn store(
        &self,
        identity: Identity,
        shape: Arc<Shape>,
        metrics: Arc<TaskMetrics>,
        seed: u64,
        surroundings: &Surroundings,
    ) -> Store<HostState> {
        let limits = self.limits();
        let wasi = (self.0.wasi == WasiUse::Imported).then(|| Wasi::new(seed));
        let state = HostState::new(Arc::new(identity), limits, shape, metrics, wasi, surroundings);
        let mut store = Store::new(self.engine(), state);
        store.limiter(|state| &mut state.memory);
        // Above the budget of a call, which has the better message: this stops a single argument that exceeds it.
        store.set_hostcall_fuel(usize::try_from(limits.transfer_bytes).unwrap_or(usize::MAX).saturating_add(1 << 20));
        self.rewind(&mut store);
        store
    }

    /// Gives the store's next call its full time.
    pub(crate) fn rewind(&self, store: &mut Store<HostState>) {
        let tick = TICK.as_millis() as u64;
        // One more, because the first tick may come at once.
        store.set_epoch_deadline(self.limits().call_ms.div_ceil(tick) + 1);
    }

    pub(crate) fn instantiate(&self, store: &mut Store<HostState>) -> wasmtime::Result<Instance> {
        store.data_mut().begin(Call::Quiet, Default::default());
        self.0.instances.instantiate(store)
    }

    /// A function of an interface, of the type that the contract says.
    pub(crate) fn function<P, R>(
        &self,
        store: &mut Store<HostState>,
        instance: &Instance,
        interface_name: &str,
        function: &str,
    ) -> Result<TypedFunc<P, R>>
    where
        P: ComponentNamedList + Lower,
        R: ComponentNamedList + Lift,
    {
        let what = &self.0.what;
        let full = interface(interface_name);
        let outer = instance.get_export_index(&mut *store, None, &full);
        let index = outer.and_then(|i| instance.get_export_index(&mut *store, Some(&i), function));
        let Some(index) = index else {
            let message = format!("{what} does not export {function} of {full}");
            return Err(Error::invalid(message).mend("Build it against the wit/ folder of this Tidemill."));
        };
        instance.get_typed_func(&mut *store, index).map_err(|error| {
            Error::invalid(format!("{what} exports {function} of {full} with another type: {error:#}"))
                .mend("Build it against the wit/ folder of this Tidemill.")
        })
    }

    fn engine(&self) -> &Engine {
        &self.0.sandbox.0.engine
    }
}

fn check_header(what: &str, bytes: &[u8]) -> Result<()> {
    const CORE_MODULE: &[u8] = &[1, 0, 0, 0];
    let refuse = |why: &str, mend: &str| Err(Error::invalid(format!("{what} {why}")).mend(mend));
    match bytes.split_at_checked(4) {
        Some((b"\0asm", rest)) if rest.starts_with(CORE_MODULE) => refuse(
            "is a core WebAssembly module, not a component",
            "Run `tidemill build`, which makes a component of what the compiler makes.",
        ),
        Some((b"\0asm", _)) => Ok(()),
        _ => refuse("is not WebAssembly", "Give the .wasm file that `tidemill build` makes."),
    }
}

#[derive(Clone, Copy)]
enum Side {
    Imports,
    Exports,
}

fn names(component: &wasmtime::component::Component, side: Side) -> Vec<Extern> {
    let (engine, ty) = (component.engine(), component.component_type());
    let describe = |name: &str, item: ComponentItem| {
        let functions = match item {
            ComponentItem::ComponentInstance(instance) => {
                let exports = instance.exports(engine);
                let functions = exports.filter(|(_, e)| matches!(e.ty, ComponentItem::ComponentFunc(_)));
                functions.map(|(name, _)| name.to_owned()).collect()
            }
            _ => Vec::new(),
        };
        Extern { name: name.to_owned(), functions }
    };
    match side {
        Side::Imports => ty.imports(engine).map(|(name, item)| describe(name, item.ty)).collect(),
        Side::Exports => ty.exports(engine).map(|(name, item)| describe(name, item.ty)).collect(),
    }
}
