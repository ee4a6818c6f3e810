//! From a manifest's sections to sources and sinks.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use tidemill_connector_kit::{Binding as ToConnector, Registry, suggest};
use tidemill_core::connector::{Sink, Source};
use tidemill_core::graph::JobGraph;
use tidemill_core::ids::Port;
use tidemill_core::plan::NodeKind;
use tidemill_core::types::arrow_schema;
use tidemill_core::{Error, Result};

use crate::manifest::{Binding, Manifest, Side};

/// A source for each source binding of the job.
pub fn sources(manifest: &Manifest, registry: &Registry, graph: &JobGraph) -> Result<HashMap<String, Arc<dyn Source>>> {
    let mut made = HashMap::new();
    for (id, node) in graph.iter() {
        let NodeKind::Source { binding: name, .. } = &node.kind else { continue };
        let Some(binding) = manifest.sources.get(name) else { continue };
        let schema = graph.schema(id, Port(0))?;
        let source = registry.source(&binding.connector, to_connector(manifest, name, binding, &schema));
        made.insert(name.clone(), source.map_err(|e| manifest.wrap(binding, &e))?);
    }
    Ok(made)
}

/// A sink for each sink binding of the job.
pub fn sinks(manifest: &Manifest, registry: &Registry, graph: &JobGraph) -> Result<HashMap<String, Arc<dyn Sink>>> {
    let mut made = HashMap::new();
    for node in graph.nodes() {
        let NodeKind::Sink { binding: name } = &node.kind else { continue };
        let Some(binding) = manifest.sinks.get(name) else { continue };
        let schema = arrow_schema(graph.input_fields(node, 0)?.iter().map(|f| &f.field));
        made.insert(name.clone(), sink(manifest, registry, name, binding, &schema)?);
    }
    Ok(made)
}

/// The sink of rows that can't be processed, if the manifest has one.
pub fn dead_letters(manifest: &Manifest, registry: &Registry) -> Result<Option<Arc<dyn Sink>>> {
    let Some(binding) = &manifest.dead_letter else { return Ok(None) };
    sink(manifest, registry, "dead-letter", binding, &tidemill_dataflow::letters::schema()).map(Some)
}

fn sink(
    manifest: &Manifest,
    registry: &Registry,
    name: &str,
    binding: &Binding,
    schema: &SchemaRef,
) -> Result<Arc<dyn Sink>> {
    let sink = registry.sink(&binding.connector, to_connector(manifest, name, binding, schema));
    sink.map_err(|e| manifest.wrap(binding, &e))
}

fn to_connector<'a>(
    manifest: &'a Manifest,
    name: &'a str,
    binding: &'a Binding,
    schema: &'a SchemaRef,
) -> ToConnector<'a> {
    ToConnector { name, schema, options: &binding.options, base: &manifest.folder }
}

/// Whether each source and sink of a job is bound, and nothing else is.
pub fn check_bindings(manifest: &Manifest, graph: &JobGraph) -> Result<()> {
    for side in [Side::Source, Side::Sink] {
        let (section, bound) = match side {
            Side::Source => ("sources", &manifest.sources),
            Side::Sink => ("sinks", &manifest.sinks),
        };
        let wanted = bindings(graph, side);
        let what = side.name();
        for name in &wanted {
            if !bound.contains_key(*name) {
                let free = bound.keys().map(String::as_str).filter(|b| !wanted.contains(b));
                let near = suggest::nearest(name, free);
                let hint = near.map(|n| format!("Is [{section}.{n}] meant? ")).unwrap_or_default();
                let path = manifest.path.display();
                return Err(Error::invalid(format!(
                    "{path} does not bind the {what} '{name}' of job '{}'",
                    graph.name()
                ))
                .mend(format!("{hint}Add [{section}.{name}] with a connector: `tidemill connectors` shows them.")));
            }
        }
        for (name, binding) in bound {
            if !wanted.contains(name.as_str()) {
                let list = suggest::list(wanted.iter().copied());
                let near = suggest::did_you_mean(name, wanted.iter().copied());
                let message = format!("job '{}' has no {what} '{name}'", graph.name());
                let has = if list.is_empty() { format!("It has no {what}s.") } else { format!("Its {what}s: {list}.") };
                return Err(manifest.error_at(binding, &message).mend(format!("{near}{has}")));
            }
        }
    }
    Ok(())
}

fn bindings(graph: &JobGraph, side: Side) -> BTreeSet<&str> {
    let names = graph.nodes().iter().filter_map(|node| match (side, &node.kind) {
        (Side::Source, NodeKind::Source { binding, .. }) | (Side::Sink, NodeKind::Sink { binding }) => {
            Some(binding.as_str())
        }
        _ => None,
    });
    names.collect()
}

/// How much there is to read in all, where every source knows.
pub fn sources_total(sources: &HashMap<String, Arc<dyn Source>>) -> Option<u64> {
    let sources: Vec<Option<u64>> = sources.values().map(|source| source.total()).collect();
    sources.into_iter().sum()
}
