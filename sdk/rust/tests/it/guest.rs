//! A job of every kind builds for the sandbox, imports nothing but the contract, and stays small.

use std::path::Path;
use std::process::Command;

/// What a component may weigh before it is stripped: a multiple would be noticed at each start.
const LIMIT_BYTES: usize = 220 * 1024;

#[test]
fn a_job_builds_for_the_sandbox() {
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--release", "--locked", "--target", "wasm32-unknown-unknown"])
        .current_dir(&guest)
        .env("CARGO_TARGET_DIR", &target)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .expect("cargo starts");
    assert!(status.success(), "the guest does not build; run scripts/setup if the wasm target is missing");
    let module = std::fs::read(target.join("wasm32-unknown-unknown/release/guest.wasm")).expect("the module");
    assert_eq!(&module[..4], b"\0asm");
    let has = |text: &str| module.windows(text.len()).any(|w| w == text.as_bytes());
    for export in ["lifecycle", "transform", "keyed", "aggregate"] {
        assert!(has(&format!("tidemill:job/{export}@0.1.1#")), "it does not export {export}");
    }
    assert!(!has("wasi_snapshot") && !has("wasi:"), "it imports WASI");
    assert!(module.len() < LIMIT_BYTES, "the module has {} bytes", module.len());
}
