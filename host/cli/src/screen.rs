//! The terminal, shared by the progress display, log messages and what jobs print, so that none tears another.
//!
//! Where there is no terminal, everything passes straight through.

use std::io::{self, Write};

use indicatif::{MultiProgress, ProgressDrawTarget};
use tracing_subscriber::fmt::MakeWriter;

/// A handle on the terminal. Cloning copies a pointer.
#[derive(Clone, Debug)]
pub struct Screen {
    bars: MultiProgress,
}

impl Screen {
    pub fn new() -> Self {
        // Ten times a second: as often as the figures are looked at.
        Self { bars: MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)) }
    }

    /// For adding bars.
    pub fn bars(&self) -> &MultiProgress {
        &self.bars
    }

    /// The standard output, for what jobs print.
    pub fn stdout(&self) -> Behind<io::Stdout> {
        Behind { screen: self.clone(), out: io::stdout() }
    }
}

/// Writes while the progress display is out of the way.
#[derive(Debug)]
pub struct Behind<W> {
    screen: Screen,
    out: W,
}

impl<W: Write> Write for Behind<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let out = &mut self.out;
        self.screen.bars.suspend(|| out.write(bytes))
    }

    /// All in one go: the display is taken away once for a batch and not once per piece.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let out = &mut self.out;
        self.screen.bars.suspend(|| out.write_all(bytes).and_then(|()| out.flush()))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<'a> MakeWriter<'a> for Screen {
    type Writer = Behind<io::Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        Behind { screen: self.clone(), out: io::stderr() }
    }
}

/// Prints what a command was asked for. A reader who has seen enough (`| head`) is no error.
pub fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
