//! `tidemill run`: a job in this process, watched and stopped from the terminal.

mod attempts;
mod summary;
mod supervise;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tidemill_core::metrics::TaskMetrics;
use tidemill_dataflow::{Ending, JobHandle, JobSpec};
use tidemill_job::{Manifest, check_bindings, component, spec};

use super::{build, registry_on};
use crate::args::{Format, RunArgs};
use crate::failure::{INTERRUPTED, Outcome};
use crate::progress::{Checkpoints, Display, Figures};
use crate::screen::Screen;
use crate::units;

/// How often the counters are looked at. A job that ends earlier is noticed at once.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub fn run(args: &RunArgs, screen: &Screen) -> Outcome {
    let begin = Instant::now();
    let mut project = args.project.clone();
    project.set.extend(args.start.parallelism.map(|p| format!("job.parallelism={p}")));
    let mut manifest = super::manifest(&project)?;
    if let Some(component) = &args.start.component {
        manifest.job.component = component.clone();
    }
    let registry = registry_on(screen);
    manifest.check_options(&registry)?;
    if args.start.build {
        build::build(&manifest)?;
    }
    let job = component::load(&manifest.job.component, component::limits(&manifest.limits))?;
    check_bindings(&manifest, &job.graph)?;
    let from_cache = job.component.sizes().from_cache;
    let spec = spec(&manifest, &registry, job)?;
    let loaded = begin.elapsed();
    if args.format == Format::Auto || args.format == Format::Plain {
        announce(&manifest, &spec, loaded, from_cache);
    }
    supervise::run(&spec, &manifest, args, screen)
}

/// One line before the job's own.
fn announce(manifest: &Manifest, spec: &JobSpec, loaded: Duration, from_cache: bool) {
    let slots = match spec.settings.parallelism {
        1 => "1 slot".to_owned(),
        n => format!("{n} slots"),
    };
    let how = if from_cache { "loaded" } else { "compiled and loaded" };
    let path = manifest.job.component.display();
    build::say("running", &format!("{} on {slots} ({path} {how} in {})", spec.name, units::duration(loaded)));
}

/// Watches the job to its end, showing its figures. How it ended.
fn watch(
    handle: JobHandle,
    total: Option<u64>,
    interrupts: &AtomicU32,
    format: Format,
    screen: &Screen,
) -> Result<Ending, tidemill_core::Error> {
    let begin = Instant::now();
    let mut display = Display::new(format, screen, begin);
    let mut seen = interrupts.load(Ordering::SeqCst);
    while !handle.is_finished() {
        let count = interrupts.load(Ordering::SeqCst);
        if count > seen {
            seen = count;
            match count {
                // With a checkpoint, which may fail, so that the job goes on and can be stopped again.
                1 => {
                    build::say("stopping", "the job finishes what it has read; Ctrl-C again cancels it");
                    handle.stop();
                }
                _ => handle.cancel(),
            }
        }
        display.update(Instant::now(), figures(&handle, total));
        std::thread::park_timeout(LOOK_EVERY);
    }
    display.clear();
    let (tasks, checkpoints) = (handle.tasks().to_vec(), handle.checkpoints());
    let ended = handle.wait();
    if format == Format::Auto || format == Format::Plain {
        summary::print(&tasks, checkpoints.as_ref(), begin.elapsed());
    }
    Ok(ended?.ending)
}

/// The figures of now, over all operators.
fn figures(job: &JobHandle, total: Option<u64>) -> Figures {
    let tasks = job.tasks();
    let sum = |kind: Option<&str>, counter: fn(&TaskMetrics) -> u64| -> u64 {
        tasks.iter().filter(|t| kind.is_none_or(|k| t.kind == k)).map(|t| counter(&t.metrics)).sum()
    };
    let sinks = tasks.iter().filter(|t| t.kind == "sink");
    let watermark = sinks.map(|t| t.metrics.watermark.load(Ordering::Relaxed)).min();
    Figures {
        records_in: sum(Some("source"), |m| m.records_out.get()),
        records_out: sum(Some("sink"), |m| m.records_in.get()),
        watermark: watermark.filter(|w| *w != i64::MIN && *w != i64::MAX),
        late: sum(None, |m| m.records_late.get()),
        dead_lettered: sum(None, |m| m.records_dead_lettered.get()),
        skipped: sum(None, |m| m.records_skipped.get()),
        progress: sum(Some("source"), |m| m.progress.get()),
        total,
        checkpoints: job.checkpoints().map(|c| Checkpoints {
            completed: c.completed,
            failed: c.failed,
            duration_ms: c.duration_ms,
            bytes: c.bytes,
            alignment_ms: c.alignment_ms,
            unaligned: c.unaligned,
            in_flight_bytes: c.in_flight_bytes,
        }),
    }
}

/// Counts Ctrl-C: the first stops the sources and lets the job finish what it has, the second cancels it, the third
/// ends the process.
fn interrupts() -> anyhow::Result<Arc<AtomicU32>> {
    let seen = Arc::new(AtomicU32::new(0));
    let (count, waiter) = (Arc::clone(&seen), std::thread::current());
    ctrlc::set_handler(move || {
        if count.fetch_add(1, Ordering::SeqCst) >= 2 {
            std::process::exit(i32::from(INTERRUPTED));
        }
        waiter.unpark();
    })
    .context("Ctrl-C can't be caught")?;
    Ok(seen)
}
