//! The sink `print`: rows as text to the process's standard output, for demos and for looking at what a job does.
//!
//! A batch is written in one piece, so that the rows of several subtasks do not mix within a line. It writes from the
//! slot's thread: whoever reads slowly slows the job down, which is what one wants of a terminal or a pipe.

use std::fmt;
use std::io::{self, ErrorKind as IoErrorKind, Write};
use std::sync::{Arc, Mutex, PoisonError};

use tidemill_connector_kit::format::{EncodeFormat, Encoder};
use tidemill_connector_kit::{Connector, Key, NothingToCommit, OptionSpec, Setup};
use tidemill_core::Batch;
use tidemill_core::connector::{Committable, Guarantee, Sink, SinkCommitter, SinkContext, SinkWriter};
use tidemill_core::error::{Error, Result};
use tidemill_core::ids::Epoch;

const PREFIX: Key<String> = Key::new("prefix", "What stands before each line.").or("");

/// Where `print` writes.
pub type Out = Arc<Mutex<dyn Write + Send>>;

/// The connector.
#[derive(Clone)]
pub struct Print {
    out: Out,
}

impl Print {
    /// To the standard output of the process.
    pub fn stdout() -> Self {
        Self::to(Arc::new(Mutex::new(io::stdout())))
    }

    /// To something else, such as a terminal that also shows progress.
    pub fn to(out: Out) -> Self {
        Self { out }
    }
}

impl fmt::Debug for Print {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Print")
    }
}

impl Connector for Print {
    fn name(&self) -> &'static str {
        "print"
    }

    fn doc(&self) -> &'static str {
        "Writes rows as text to the standard output. After a failure rows may be printed twice."
    }

    fn sink_options(&self) -> Option<Vec<OptionSpec>> {
        let mut specs = EncodeFormat::options();
        specs.push(PREFIX.spec());
        Some(specs)
    }

    fn sink(&self, setup: Setup) -> Result<Arc<dyn Sink>> {
        let format = EncodeFormat::from_options(&setup.options)?;
        format.encoder(&setup.schema).map_err(|e| setup.options.place(e))?;
        let prefix = setup.options.need(&PREFIX)?.into_bytes();
        Ok(Arc::new(PrintSink { format, prefix, out: self.out.clone() }))
    }
}

struct PrintSink {
    format: EncodeFormat,
    prefix: Vec<u8>,
    out: Out,
}

impl Sink for PrintSink {
    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn writer(&self, context: SinkContext) -> Result<Box<dyn SinkWriter>> {
        let encoder = self.format.encoder(&context.schema)?;
        let mut text = Vec::new();
        if context.subtask.index.0 == 0 {
            encoder.header(&mut text);
        }
        Ok(Box::new(Writer { encoder, prefix: self.prefix.clone(), out: self.out.clone(), text }))
    }

    fn committer(&self) -> Result<Box<dyn SinkCommitter>> {
        Ok(Box::new(NothingToCommit))
    }
}

struct Writer {
    encoder: Encoder,
    prefix: Vec<u8>,
    out: Out,
    /// What is to be written; between two batches only a header that was not written yet.
    text: Vec<u8>,
}

impl SinkWriter for Writer {
    fn write(&mut self, batch: &Batch) -> Result<()> {
        self.encoder.encode(batch, &mut self.text)?;
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let written = if self.prefix.is_empty() {
            out.write_all(&self.text)
        } else {
            let lines = self.text.split_inclusive(|b| *b == b'\n');
            out.write_all(&lines.flat_map(|line| [&self.prefix, line].concat()).collect::<Vec<u8>>())
        };
        self.text.clear();
        written.and_then(|()| out.flush()).map_err(|error| match error.kind() {
            IoErrorKind::BrokenPipe => Error::invalid("print: nobody reads the output any more (broken pipe)"),
            _ => Error::invalid(format!("print: writing the output failed: {error}")),
        })
    }

    fn prepare(&mut self, _epoch: Epoch) -> Result<Vec<Committable>> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Int64Array};
    use arrow::datatypes::{DataType, Field, Schema};
    use std::path::Path;
    use tidemill_connector_kit::{Binding, Registry, conformance};

    fn printed(options: &str) -> String {
        let out = Arc::new(Mutex::new(Vec::new()));
        let mut registry = Registry::new();
        registry.register(Print::to(out.clone()));
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let options = options.parse().unwrap();
        let binding = Binding { name: "x", schema: &schema, options: &options, base: Path::new(".") };
        let sink = registry.sink("print", binding).unwrap();
        let mut writer = sink.writer(conformance::sink_context(schema)).unwrap();
        for n in [1, 2] {
            let column: ArrayRef = Arc::new(Int64Array::from(vec![n, n * 10]));
            writer.write(&Batch::new(2, vec![column], None).unwrap()).unwrap();
        }
        String::from_utf8(out.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn rows_are_printed_in_the_format_with_the_prefix() {
        assert_eq!(printed(""), "{\"n\":1}\n{\"n\":10}\n{\"n\":2}\n{\"n\":20}\n");
        assert_eq!(printed("format = 'csv'\nprefix = '> '"), "> n\n> 1\n> 10\n> 2\n> 20\n");
    }
}
