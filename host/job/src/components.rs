//! Components that were loaded, kept so that a job which comes again begins at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tidemill_blobs::Blobs;
use tidemill_core::Result;
use tidemill_core::memory::ProcessMemory;
use tidemill_wasm::Limits;

use crate::component::{self, Loaded};
use crate::definition::read_artifact;
use crate::manifest;

/// No more than this many are kept.
const KEPT: usize = 64;

/// The artifacts of a cluster's storage, loaded.
pub struct Components {
    storage: Arc<dyn Blobs>,
    /// By artifact and limits.
    kept: Mutex<HashMap<(String, String), Loaded>>,
    /// Where their code is counted.
    memory: Arc<ProcessMemory>,
}

impl Components {
    /// Of this storage; none is loaded yet.
    pub fn new(storage: Arc<dyn Blobs>) -> Self {
        Self { storage, kept: Mutex::default(), memory: ProcessMemory::unlimited() }
    }

    /// The same, in a process with this account: those that no job runs go when there is not enough memory.
    pub fn within(storage: Arc<dyn Blobs>, memory: &Arc<ProcessMemory>) -> Arc<Self> {
        let components = Arc::new(Self { memory: memory.clone(), ..Self::new(storage) });
        let these: Weak<Self> = Arc::downgrade(&components);
        memory.on_shortage(move || these.upgrade().iter().for_each(|components| components.drop_unused()));
        components
    }

    /// An artifact, for a job with these limits.
    pub fn get(&self, artifact: &str, limits: &manifest::Limits) -> Result<Loaded> {
        self.load(artifact, component::limits(limits))
    }

    /// An artifact with the limits that hold where no manifest says otherwise.
    pub fn get_by_default(&self, artifact: &str) -> Result<Loaded> {
        self.load(artifact, Limits::default())
    }

    fn load(&self, artifact: &str, limits: Limits) -> Result<Loaded> {
        let key = key(artifact, &limits);
        if let Some(loaded) = self.kept().get(&key) {
            return Ok(loaded.clone());
        }
        let loaded = component::of_bytes(artifact, &read_artifact(&*self.storage, artifact)?, limits)?;
        loaded.component.count(&self.memory)?;
        self.keep(key, loaded.clone());
        Ok(loaded)
    }

    fn drop_unused(&self) {
        self.kept().retain(|_, loaded| loaded.component.is_shared());
    }

    /// Keeps one that was loaded otherwise, with these limits.
    pub fn put(&self, artifact: &str, limits: &Limits, loaded: Loaded) {
        self.keep(key(artifact, limits), loaded);
    }

    fn keep(&self, key: (String, String), loaded: Loaded) {
        let mut kept = self.kept();
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(key, loaded);
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<(String, String), Loaded>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(artifact: &str, limits: &Limits) -> (String, String) {
    (artifact.to_owned(), format!("{limits:?}"))
}
