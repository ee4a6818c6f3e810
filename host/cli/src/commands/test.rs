//! `tidemill test`: the project's own tests natively, then its component as far as it can be checked without running it.

use super::{build, manifest, registry};
use crate::args::TestArgs;
use crate::failure::{Failure, JOB_FAILED, Outcome};
use crate::process;

pub fn run(args: &TestArgs) -> Outcome {
    let manifest = manifest(&args.project)?;
    manifest.check_options(&registry())?;
    if !manifest.folder.join("Cargo.toml").is_file() {
        build::say("skipped", "native tests: there is no Cargo.toml beside the manifest");
    } else {
        let mut cargo = process::cargo(&manifest.folder);
        cargo.arg("test").args(args.filter.as_deref());
        if let Some(shared) = std::env::var_os("TIDEMILL_GUEST_TARGET_DIR").filter(|d| !d.is_empty()) {
            cargo.env("CARGO_TARGET_DIR", shared);
        }
        let status = cargo.status().map_err(|e| process::not_started(&e))?;
        if !status.success() {
            return Err(Failure::said(JOB_FAILED));
        }
    }
    build::build(&manifest)
}
