//! Components from `tests/guests`, good and hostile.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use tidemill_wasm::componentize;

static MODULE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target =
        std::env::var_os("TIDEMILL_GUEST_TARGET_DIR").map_or_else(|| root.join("target/guests"), PathBuf::from);
    let status = Command::new(env!("CARGO"))
        .args(["build", "--release", "--quiet", "--lib", "--target", "wasm32-unknown-unknown", "--target-dir"])
        .arg(&target)
        .current_dir(root.join("tests/guests/evil"))
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS")
        .status();
    assert!(status.unwrap().success(), "the guest does not build; scripts/setup installs what it needs");
    std::fs::read(target.join("wasm32-unknown-unknown/release/evil.wasm")).unwrap()
});

/// A job from the source 'in' to the sink 'out'.
pub fn good() -> Vec<u8> {
    componentize(&MODULE).unwrap()
}

/// One that does something else when it is asked for its plan.
pub fn with_plan(deed: &str) -> Vec<u8> {
    let mark = b"the deed of plan:";
    let mut module = MODULE.clone();
    let at = module.windows(mark.len()).position(|w| w == mark).unwrap() + mark.len();
    module[at..at + 15].copy_from_slice(format!("{deed:<15}").as_bytes());
    componentize(&module).unwrap()
}

/// What cargo makes: a core module, and no component.
pub fn module() -> Vec<u8> {
    MODULE.clone()
}
