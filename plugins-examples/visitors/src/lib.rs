//! What each visitor did last: clicks that were sent twice are dropped, and every click tells the visitor's last pages and
//! how often this one was seen.

use tidemill::prelude::*;

/// The pages that are remembered of a visitor.
const LAST: usize = 3;

/// A click, as it was sent, perhaps more than once.
#[derive(Row)]
pub struct Click<'a> {
    id: i64,
    visitor: &'a str,
    page: &'a str,
}

/// What is known of the visitor after it.
#[derive(Row)]
pub struct Visit {
    visitor: String,
    page: String,
    times: i64,
    trail: String,
}

/// The job.
#[tidemill::job]
pub fn visitors(flow: &mut Flow) {
    let again = mins(flow.param_or("again-minutes", 60));
    flow.source::<Click>("clicks")
        .key_by(|c| c.id)
        .process(|states| Once { seen: states.value_with_ttl("seen", Ttl::after_write(again)) })
        .uid("once")
        .key_by(|c| c.visitor)
        .process(|states| Follow { last: states.list("last"), pages: states.map("pages") })
        .uid("follow")
        .sink("visits");
}

/// Lets each id pass once. What it remembers of an id is gone some time after it came last.
pub struct Once {
    seen: ValueState<bool>,
}

impl KeyedProcess for Once {
    type Key = i64;
    type In = Click<'static>;
    type Out = Click<'static>;

    fn process(&mut self, click: Click<'_>, ctx: &mut Context<'_, Click<'static>>) -> Result<(), RowError> {
        if self.seen.get(ctx).is_none() {
            ctx.emit(click);
        }
        self.seen.set(ctx, true);
        Ok(())
    }
}

/// Keeps the last pages of a visitor, in order, and how often each page was seen.
pub struct Follow {
    last: ListState<String>,
    pages: MapState<String, i64>,
}

impl KeyedProcess for Follow {
    type Key = &'static str;
    type In = Click<'static>;
    type Out = Visit;
    const PREFETCH: bool = true;

    fn prefetch(&self, click: Click<'_>, rows: &mut Prefetch<'_>) {
        self.pages.prefetch(rows, click.page.to_owned());
    }

    fn process(&mut self, click: Click<'_>, ctx: &mut Context<'_, Visit>) -> Result<(), RowError> {
        let (visitor, page) = (click.visitor.to_owned(), click.page.to_owned());
        let times = self.pages.get(ctx, &page).unwrap_or(0) + 1;
        self.pages.insert(ctx, page.clone(), times);
        let mut last = self.last.to_vec(ctx);
        last.push(page.clone());
        if last.len() > LAST {
            last.remove(0);
            self.last.set(ctx, last.clone());
        } else {
            self.last.push(ctx, page.clone());
        }
        ctx.emit(Visit { visitor, page, times, trail: last.join(" > ") });
        Ok(())
    }
}
