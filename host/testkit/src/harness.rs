//! A job under test: rows go in by hand, time moves by hand, and what came out is looked at.
//!
//! The whole job runs on the engine, stepped in one thread in an order from a seed: the same test gives the same result
//! every time. Event time moves with the rows, by the job's own watermark, and by [`Harness::watermark`];
//! [`Harness::end`] ends the input, which fires everything. Processing time moves only by [`Harness::set_clock`].
//!
//! `tidemill test` runs the tests natively. `tidemill test --sandbox` runs the same tests on the component: what a harness
//! is asked then goes to a process that has the job in the sandbox ([`serve`]). A harness of anything else than the
//! component's own job (of one operator, say) runs natively in both.

mod here;
mod input;
mod there;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidemill::Flow;
use tidemill_core::Result;
use tidemill_core::plan::Plan;
use tidemill_core::user::UserCodeFactory;

use crate::NativeCode;
use here::Here;
pub use there::{COMPONENT, SERVER, serve};
use there::{There, server};

/// A job under test.
pub struct Harness {
    place: Place,
    /// What it was made from, to make it again with dead letters.
    recipe: Recipe,
}

enum Place {
    Here(Box<Here>),
    There(There),
}

enum Recipe {
    Code(Plan, Arc<dyn UserCodeFactory>),
    Component(BTreeMap<String, String>),
}

impl Harness {
    /// The job, run natively, or in the sandbox under `tidemill test --sandbox`.
    pub fn new(name: &str, job: impl Fn(&mut Flow) + Send + Sync + 'static) -> Result<Self> {
        Self::with_params(name, job, &[])
    }

    /// The same with parameters, as the manifest's `[params]` gives them.
    pub fn with_params(
        name: &str,
        job: impl Fn(&mut Flow) + Send + Sync + 'static,
        params: &[(&str, &str)],
    ) -> Result<Self> {
        let bare = NativeCode::new(job);
        if let Some(server) = server() {
            let params = params.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            if server.has_the_job(&bare.plan(name)?)? {
                return Self::make(Recipe::Component(params), false);
            }
        }
        let code = params.iter().fold(bare, |code, (name, value)| code.parameter(name, value));
        Self::with_code(code.plan(name)?, Arc::new(code))
    }

    /// A job by its plan and whatever runs its code.
    pub fn with_code(plan: Plan, user_code: Arc<dyn UserCodeFactory>) -> Result<Self> {
        Self::make(Recipe::Code(plan, user_code), false)
    }

    /// Rows that can't be processed are set aside, as with a `[dead-letter]` section in the manifest, to be read by
    /// [`Harness::dead_letters`]; without this, the first one is an error of the call that fed it. To be called before
    /// anything else: the job begins anew.
    pub fn with_dead_letters(self) -> Result<Self> {
        Self::make(self.recipe, true)
    }

    fn make(recipe: Recipe, letters: bool) -> Result<Self> {
        let place = match &recipe {
            Recipe::Code(plan, code) => Place::Here(Box::new(Here::new(plan.clone(), code.clone(), letters)?)),
            Recipe::Component(params) => Place::There(There::start(params, letters)?),
        };
        Ok(Self { place, recipe })
    }

    /// Whether the job's code runs in the sandbox under `tidemill test --sandbox`, and not natively.
    pub fn is_in_sandbox(&self) -> bool {
        matches!(self.place, Place::There(_))
    }

    /// Feeds rows to a source, as JSON objects (times as milliseconds or ISO 8601), and runs until nothing is left to do.
    pub fn push(&mut self, source: &str, rows: &[Value]) -> Result<()> {
        self.ask(Ask::Push { source: source.into(), rows: rows.into() }).map(drop)
    }

    /// Sets processing time, in milliseconds since 1970-01-01 UTC, and runs what is due.
    pub fn set_clock(&mut self, ms: i64) -> Result<()> {
        self.ask(Ask::Clock { ms }).map(drop)
    }

    /// Moves event time by hand, on every stream that has a watermark: from now on a row whose timestamp is `ms` (since
    /// 1970-01-01 UTC) or before is late, and what is due by then fires, as does a window whose end is at most 1 ms later.
    /// It never goes back, so a smaller `ms` than before changes nothing.
    pub fn watermark(&mut self, ms: i64) -> Result<()> {
        self.ask(Ask::Watermark { ms }).map(drop)
    }

    /// Ends all inputs: every window and event-time timer fires.
    pub fn end(&mut self) -> Result<()> {
        self.ask(Ask::End).map(drop)
    }

    /// The rows that a sink received since the last call, as JSON objects.
    pub fn rows(&mut self, sink: &str) -> Result<Vec<Value>> {
        self.ask(Ask::Rows { sink: sink.into() })
    }

    /// The rows that were set aside since the last call ([`Harness::with_dead_letters`]), as JSON objects: the `operator`,
    /// the `reason`, the `record` as text, its `event_time` if it had one.
    pub fn dead_letters(&mut self) -> Result<Vec<Value>> {
        self.ask(Ask::DeadLetters)
    }

    fn ask(&mut self, ask: Ask<'_>) -> Result<Vec<Value>> {
        match &mut self.place {
            Place::Here(here) => here.answer(ask),
            Place::There(there) => there.ask(&ask),
        }
    }
}

/// What a test asks of its job.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ask<'a> {
    Push { source: Cow<'a, str>, rows: Cow<'a, [Value]> },
    Clock { ms: i64 },
    Watermark { ms: i64 },
    End,
    Rows { sink: Cow<'a, str> },
    DeadLetters,
}
