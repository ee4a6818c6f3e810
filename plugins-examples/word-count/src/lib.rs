//! Counts words, forever: for each word of the input, how often it came up to now.

use tidemill::prelude::*;

/// A line of text, as the source reads it.
#[derive(Row)]
pub struct Line<'a> {
    line: &'a str,
}

/// A word of it.
#[derive(Row)]
pub struct Word<'a> {
    word: &'a str,
}

/// A word and how often it came.
#[derive(Row)]
pub struct Counted {
    word: String,
    count: i64,
}

/// Splits lines into words, in lower case.
#[tidemill::job]
pub fn word_count(flow: &mut Flow) {
    flow.source::<Line>("lines")
        .flat_map::<Word, _>(|line, out| {
            for word in line.line.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()) {
                out.emit(Word { word: &word.to_lowercase() });
            }
        })
        .key_by(|w| w.word)
        .process(Counter::new)
        .sink("counts");
}

/// The count of one word is the state of its key; the host keeps it.
pub struct Counter {
    count: ValueState<i64>,
}

impl Counter {
    fn new(states: &mut States) -> Self {
        Self { count: states.value("count") }
    }
}

impl KeyedProcess for Counter {
    type Key = &'static str;
    type In = Word<'static>;
    type Out = Counted;

    fn process(&mut self, row: Word<'_>, ctx: &mut Context<'_, Counted>) -> Result<(), RowError> {
        let count = self.count.get(ctx).unwrap_or(0) + 1;
        self.count.set(ctx, count);
        ctx.emit(Counted { word: row.word.to_owned(), count });
        Ok(())
    }
}
