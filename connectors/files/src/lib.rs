//! The connector `files`: local files and folders of JSON lines, CSV or plain lines.
//!
//! Reading and writing, decoding and encoding run in threads of their own beside the slots, bounded in bytes.
//! In reading order:

mod find;
mod position;
mod reader;
mod seen;
mod sink;
mod source;
mod stream;

use std::sync::Arc;

use tidemill_connector_kit::{Connector, OptionSpec, Registry, Setup};
use tidemill_core::connector::{Sink, Source};
use tidemill_core::error::Result;

/// The connector.
#[derive(Clone, Copy, Debug)]
pub struct Files;

impl Connector for Files {
    fn name(&self) -> &'static str {
        "files"
    }

    fn doc(&self) -> &'static str {
        "Reads local files (also `.gz`), or all files of a folder in the order of their paths; writes part files into a \
         folder, each of which becomes visible, whole, when the checkpoint that covers it is complete."
    }

    fn source_options(&self) -> Option<Vec<OptionSpec>> {
        Some(source::options())
    }

    fn sink_options(&self) -> Option<Vec<OptionSpec>> {
        Some(sink::options())
    }

    fn source(&self, setup: Setup) -> Result<Arc<dyn Source>> {
        source::source(setup)
    }

    fn sink(&self, setup: Setup) -> Result<Arc<dyn Sink>> {
        sink::sink(setup)
    }
}

/// Adds the connector to a registry.
pub fn register(registry: &mut Registry) {
    registry.register(Files);
}
