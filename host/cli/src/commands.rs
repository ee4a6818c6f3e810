//! The commands, one module each.

pub mod build;
pub mod certs;
pub mod cluster;
pub mod connectors;
pub mod context;
pub mod control;
pub mod inspect;
pub mod local;
pub mod logs;
pub mod new;
pub mod run;
pub mod serve;
pub mod state;
pub mod test;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tidemill_connector_builtin::Print;
use tidemill_connector_kit::Registry;
use tidemill_core::Error;

use crate::args::ProjectArgs;
use crate::screen::Screen;
use tidemill_job::manifest::{FILE_NAME, Manifest};

/// The connectors that this binary was built with.
fn registry() -> Registry {
    let mut registry = Registry::new();
    tidemill_connector_builtin::register(&mut registry);
    tidemill_connector_files::register(&mut registry);
    registry
}

/// The same, for running a job: what it prints and its progress display share the terminal.
fn registry_on(screen: &Screen) -> Registry {
    let mut registry = registry();
    registry.register(Print::to(Arc::new(Mutex::new(screen.stdout()))));
    registry
}

/// Reads the manifest that a command line names.
fn manifest(args: &ProjectArgs) -> Result<Manifest, Error> {
    Manifest::read(&manifest_path(args.manifest.as_ref().unwrap_or(&args.project)), &args.set, &|name| {
        std::env::var(name).ok()
    })
}

/// A project is named by its folder or by its manifest.
fn manifest_path(project: &Path) -> PathBuf {
    if !project.is_dir() {
        return project.to_owned();
    }
    match project.to_str() {
        Some(".") => PathBuf::from(FILE_NAME),
        _ => project.join(FILE_NAME),
    }
}
