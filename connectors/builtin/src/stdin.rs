//! The source `stdin`: the process's standard input, until it ends.
//!
//! It is one split, so one reader reads and the others of the source are done at once. What was read can't be read again,
//! and there is one standard input per process: a second source of it is refused.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::SchemaRef;
use tidemill_connector_kit::format::{Chunker, DecodeFormat};
use tidemill_connector_kit::reading::{self, OpenSplits, PREFETCH_BYTES, SplitPosition, TextSplit};
use tidemill_connector_kit::{Connector, OptionSpec, Setup};
use tidemill_core::connector::{
    Boundedness, Discovery, Source, SourceContext, SourceReader, Split, SplitEnumerator, SplitId,
};
use tidemill_core::error::{Error, Result};

/// Read at once: what a pipe holds. A larger buffer would be cleared in vain for each read of a pipe.
const CHUNK_BYTES: usize = 64 << 10;
/// The one split.
const SPLIT: &str = "standard input";

type Input = Box<dyn Read + Send>;

/// The connector.
#[derive(Clone)]
pub struct Stdin(Arc<Shared>);

struct Shared {
    /// `None`: a reader has it.
    input: Mutex<Option<Input>>,
    /// The source that reads it.
    owner: Mutex<Option<String>>,
}

impl Stdin {
    /// The standard input of the process.
    pub fn of_process() -> Self {
        Self::from(Box::new(io::stdin()))
    }

    /// Something else in its place.
    pub fn from(input: Input) -> Self {
        Self(Arc::new(Shared { input: Mutex::new(Some(input)), owner: Mutex::default() }))
    }
}

impl fmt::Debug for Stdin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stdin")
    }
}

impl Connector for Stdin {
    fn name(&self) -> &'static str {
        "stdin"
    }

    fn doc(&self) -> &'static str {
        "Reads the standard input to its end, as in `cat x.csv | tidemill run`. It can't be read twice: when a job fails, \
         what it read since its last checkpoint is lost (at most once); restored, it goes on with what is fed to it then."
    }

    fn source_options(&self) -> Option<Vec<OptionSpec>> {
        Some(DecodeFormat::options().into_iter().chain([PREFETCH_BYTES.spec()]).collect())
    }

    fn source(&self, setup: Setup) -> Result<Arc<dyn Source>> {
        let options = &setup.options;
        let format = DecodeFormat::from_options(options, None)?;
        format.check(&setup.schema).map_err(|e| options.place(e))?;
        let prefetch_bytes = options.need(&PREFETCH_BYTES)?.as_usize();
        let mut owner = self.0.owner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = owner.as_deref() {
            let message = format!("{}: {other} reads the standard input already", options.owner());
            return Err(Error::invalid(message).mend("Read one of them from a file, or from a pipe made by mkfifo."));
        }
        *owner = Some(options.owner().to_owned());
        let lines = Lines { shared: self.0.clone(), format, declared: setup.schema, owner: options.owner().to_owned() };
        Ok(Arc::new(StdinSource { lines, prefetch_bytes }))
    }
}

struct StdinSource {
    lines: Lines,
    prefetch_bytes: usize,
}

impl Source for StdinSource {
    fn boundedness(&self) -> Boundedness {
        Boundedness::Bounded
    }

    fn enumerator(&self, _parallelism: u32) -> Result<Box<dyn SplitEnumerator>> {
        Ok(Box::new(OneSplit { found: false }))
    }

    fn reader(&self, context: SourceContext) -> Result<Box<dyn SourceReader>> {
        let name = format!("stdin-read-{}", context.subtask.index.0);
        Ok(Box::new(reading::reader(name, self.lines.clone(), self.prefetch_bytes, context)?))
    }
}

struct OneSplit {
    found: bool,
}

impl SplitEnumerator for OneSplit {
    fn discover(&mut self) -> Result<Discovery> {
        let split = Whole.to_split()?;
        let splits = if std::mem::replace(&mut self.found, true) { Vec::new() } else { vec![split] };
        Ok(Discovery { splits, again_after_ms: None })
    }

    fn snapshot(&self) -> Result<Vec<u8>> {
        Ok(vec![u8::from(self.found)])
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        self.found = snapshot == [1];
        Ok(())
    }
}

/// Where the split stands: wherever the input does.
#[derive(Clone, Copy)]
struct Whole;

impl SplitPosition for Whole {
    fn id(&self) -> SplitId {
        SplitId(SPLIT.to_owned())
    }

    fn to_split(&self) -> Result<Split> {
        Ok(Split { id: self.id(), description: Vec::new() })
    }

    fn from_split(_split: &Split) -> Result<Self> {
        Ok(Self)
    }

    fn moved(&mut self, _byte: u64, _line: u64) {}
}

/// Opens the input, once.
#[derive(Clone)]
struct Lines {
    shared: Arc<Shared>,
    format: DecodeFormat,
    declared: SchemaRef,
    owner: String,
}

impl OpenSplits for Lines {
    type Position = Whole;

    fn open(&mut self, _position: &mut Whole, schema: &SchemaRef) -> Result<Option<TextSplit<Whole>>> {
        let input = self.shared.input.lock().unwrap_or_else(PoisonError::into_inner).take();
        let input = input.ok_or_else(|| {
            Error::invalid(format!("{}: this process has read its standard input already", self.owner))
                .mend("Start the job in a new process, and feed it what it shall go on with.")
        })?;
        let failed = |owner: &str, e: &io::Error| Error::invalid(format!("{owner}: reading failed: {e}"));
        let mut input = BufReader::with_capacity(CHUNK_BYTES, input);
        // An input without any record need not have a header: `grep` found nothing.
        if is_at_end(&mut input).map_err(|e| failed(&self.owner, &e))? {
            return Ok(None);
        }
        let header = self.format.has_header();
        let header = header.then(|| self.format.read_header(&mut input, SPLIT, &|e| failed(&self.owner, e)));
        let header = header.transpose()?;
        let decoder = self.format.decoder(SPLIT.to_owned(), &self.declared, schema, header.as_deref());
        let before = header.unwrap_or_default();
        let lines = before.iter().filter(|b| **b == b'\n').count() as u64;
        let input: Box<dyn Read + Send> = Box::new(input);
        let chunks = Chunker::new(input, before.len() as u64, lines, self.format.max_record_bytes())
            .with_chunk_bytes(CHUNK_BYTES)
            .with_quoted_breaks(self.format.has_quoted_breaks());
        let owner = self.owner.clone();
        Ok(Some(TextSplit {
            chunks,
            decoder: decoder.map_err(|e| e.prefixed(&self.owner))?,
            failed: Box::new(move |e| failed(&owner, e)),
            advance: Box::new(|_| 0),
        }))
    }
}

fn is_at_end(input: &mut impl BufRead) -> io::Result<bool> {
    loop {
        match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(<[u8]>::is_empty),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc;

    use arrow::array::AsArray;
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};
    use tidemill_connector_kit::{Binding, Registry, conformance};
    use tidemill_core::connector::{ReaderPoll, Waker};
    use tidemill_core::ids::Epoch;

    use super::*;

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]))
    }

    fn registry(text: &'static str) -> Registry {
        let mut registry = Registry::new();
        registry.register(Stdin::from(Box::new(text.as_bytes())));
        registry
    }

    fn source(registry: &Registry, name: &str, options: &str) -> Result<Arc<dyn Source>> {
        let (schema, options) = (schema(), options.parse().unwrap());
        registry.source("stdin", Binding { name, schema: &schema, options: &options, base: Path::new(".") })
    }

    /// Reads to the end, as a slot does.
    fn numbers(source: &Arc<dyn Source>, splits: Vec<Split>) -> Result<Vec<i64>> {
        let (wake, woken) = mpsc::channel();
        let waker = Waker::new(move || _ = wake.send(()));
        let mut reader = source.reader(conformance::source_context(schema(), 2, waker))?;
        reader.add_splits(splits)?;
        reader.no_more_splits();
        let mut numbers = Vec::new();
        loop {
            match reader.poll()? {
                ReaderPoll::Batch { batch, .. } => {
                    numbers.extend(batch.columns()[0].as_primitive::<Int64Type>().values());
                    assert_eq!(reader.snapshot(Epoch(1))?.len(), 1, "a split that is being read is in a checkpoint");
                }
                ReaderPoll::SplitFinished(split) => assert_eq!(split.0, SPLIT),
                ReaderPoll::Pending(_) => woken.recv().unwrap(),
                ReaderPoll::Finished => return Ok(numbers),
            }
        }
    }

    fn all(text: &'static str, options: &str) -> Result<Vec<i64>> {
        let source = source(&registry(text), "in", options)?;
        let splits = source.enumerator(4)?.discover()?.splits;
        assert_eq!(splits.len(), 1, "whatever the parallelism");
        numbers(&source, splits)
    }

    #[test]
    fn every_line_to_the_end_is_read_in_each_format() {
        assert_eq!(all("{\"n\":1}\n{\"n\":2}\n\n{\"n\":3}", "").unwrap(), [1, 2, 3]);
        assert_eq!(all("m,n\n7,1\n8,2\n9,3\n", "format = 'csv'").unwrap(), [1, 2, 3]);
        assert_eq!(all("1\n2\n", "format = 'csv'\nheader = false").unwrap(), [1, 2]);
        for empty in ["format = 'csv'", "format = 'json'"] {
            assert!(all("", empty).unwrap().is_empty(), "no input is no error");
        }
    }

    #[test]
    fn what_is_malformed_is_named_by_its_line() {
        let error = all("n\n1\nx\n", "format = 'csv'").unwrap_err().to_string();
        assert!(error.contains("standard input, line 3 (byte 4)"), "{error}");
        let error = all("a,b\n1,2\n", "format = 'csv'").unwrap_err().to_string();
        assert!(error.contains("source 'in'") && error.contains("'n'"), "{error}");
        assert_eq!(all("n\n1\nx\n3\n", "format = 'csv'\non-error = 'skip'").unwrap(), [1, 3]);
    }

    #[test]
    fn it_is_read_once_and_by_one_source() {
        let registry = registry("{\"n\":1}\n");
        let first = source(&registry, "first", "").unwrap();
        let error = source(&registry, "second", "").err().unwrap().to_string();
        assert!(error.contains("source 'second'") && error.contains("source 'first'"), "{error}");
        let mut enumerator = first.enumerator(1).unwrap();
        let splits = enumerator.discover().unwrap().splits;
        assert_eq!(numbers(&first, splits.clone()).unwrap(), [1]);
        let error = numbers(&first, splits).unwrap_err().to_string();
        assert!(error.contains("has read its standard input already"), "{error}");
        let mut restored = first.enumerator(1).unwrap();
        restored.restore(&enumerator.snapshot().unwrap()).unwrap();
        assert!(restored.discover().unwrap().splits.is_empty(), "readers bring the split along");
    }
}
