//! `tidemill test`: the project's own tests natively, then its component as far as it can be checked without running it;
//! if asked for, the same tests again with the job in the sandbox.

use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use tidemill_testkit::harness;
use tidemill_wasm::{Limits, WasmCode};

use super::{build, manifest, registry};
use crate::args::TestArgs;
use crate::failure::{Failure, JOB_FAILED, Outcome};
use crate::process;
use tidemill_job::{Manifest, component as loading};

pub fn run(args: &TestArgs) -> Outcome {
    let manifest = manifest(&args.project)?;
    manifest.check_options(&registry())?;
    let has_tests = manifest.folder.join("Cargo.toml").is_file();
    if has_tests {
        cargo_test(&manifest, args.filter.as_deref(), &[])?;
    } else {
        build::say("skipped", "native tests: there is no Cargo.toml beside the manifest");
    }
    build::build(&manifest)?;
    if !has_tests || !args.sandbox {
        return Ok(());
    }
    build::say("again", "the same tests, with the job in the sandbox");
    let component = std::path::absolute(&manifest.job.component).context("the component's path")?;
    let command = std::env::current_exe().context("where this command is")?;
    let names = [(harness::COMPONENT, component.as_path()), (harness::SERVER, command.as_path())];
    cargo_test(&manifest, args.filter.as_deref(), &names)
}

fn cargo_test(manifest: &Manifest, filter: Option<&str>, variables: &[(&str, &Path)]) -> Outcome {
    let mut cargo = process::cargo(&manifest.folder);
    cargo.arg("test").args(filter).envs(variables.iter().copied());
    if let Some(shared) = std::env::var_os("TIDEMILL_GUEST_TARGET_DIR").filter(|d| !d.is_empty()) {
        cargo.env("CARGO_TARGET_DIR", shared);
    }
    let status = cargo.status().map_err(|e| process::not_started(&e))?;
    if status.success() { Ok(()) } else { Err(Failure::said(JOB_FAILED)) }
}

/// Runs a job for a test, which asks on stdin.
pub fn serve(component: &Path) -> Outcome {
    let job = loading::load(component, Limits::default())?;
    let plan = job.component.plan()?;
    let code = |params| Arc::new(WasmCode::new(job.component, params)) as _;
    harness::serve(plan, code, io::stdin().lock(), io::stdout().lock())?;
    Ok(())
}
