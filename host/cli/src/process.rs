//! Running cargo.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use tidemill_core::Error;

/// The target that jobs are built for: no system interface at all.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// cargo, as the user or an outer cargo chose it.
pub fn cargo(folder: &Path) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.current_dir(folder);
    command
}

/// What cargo's failure to start means.
pub fn not_started(error: &std::io::Error) -> Error {
    Error::invalid(format!("cargo does not start: {error}"))
        .mend("Install Rust with rustup (https://rustup.rs), open a new shell, and try again.")
}

/// Whether the compiler that a project uses can compile for [`TARGET`].
pub fn target_installed(folder: &Path) -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let asked = Command::new(rustc)
        .current_dir(folder)
        .args(["--print", "target-libdir", "--target", TARGET])
        .stderr(Stdio::null())
        .output();
    let Ok(answer) = asked else { return true }; // cargo will say it better
    let folder = PathBuf::from(String::from_utf8_lossy(&answer.stdout).trim());
    let Ok(files) = std::fs::read_dir(folder) else { return false };
    files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
}

/// Runs a cargo command with JSON messages; the `.wasm` files it made, newest last. `Err(None)`: it failed and said why.
pub fn wasm_artifacts(command: &mut Command) -> Result<Vec<PathBuf>, Option<Error>> {
    command.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped()).stdin(Stdio::null());
    let mut child = command.spawn().map_err(|e| Some(not_started(&e)))?;
    let mut artifacts = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // Other messages have other fields, and a build script may print anything.
            let Ok(message) = serde_json::from_str::<Message>(&line) else { continue };
            if message.reason == "compiler-artifact"
                && message.target.is_some_and(|t| t.kind.contains(&"cdylib".into()))
            {
                artifacts.extend(message.filenames.into_iter().filter(|f| f.extension().is_some_and(|e| e == "wasm")));
            }
        }
    }
    let status = child.wait().map_err(|e| Some(not_started(&e)))?;
    if status.success() { Ok(artifacts) } else { Err(None) }
}

/// The part of cargo's JSON messages that is looked at.
#[derive(Deserialize)]
struct Message {
    reason: String,
    target: Option<Target>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
}
