//! `tidemill logs`: what was logged of a job of a cluster, and what comes.

use std::time::Duration;

use console::style;
use tidemill_coordinator::view::{LogEntryView, LogLevel, LogsView};
use tidemill_core::log::bounded;

use super::build::say;
use crate::api::{Api, Unanswered};
use crate::args::LogsArgs;
use crate::failure::Outcome;
use crate::screen::print;
use crate::units;

/// How long an answer may wait for something to say.
const WAIT: Duration = Duration::from_secs(20);
/// An answer that takes longer than that does not come any more: whoever gave it is gone without saying so.
const SILENCE: Duration = Duration::from_secs(40);
/// How long to wait before a cluster that does not answer is asked again.
const AGAIN: Duration = Duration::from_secs(1);

pub fn logs(args: &LogsArgs) -> Outcome {
    let (api, path) = (Api::new(&args.job.cluster)?, format!("jobs/{}/logs", args.job.job));
    let (mut after, mut lost, mut not_stored) = (None, false, 0);
    loop {
        let view = match ask(&api, &path, args, after) {
            Ok(view) => view,
            // A coordinator that comes back has the job, and numbers its entries on.
            Err(error) if args.follow && after.is_some() && error.is::<Unanswered>() => {
                if !std::mem::replace(&mut lost, true) {
                    let why = error.to_string();
                    say("lost", &format!("{}; trying again", why.lines().next().unwrap_or_default()));
                }
                std::thread::sleep(AGAIN);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if std::mem::take(&mut lost) {
            say("back", "what was logged in the last seconds of the coordinator before may be missing");
        }
        if view.missed > 0 {
            say("missed", &format!("{} entries that are not kept any more", units::count(view.missed)));
        }
        if view.not_stored > not_stored {
            let more = units::count(view.not_stored - not_stored);
            say("lost", &format!("{more} entries were gone before the storage had them: it is too slow, or fails"));
            not_stored = view.not_stored;
        }
        if let Some(why) = &view.incomplete {
            say("missing", &format!("older entries can't be read from the storage: {}", bounded(why, usize::MAX)));
        }
        for entry in &view.entries {
            print(&shown(entry, args.job.cluster.json)?);
        }
        let more = after.is_some() && !view.entries.is_empty();
        after = Some(view.next);
        if !args.follow || (view.over && !more) {
            return Ok(());
        }
    }
}

fn ask(api: &Api, path: &str, args: &LogsArgs, after: Option<u64>) -> anyhow::Result<LogsView> {
    let mut query: Vec<(&str, String)> = args.task.iter().map(|task| ("task", task.clone())).collect();
    match after {
        None => query.push(("limit", args.limit.to_string())),
        Some(after) => query.push(("after", after.to_string())),
    }
    if after.is_some() {
        query.push(("wait_ms", WAIT.as_millis().to_string()));
    }
    api.answer(api.get_with(path, &query)?.timeout(SILENCE))
}

/// An entry as lines. What it says was made harmless by the cluster; this is another one's word.
fn shown(entry: &LogEntryView, json: bool) -> anyhow::Result<String> {
    if json {
        return Ok(serde_json::to_string(entry)? + "\n");
    }
    let harmless = |text: &str| bounded(text, usize::MAX);
    let mut head = style(units::time_utc(entry.at_ms)).dim().to_string();
    let level = style(format!("{:5}", entry.level.to_string()));
    let level = match entry.level {
        LogLevel::Debug => level.dim(),
        LogLevel::Info => level.green(),
        LogLevel::Warn => level.yellow(),
        LogLevel::Error => level.red(),
    };
    head.push_str(&format!(" {level}"));
    if let Some(worker) = &entry.worker {
        head.push_str(&format!(" {}", harmless(worker).replace('\n', " ")));
    }
    if entry.worker.is_none() && entry.operator.is_none() {
        head.push_str(" engine");
    }
    if let Some(operator) = &entry.operator {
        let subtask = entry.subtask.map(|index| format!("/{index}")).unwrap_or_default();
        head.push_str(&format!(" {}{subtask}", harmless(operator).replace('\n', " ")));
    }
    Ok(format!("{head}: {}\n", harmless(&entry.message).trim_end().replace('\n', "\n    | ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_shown_in_lines_that_a_terminal_does_not_obey() {
        console::set_colors_enabled(false);
        let entry = LogEntryView {
            sequence: 1,
            at_ms: 1_500,
            level: LogLevel::Warn,
            job: "j".to_owned(),
            node: Some(1),
            operator: Some("m\u{1b}ap\n".to_owned()),
            subtask: Some(0),
            worker: Some("worker-1".to_owned()),
            message: "first\n\u{1b}[2Jsecond\n".to_owned(),
        };
        let text = shown(&entry, false).unwrap();
        assert_eq!(text, "1970-01-01 00:00:01.500 WARN  worker-1 m\\u{1b}ap /0: first\n    | \\u{1b}[2Jsecond\n");
        let of_the_engine = LogEntryView { worker: None, operator: None, subtask: None, ..entry.clone() };
        assert!(shown(&of_the_engine, false).unwrap().starts_with("1970-01-01 00:00:01.500 WARN  engine: first\n"));
        let json = shown(&entry, true).unwrap();
        assert!(json.lines().count() == 1 && json.contains("\"level\":\"WARN\""), "{json}");
    }
}
