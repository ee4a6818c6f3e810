//! From a manifest's sections to sources and sinks.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use tidemill_connector_kit::{Binding as ToConnector, Registry};
use tidemill_core::Result;
use tidemill_core::connector::{Sink, Source};
use tidemill_core::graph::JobGraph;
use tidemill_core::ids::Port;
use tidemill_core::plan::NodeKind;
use tidemill_core::types::arrow_schema;

use crate::manifest::{Binding, Manifest};

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
