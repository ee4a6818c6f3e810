//! `tidemill build`: from a project to a component that is checked and compiled for this machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Context as _;
use console::style;
use tidemill_core::Error;
use tidemill_job::{Manifest, check_bindings, component};

use super::{manifest, registry};
use crate::args::ProjectArgs;
use crate::failure::{Failure, JOB_FAILED, Outcome};
use crate::process::{self, TARGET};
use crate::units;

/// 128-bit vectors: every engine that runs Tidemill's components has them. And a generous limit for inlining: a call per
/// row costs more in the sandbox than natively, since it looks at the stack and at its deadline. With 700, a user's
/// function for a running count is inlined, which takes a sixth off the time in the guest; guests grow by an eighth.
const TARGET_FLAGS: [&str; 2] = ["-Ctarget-feature=+simd128", "-Cllvm-args=-inline-threshold=700"];
/// What makes guests fast and small. Not in the project's manifest, where it would slow down its native tests.
const PROFILE: [&str; 3] =
    ["profile.release.lto=\"fat\"", "profile.release.codegen-units=1", "profile.release.panic=\"abort\""];

pub fn run(args: &ProjectArgs) -> Outcome {
    let manifest = manifest(args)?;
    manifest.check_options(&registry())?;
    build(&manifest)?;
    let next = |command: &str| style(command).bold().for_stderr().to_string();
    let at = if args.project == Path::new(".") { String::new() } else { format!(" {}", args.project.display()) };
    let (run, inspect) = (next(&format!("tidemill run{at}")), next(&format!("tidemill inspect{at}")));
    say("next", &format!("{run}, or {inspect} to see its plan"));
    Ok(())
}

/// Builds a manifest's component and says what was done.
pub fn build(manifest: &Manifest) -> Outcome {
    let begin = Instant::now();
    let module = core_module(manifest)?;
    let bytes = std::fs::read(&module).with_context(|| format!("{} can't be read", module.display()))?;
    let component = tidemill_wasm::componentize(&bytes)?;
    let path = &manifest.job.component;
    write(path, &component)?;
    let took = units::duration(begin.elapsed());
    say("built", &format!("{}, {}, in {took}", path.display(), units::bytes(component.len() as u64)));

    let begin = Instant::now();
    let job = component::load(path, component::limits(&manifest.limits))?;
    let sizes = job.component.sizes();
    let users = job.graph.user_nodes().count();
    let operators = job.graph.nodes().len();
    say("checked", &format!("job '{}', {operators} operators, {users} of them in the sandbox", job.graph.name()));
    check_bindings(manifest, &job.graph)?;
    let how = if sizes.from_cache { "unchanged since the last build" } else { "for this machine" };
    let took = units::duration(begin.elapsed());
    say("compiled", &format!("{how}, {} of machine code, in {took}", units::bytes(sizes.compiled_bytes as u64)));
    Ok(())
}

/// Runs cargo; the module that it made.
fn core_module(manifest: &Manifest) -> Result<PathBuf, Failure> {
    let folder = &manifest.folder;
    if !folder.join("Cargo.toml").is_file() {
        return Err(Error::invalid(format!("there is no Cargo.toml beside {}", manifest.path.display()))
            .mend("Build the component as its own language does, and run it with `tidemill run`.")
            .into());
    }
    if !process::target_installed(folder) {
        return Err(Error::invalid(format!("this Rust can't compile for {TARGET}"))
            .mend(format!("rustup target add {TARGET}    (or scripts/setup in a checkout of Tidemill)"))
            .into());
    }
    let mut command = process::cargo(folder);
    command.args(["build", "--release", "--lib", "--target", TARGET]);
    for setting in PROFILE {
        command.args(["--config", setting]);
    }
    add_target_flags(&mut command);
    if let Some(shared) = std::env::var_os("TIDEMILL_GUEST_TARGET_DIR").filter(|d| !d.is_empty()) {
        let shared = std::path::absolute(PathBuf::from(shared)).context("TIDEMILL_GUEST_TARGET_DIR is no path")?;
        command.arg("--target-dir").arg(shared);
    }
    let artifacts = process::wasm_artifacts(&mut command)
        .map_err(|error| error.map_or_else(|| Failure::said(JOB_FAILED), Failure::from))?;
    // Dependencies are compiled before the package itself.
    artifacts.into_iter().next_back().ok_or_else(|| {
        Error::invalid("cargo made no WebAssembly module")
            .mend("Add to Cargo.toml: [lib] crate-type = [\"cdylib\", \"rlib\"]")
            .into()
    })
}

/// Flags of the environment would replace those of the configuration, so they are added where they are.
fn add_target_flags(command: &mut Command) {
    if let Ok(flags) = std::env::var("CARGO_ENCODED_RUSTFLAGS") {
        let separator = if flags.is_empty() { "" } else { "\u{1f}" };
        command.env("CARGO_ENCODED_RUSTFLAGS", format!("{flags}{separator}{}", TARGET_FLAGS.join("\u{1f}")));
    } else if let Ok(flags) = std::env::var("RUSTFLAGS") {
        command.env("RUSTFLAGS", format!("{flags} {}", TARGET_FLAGS.join(" ")));
    } else {
        command.args(["--config", &format!("target.{TARGET}.rustflags={TARGET_FLAGS:?}")]);
    }
}

/// Aside and renamed: a job that starts meanwhile reads the old component or the new one.
fn write(path: &Path, component: &[u8]) -> anyhow::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("the folder {} can't be made", parent.display()))?;
    }
    let aside = path.with_extension(format!("{}.part", std::process::id()));
    std::fs::write(&aside, component)
        .and_then(|()| std::fs::rename(&aside, path))
        .with_context(|| format!("the component {} can't be written", path.display()))
}

/// A line in the way of cargo's own.
pub fn say(verb: &str, what: &str) {
    eprintln!("{:>12} {what}", style(verb).for_stderr().green().bold());
}
