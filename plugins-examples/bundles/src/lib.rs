//! Bundles of messages: what waits for its bundle is in an operator list, which belongs to no key.

use tidemill::prelude::*;

/// What comes in.
#[derive(Row)]
pub struct Message<'a> {
    from: &'a str,
    text: &'a str,
}

/// What goes out.
#[derive(Row)]
pub struct Bundle {
    messages: i64,
    texts: String,
}

#[tidemill::job]
pub fn bundles(flow: &mut Flow) {
    let size = flow.param_or("size", 4);
    let messages = flow.source::<Message>("messages");
    messages.process(|s| Bundling { size, waiting: s.operator_list("waiting") }).uid("bundling").sink("bundles");
}

/// Holds messages back until there are enough, or no more come.
pub struct Bundling {
    size: usize,
    waiting: OperatorListState<String>,
}

impl Bundling {
    fn emit(&self, ctx: &mut UnkeyedContext<'_, Bundle>) {
        let waiting = self.waiting.to_vec(ctx);
        self.waiting.clear(ctx);
        ctx.emit(Bundle { messages: waiting.len() as i64, texts: waiting.join("; ") });
    }
}

impl Process for Bundling {
    type In = Message<'static>;
    type Out = Bundle;

    const TIMESTAMPS: bool = false;

    fn process(&mut self, message: Message<'_>, ctx: &mut UnkeyedContext<'_, Bundle>) -> Result<(), RowError> {
        self.waiting.push(ctx, format!("{}: {}", message.from, message.text));
        if message.text.is_empty() {
            // What was done for a row that is refused is undone.
            return Err(RowError::new(format!("{} says nothing", message.from)));
        }
        if self.waiting.iter(ctx).count() >= self.size {
            self.emit(ctx);
        }
        Ok(())
    }

    fn on_end(&mut self, ctx: &mut UnkeyedContext<'_, Bundle>) -> Result<(), RowError> {
        self.emit(ctx);
        Ok(())
    }
}
