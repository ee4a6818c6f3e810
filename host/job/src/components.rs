//! Components that were loaded, kept so that a job which comes again begins at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tidemill_blobs::Blobs;
use tidemill_core::Result;
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
}

impl Components {
    /// Of this storage; none is loaded yet.
    pub fn new(storage: Arc<dyn Blobs>) -> Self {
        Self { storage, kept: Mutex::default() }
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
        self.keep(key, loaded.clone());
        Ok(loaded)
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
