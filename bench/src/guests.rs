//! Builds the component of a query. Cargo decides whether there is anything to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Where components and inputs are kept: beside the other guests.
pub fn work_folder() -> PathBuf {
    target_folder().join("bench")
}

fn target_folder() -> PathBuf {
    match std::env::var_os("TIDEMILL_GUEST_TARGET_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => workspace().join("target/guests"),
    }
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The component of a query, as bytes.
///
/// # Errors
/// When the wasm target is missing or the build fails; cargo's words are on the terminal.
pub fn component(query: &str) -> Result<Vec<u8>> {
    let target = target_folder();
    // As a user's project builds its guests: one codegen unit with link-time optimisation.
    let status = Command::new(env!("CARGO"))
        .current_dir(workspace())
        .args(["build", "--quiet", "--release", "--package", "tidemill-bench-queries", "--lib"])
        .args(["--features", query, "--target", "wasm32-unknown-unknown", "--target-dir"])
        .arg(&target)
        .args(["--config", "profile.release.lto=true", "--config", "profile.release.codegen-units=1"])
        .args(["--config", "profile.release.panic='abort'"])
        // What a cargo that runs us has set is for that build, not for this one.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS")
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "the component of {query} was not built; `make setup` installs the wasm target");
    let module = target.join("wasm32-unknown-unknown/release/tidemill_bench_queries.wasm");
    let module = fs::read(&module).with_context(|| format!("cannot read {}", module.display()))?;
    Ok(tidemill_wasm::componentize(&module)?)
}
