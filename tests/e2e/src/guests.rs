//! Builds the jobs' components. Cargo decides whether there is anything to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::jobs::Job;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Where components and their compiled forms are kept: beside the other guests.
pub fn folder() -> PathBuf {
    let target = std::env::var_os("TIDEMILL_GUEST_TARGET_DIR").map(PathBuf::from);
    target.unwrap_or_else(|| workspace().join("target/guests")).join("audit")
}

/// Writes a job's component and answers where.
pub fn component(job: Job) -> Result<PathBuf> {
    let folder = folder();
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let target = folder.parent().unwrap_or(&folder);
    let status = Command::new(env!("CARGO"))
        .current_dir(workspace())
        .args(["build", "--quiet", "--release", "--package", "tidemill-audit-jobs", "--lib"])
        .args(["--features", job.name(), "--target", "wasm32-unknown-unknown", "--target-dir"])
        .arg(target)
        // As a user's project builds its guests; the link is the slow part, and these are not measured.
        .args(["--config", "profile.release.opt-level=1", "--config", "profile.release.panic='abort'"])
        // What a cargo that runs us has set is for that build, not for this one.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS")
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "the component of {} was not built; `make setup` installs the wasm target", job.name());
    let module = target.join("wasm32-unknown-unknown/release/tidemill_audit_jobs.wasm");
    let module = fs::read(&module).with_context(|| format!("cannot read {}", module.display()))?;
    let component = folder.join(format!("{}.wasm", job.name()));
    fs::write(&component, tidemill_wasm::componentize(&module)?)?;
    Ok(component)
}
