//! Builds components: the evil guest, and the example jobs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex, PoisonError};

use tidemill_wasm::{Component, Limits, Sandbox, SandboxSettings, componentize};

const TARGET: &str = "wasm32-unknown-unknown";
/// As `tidemill build` has it, so that both find what the other has built.
const PROFILE: [&str; 3] =
    ["profile.release.lto=\"fat\"", "profile.release.codegen-units=1", "profile.release.panic=\"abort\""];

/// The core module of `tests/guests/evil`.
pub static EVIL_MODULE: LazyLock<Vec<u8>> = LazyLock::new(|| build("tests/guests/evil", "evil", &[]));
/// As a component.
pub static EVIL: LazyLock<Vec<u8>> = LazyLock::new(|| componentize(&EVIL_MODULE).unwrap());
/// The one sandbox of the healthy and of the evil jobs.
pub static SANDBOX: LazyLock<Sandbox> = LazyLock::new(|| sandbox(limits()));
/// Another for the deeds that only time ends; in the first, a busy machine must not end what something else should.
pub static HASTY: LazyLock<Sandbox> = LazyLock::new(|| sandbox(Limits { call_ms: 100, ..limits() }));

/// Small, so that the evil ones meet them soon.
fn limits() -> Limits {
    Limits { memory_bytes: 64 << 20, call_ms: 60_000, transfer_bytes: 8 << 20, ..Limits::default() }
}

fn sandbox(limits: Limits) -> Sandbox {
    Sandbox::new(SandboxSettings { limits, cache: None }).unwrap()
}

/// An example job, as `tidemill build` makes it.
pub fn example(name: &str) -> Component {
    let flags = format!("target.{TARGET}.rustflags=[\"-Ctarget-feature=+simd128\"]");
    let mut configs = vec![flags.as_str()];
    configs.extend(PROFILE);
    let module = build(&format!("plugins-examples/{name}"), &name.replace('-', "_"), &configs);
    SANDBOX.load(&format!("{name}.wasm"), &componentize(&module).unwrap()).unwrap()
}

/// A crate's module. One build at a time: cargo would only wait for itself.
fn build(folder: &str, module: &str, configs: &[&str]) -> Vec<u8> {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target =
        std::env::var_os("TIDEMILL_GUEST_TARGET_DIR").map_or_else(|| root.join("target/guests"), PathBuf::from);
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--release", "--quiet", "--lib", "--target", TARGET, "--target-dir"]).arg(&target);
    configs.iter().for_each(|config| _ = cargo.args(["--config", config]));
    // What a cargo that runs us has set is for that build, not for this one.
    cargo.current_dir(root.join(folder)).env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("RUSTFLAGS");
    assert!(cargo.status().unwrap().success(), "{folder} does not build; scripts/setup installs what it needs");
    std::fs::read(target.join(TARGET).join("release").join(format!("{module}.wasm"))).unwrap()
}
