//! How a command ends when it does not end well: one exit code per kind of caller's reaction, and a message that ends
//! with what to do next.

use std::fmt::Write as _;
use std::process::ExitCode;

use console::style;

/// The job (or a build, or a test) failed.
pub const JOB_FAILED: u8 = 1;
/// What was typed is wrong: the command line, the manifest, the component.
pub const USAGE: u8 = 2;
/// Stopped by Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// Why a command failed. Converted from any error it is one of usage: those come before a job runs.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    /// `None`: everything was said already.
    error: Option<anyhow::Error>,
}

/// What a command answers.
pub type Outcome = Result<(), Failure>;

impl Failure {
    /// While running.
    pub fn job(error: impl Into<anyhow::Error>) -> Self {
        Self { code: JOB_FAILED, error: Some(error.into()) }
    }

    /// The words were somebody else's (cargo's) and stand above.
    pub fn said(code: u8) -> Self {
        Self { code, error: None }
    }

    /// Prints the chain of errors on stderr.
    pub fn report(self) -> ExitCode {
        if let Some(error) = &self.error {
            eprintln!("{} {}", style("error:").for_stderr().red().bold(), chain(error));
        }
        ExitCode::from(self.code)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { code: USAGE, error: Some(error.into()) }
    }
}

/// The outermost message, its causes, and the mends last, wherever in the chain they were given.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    let mut mends = Vec::new();
    for (depth, cause) in error.chain().enumerate() {
        let full = cause.to_string();
        let (message, mend) = match full.split_once("\n  mend: ") {
            Some((message, mend)) => (message.to_owned(), Some(mend.to_owned())),
            None => (full, None),
        };
        match depth {
            0 => text.push_str(&message),
            _ => drop(write!(text, "\n  because: {}", message.replace('\n', "\n  "))),
        }
        mends.extend(mend);
    }
    for mend in mends {
        let _ = write!(text, "\n  {} {mend}", style("mend:").for_stderr().green().bold());
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use tidemill_core::Error;

    #[test]
    fn mends_come_last() {
        console::set_colors_enabled_stderr(false);
        let error: anyhow::Result<()> = Err(Error::invalid("no such file").mend("Make it.").into());
        let error = error.context("source 'in' (tidemill.toml:7)").unwrap_err();
        let expected = "source 'in' (tidemill.toml:7)\n  because: no such file\n  mend: Make it.";
        assert_eq!(super::chain(&error), expected);
    }
}
