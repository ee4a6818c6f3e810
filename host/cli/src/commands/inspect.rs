//! `tidemill inspect`: what a component is, before it runs.

mod describe;
mod dot;

use std::path::{Path, PathBuf};

use console::style;
use serde_json::json;
use tidemill_core::graph::JobGraph;
use tidemill_core::plan::PLAN_VERSION;
use tidemill_wasm::{CONTRACT_VERSION, Component, Extern, Limits};

use super::manifest_path;
use crate::args::InspectArgs;
use crate::failure::Outcome;
use crate::screen::print;
use crate::units;
use tidemill_job::{Manifest, component as loading};

pub fn run(args: &InspectArgs) -> Outcome {
    let (path, limits) = component(&args.target)?;
    let job = loading::load(&path, limits)?;
    let declared = job.graph.clone();
    let graph = if args.unpruned { job.graph } else { job.graph.prune() };
    if args.dot {
        print(&dot::graph(&graph));
    } else if args.json {
        let document = json!({
            "component": {
                "file": path.display().to_string(),
                "bytes": job.component.sizes().component_bytes,
                "compiled_bytes": job.component.sizes().compiled_bytes,
                "contract": CONTRACT_VERSION,
                "imports": externs_json(&job.component.imports()),
                "exports": externs_json(&job.component.exports()),
            },
            "plan": { "version": PLAN_VERSION, "name": graph.name(), "nodes": graph.nodes() },
        });
        print(&format!("{}\n", serde_json::to_string_pretty(&document)?));
    } else {
        print(&text(&path, &job.component, &declared, &graph));
    }
    Ok(())
}

/// The component that is meant, and the limits of its manifest if it was named by one.
fn component(target: &Path) -> Result<(PathBuf, Limits), tidemill_core::Error> {
    if target.extension().is_some_and(|e| e == "wasm") {
        return Ok((target.to_owned(), Limits::default()));
    }
    let manifest = Manifest::read(&manifest_path(target), &[], &|name| std::env::var(name).ok())?;
    Ok((manifest.job.component.clone(), loading::limits(&manifest.limits)))
}

fn text(path: &Path, component: &Component, declared: &JobGraph, graph: &JobGraph) -> String {
    let sizes = component.sizes();
    let label = |name: &str| style(format!("{name:<10}")).dim();
    let (file, code) = (units::bytes(sizes.component_bytes as u64), units::bytes(sizes.compiled_bytes as u64));
    let users = graph.user_nodes().count();
    let mut lines = vec![
        style(graph.name()).bold().to_string(),
        String::new(),
        format!("{} {}, {file}, as machine code {code}", label("component"), path.display()),
        format!("{} tidemill:job@{CONTRACT_VERSION}, plan version {PLAN_VERSION}", label("contract")),
        format!("{} {}", label("imports"), externs(&component.imports())),
        format!("{} {}", label("exports"), externs(&component.exports())),
        format!("{} {}, {users} in the sandbox", label("operators"), graph.nodes().len()),
        String::new(),
    ];
    lines.extend(describe::plan(declared, graph));
    lines.push(String::new());
    lines.join("\n")
}

/// Interfaces without the package that they all have.
fn externs(externs: &[Extern]) -> String {
    let short = |e: &Extern| {
        let plain = e.name.split_once('@').map_or(e.name.as_str(), |(name, _)| name);
        plain.strip_prefix("tidemill:job/").unwrap_or(&e.name).to_owned()
    };
    // `types` has no functions: nothing can be called through it.
    let shown: Vec<String> = externs.iter().filter(|e| !e.functions.is_empty()).map(short).collect();
    if shown.is_empty() { "nothing".to_owned() } else { shown.join(", ") }
}

fn externs_json(externs: &[Extern]) -> serde_json::Value {
    externs.iter().map(|e| json!({ "name": e.name, "functions": e.functions })).collect()
}
