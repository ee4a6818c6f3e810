//! The command as its users meet it: text in, text out.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod manifest;
mod new;
mod object_store;
mod settings;

use std::path::Path;
use std::process::{Command, Output};

/// The command, away from the settings of whoever runs the tests.
fn tidemill(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidemill"));
    command.current_dir(folder).env_remove("TIDEMILL_HOME").env_remove("TIDEMILL_LOG").env("NO_COLOR", "1");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Exit code, stdout and stderr in one text, as the cases have them.
fn transcript(output: &Output) -> String {
    let code = output.status.code().unwrap();
    format!("exit code {code}\n{}{}", text(&output.stdout), text(&output.stderr))
}
