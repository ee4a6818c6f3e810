//! Components: from disk or from an upload, compiled or found in the cache of compiled ones, with their plan checked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tidemill_core::Error;
use tidemill_core::graph::JobGraph;
use tidemill_wasm::{Component, Limits, Sandbox, SandboxSettings};

use crate::manifest;

/// A component with its plan, checked.
#[derive(Clone)]
pub struct Loaded {
    /// What runs its code.
    pub component: Component,
    /// What it says that it does.
    pub graph: JobGraph,
}

/// Loads a component from a file, compiling it if the cache does not have it, and checks its plan.
pub fn load(path: &Path, limits: Limits) -> Result<Loaded, Error> {
    of_bytes(&path.display().to_string(), &read(path)?, limits)
}

/// The same of one that is in memory; `name` is for messages.
pub fn of_bytes(name: &str, bytes: &[u8], limits: Limits) -> Result<Loaded, Error> {
    let sandbox = Sandbox::new(SandboxSettings { limits, cache: cache_folder() })?;
    let component = sandbox.load(name, bytes)?;
    let graph = JobGraph::from_plan(component.plan()?)?;
    Ok(Loaded { component, graph })
}

/// A manifest's limits, as the sandbox takes them.
pub fn limits(from: &manifest::Limits) -> Limits {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Limits {
        memory_bytes: from.memory_bytes,
        call_ms: ms(from.call_time),
        component_bytes: from.component_bytes,
        compile_ms: ms(from.compile_time),
        transfer_bytes: from.transfer_bytes,
        emitted_rows: from.emitted_rows,
        ..Limits::default()
    }
}

/// Reads a component's file.
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| {
        let shown = path.display();
        match error.kind() {
            std::io::ErrorKind::NotFound => Error::invalid(format!("there is no component {shown}"))
                .mend("Build it with `tidemill build`, or name another one with --component FILE."),
            std::io::ErrorKind::IsADirectory => Error::invalid(format!("{shown} is a folder, not a component"))
                .mend("Name the .wasm file that `tidemill build` makes."),
            _ => Error::invalid(format!("the component {shown} can't be read: {error}")),
        }
    })
}

/// Where compiled components are kept: `TIDEMILL_CACHE`, or a folder of our own in the user's cache folder.
fn cache_folder() -> Option<PathBuf> {
    variable("TIDEMILL_CACHE").or_else(|| Some(user_folder("XDG_CACHE_HOME", ".cache")?.join("tidemill/compiled")))
}

/// A folder of the user's, as the XDG specification has it: what this variable names, or else this one in the home folder.
/// `None`: the user has no home.
pub fn user_folder(name: &str, in_home: &str) -> Option<PathBuf> {
    variable(name).or_else(|| Some(variable("HOME")?.join(in_home)))
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}
