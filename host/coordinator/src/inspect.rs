//! What is looked up when somebody asks: what a component is, what a job is made of, which checkpoints of it are kept.

use tidemill_checkpoint::Checkpoint;
use tidemill_checkpoint::manifest::{Manifest as Stored, ManifestKind, SubtaskState};
use tidemill_core::Result;
use tidemill_core::graph::JobGraph;
use tidemill_core::plan::PLAN_VERSION;
use tidemill_job::Loaded;
use tidemill_wasm::{CONTRACT_VERSION, Extern};

use crate::view::{
    ArtifactDetail, CheckpointKind, CheckpointView, ExternView, OperatorCheckpointView, PlanView, SubtaskCheckpointView,
};
use crate::{Coordinator, Job};

impl Coordinator {
    /// Whether the storage answers. An error says why not.
    pub fn ready(&self) -> Result<()> {
        self.storage.answers()
    }

    /// What a component is. `None`: there is none of that name.
    pub fn artifact(&self, id: &str) -> Result<Option<ArtifactDetail>> {
        if !self.storage.has_artifact(id)? {
            return Ok(None);
        }
        let Loaded { component, graph } = self.components.get_by_default(id)?;
        let sizes = component.sizes();
        Ok(Some(ArtifactDetail {
            id: id.to_owned(),
            bytes: sizes.component_bytes as u64,
            compiled_bytes: sizes.compiled_bytes as u64,
            contract: CONTRACT_VERSION.to_owned(),
            imports: externs(component.imports()),
            exports: externs(component.exports()),
            plan: plan_view(graph),
        }))
    }

    /// The plan of a job, as it runs.
    pub fn plan(&self, job: &Job) -> Result<PlanView> {
        let definition = job.definition()?;
        Ok(plan_view(self.environment.program(&definition.artifact, &definition.manifest(None)?)?.graph))
    }

    /// The checkpoints of a job that are kept, the newest first.
    pub fn checkpoints(&self, job: &Job) -> Result<Vec<CheckpointView>> {
        let (manifest, name) = (job.definition()?.manifest(None)?, job.view().name);
        let Some(settings) = manifest.checkpoints else { return Ok(Vec::new()) };
        if name.is_empty() {
            // Nobody has looked into its component yet, so it never ran.
            return Ok(Vec::new());
        }
        let store = self.environment.store(&settings, &name)?;
        Ok(store.checkpoints()?.into_iter().map(checkpoint_view).collect())
    }
}

fn plan_view(graph: JobGraph) -> PlanView {
    let graph = graph.prune();
    let nodes = graph.nodes().iter().map(|node| serde_json::to_value(node).unwrap_or_default());
    PlanView { version: PLAN_VERSION, name: graph.name().to_owned(), nodes: nodes.collect() }
}

fn externs(of: Vec<Extern>) -> Vec<ExternView> {
    of.into_iter().map(|e| ExternView { name: e.name, functions: e.functions }).collect()
}

fn checkpoint_view(of: Checkpoint) -> CheckpointView {
    let Checkpoint { number, manifest, committed } = of;
    CheckpointView {
        number,
        epoch: manifest.epoch,
        attempt: manifest.generation,
        kind: kind(manifest.kind),
        taken_ms: manifest.created_ms,
        committed,
        bytes: manifest.files().map(|file| file.bytes).sum(),
        in_flight_bytes: manifest.in_flight_bytes(),
        operators: operators(&manifest),
    }
}

fn operators(of: &Stored) -> Vec<OperatorCheckpointView> {
    let view = |of: &SubtaskState| SubtaskCheckpointView {
        index: of.index,
        bytes: of.state.iter().flat_map(|state| &state.files).map(|file| file.bytes).sum(),
        splits: of.splits.len() as u64,
        in_flight_bytes: of.in_flight.as_ref().map_or(0, |in_flight| in_flight.file.bytes),
        watermark: Some(of.watermark).filter(|ms| *ms != i64::MIN && *ms != i64::MAX),
    };
    let operators = of.operators.iter().map(|operator| OperatorCheckpointView {
        uid: operator.uid.clone(),
        name: operator.name.clone(),
        subtasks: operator.subtasks.iter().map(view).collect(),
    });
    operators.collect()
}

fn kind(of: ManifestKind) -> CheckpointKind {
    match of {
        ManifestKind::Checkpoint => CheckpointKind::Checkpoint,
        ManifestKind::Savepoint => CheckpointKind::Savepoint,
        ManifestKind::Stopped => CheckpointKind::Stopped,
        ManifestKind::Finished => CheckpointKind::Finished,
    }
}
