//! The error of the host's engine: few kinds, each telling the caller what to do.

use std::fmt;

use crate::ids::SubtaskId;

/// `Result` with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Try again: something passing (a network, a busy server).
    Retry,
    /// Try again at once, on what is left: a process or the way to it is gone, and nothing else is wrong.
    Lost,
    /// Stop: another one owns now what this one worked on.
    Fenced,
    /// Change the input: the job, its manifest, its data.
    Invalid,
    /// The user's code failed.
    UserCode,
    /// A limit was reached (memory, time, bytes); raise it or use less.
    Limit,
    /// There is no room in this process, since others have it: try again in another one, or later.
    Full,
    /// A defect of Tidemill.
    Internal,
}

/// What went wrong, where, and how to mend it.
#[derive(Clone, Debug)]
pub struct Error(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    mend: Option<String>,
    subtask: Option<SubtaskId>,
    phase: Option<&'static str>,
}

impl Error {
    /// Of a kind, with a message that names the thing.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), mend: None, subtask: None, phase: None }))
    }

    /// The job, its manifest or its data is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// A defect of Tidemill.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// Adds what to do about it (a sentence, imperative).
    pub fn mend(mut self, mend: impl Into<String>) -> Self {
        self.0.mend = Some(mend.into());
        self
    }

    /// Puts the name of the thing it is about before the message.
    pub fn prefixed(mut self, thing: &str) -> Self {
        self.0.message = format!("{thing}: {}", self.0.message);
        self
    }

    /// Adds the subtask and phase, unless an inner layer said it already.
    pub fn at(mut self, subtask: &SubtaskId, phase: &'static str) -> Self {
        if self.0.subtask.is_none() {
            self.0.subtask = Some(subtask.clone());
            self.0.phase = Some(phase);
        }
        self
    }

    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The subtask in which it happened, if it happened in one.
    pub fn subtask(&self) -> Option<&SubtaskId> {
        self.0.subtask.as_ref()
    }

    /// All that there is to say, but for what its kind adds: for handing it to another process.
    pub fn text(&self) -> String {
        Text(&self.0).to_string()
    }

    /// The message alone, without place and mend.
    pub fn message(&self) -> &str {
        &self.0.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())?;
        if self.0.kind == ErrorKind::Internal {
            f.write_str("\n  (this is a defect of Tidemill; please report it)")?;
        }
        Ok(())
    }
}

/// The error without what its kind adds.
struct Text<'a>(&'a Inner);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(subtask) = &self.0.subtask {
            write!(f, "{subtask}")?;
            if let Some(phase) = self.0.phase {
                write!(f, ", {phase}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.0.message)?;
        if let Some(mend) = &self.0.mend {
            write!(f, "\n  mend: {mend}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<arrow::error::ArrowError> for Error {
    fn from(error: arrow::error::ArrowError) -> Self {
        Self::internal(error.to_string())
    }
}
