//! What is logged of a job, for whoever runs it to read: messages of its own code and of the engine.
//!
//! Messages come out of sandboxes and out of other processes: [`bounded`] makes one harmless, where it is taken in and
//! again where it is read.

use std::fmt;
use std::fmt::Write as _;

use crate::ids::{NodeId, SubtaskIndex};

/// The longest message that is kept, in bytes: a backtrace of a failure fits, and a thousand of them are no burden.
pub const MESSAGE_BYTES: usize = 8 << 10;

/// The longest name of an operator or a worker beside it, in bytes.
pub const NAME_BYTES: usize = 256;

/// How much a message matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// For whoever looks for a fault.
    Debug,
    /// Something happened, and all is well.
    Info,
    /// Something is not as it should be, and the job goes on.
    Warn,
    /// Something failed.
    Error,
}

impl Level {
    /// All, the least first.
    pub const ALL: [Self; 4] = [Self::Debug, Self::Info, Self::Warn, Self::Error];
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        })
    }
}

/// A message of a task.
#[derive(Clone, Copy, Debug)]
pub struct TaskMessage<'a> {
    /// The operator's name.
    pub operator: &'a str,
    /// The operator.
    pub node: NodeId,
    /// Which of its subtasks.
    pub subtask: SubtaskIndex,
    /// How much it matters.
    pub level: Level,
    /// What it says.
    pub text: &'a str,
}

/// Takes what the tasks of one execution log. It must not block: slots call it.
pub trait TaskLog: Send + Sync {
    /// Takes a message. False: it was dropped, because there are too many.
    fn log(&self, message: &TaskMessage<'_>) -> bool;
}

/// Keeps nothing, where the log of the process is enough.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoLog;

impl TaskLog for NoLog {
    fn log(&self, _: &TaskMessage<'_>) -> bool {
        true
    }
}

/// A message of at most about `bytes`, without anything that a terminal would obey: control characters (but for line
/// feeds and tabs) and those that turn the direction of text are written out, as `\u{1b}`.
pub fn bounded(text: &str, bytes: usize) -> String {
    // Also what is cut off is not looked at: it may be long.
    let kept = text.get(..text.floor_char_boundary(bytes)).unwrap_or_default();
    let mut harmless = String::with_capacity(kept.len());
    for c in kept.chars() {
        if is_harmless(c) {
            harmless.push(c);
        } else {
            harmless.extend(c.escape_unicode());
        }
    }
    if kept.len() < text.len() {
        // Writing to a String does not fail.
        _ = write!(harmless, "... ({} bytes more)", text.len() - kept.len());
    }
    harmless
}

fn is_harmless(c: char) -> bool {
    let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c == '\n' || c == '\t' || !(c.is_control() || turns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        assert_eq!(bounded("plain\n\tétext", 100), "plain\n\tétext");
        assert_eq!(bounded("\u{1b}[2J\r\u{9b}1m\u{7}", 100), "\\u{1b}[2J\\u{d}\\u{9b}1m\\u{7}");
        assert_eq!(bounded("a\u{202e}b\u{2066}", 100), "a\\u{202e}b\\u{2066}");
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        assert_eq!(bounded("abcdef", 3), "abc... (3 bytes more)");
        assert_eq!(bounded("aéz", 2), "a... (3 bytes more)");
        assert_eq!(bounded("abc", 3), "abc");
    }
}
