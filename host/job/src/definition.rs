//! A job as it is kept and handed around in a cluster: everything but the component's bytes, which its digest names.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tidemill_core::{Error, Result};

use crate::Manifest;

/// A manifest's variables are taken from the environment of the process that reads it only if they begin so: a cluster
/// runs jobs of many users, whose manifests must not read its secrets.
pub const VARIABLES: &str = "TIDEMILL_VAR_";

/// See the module. It stays as it was submitted, but for the parallelism.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobDefinition {
    /// The component: its SHA-256, in hexadecimal.
    pub artifact: String,
    /// The manifest's text, TOML.
    pub manifest: String,
    /// What the manifest is called, for messages.
    #[serde(default = "unnamed")]
    pub manifest_name: PathBuf,
    /// What the manifest's relative paths are relative to, on the machines of the cluster. Absolute.
    #[serde(default = "root")]
    pub folder: PathBuf,
    /// What is set over the manifest: `KEY=VALUE`.
    #[serde(default)]
    pub set: Vec<String>,
}

fn unnamed() -> PathBuf {
    PathBuf::from(crate::manifest::FILE_NAME)
}

fn root() -> PathBuf {
    PathBuf::from("/")
}

impl JobDefinition {
    /// What the manifest calls the job, also where the rest of the manifest means nothing here.
    pub fn name(&self) -> Option<String> {
        let manifest: toml::Table = toml::from_str(&self.manifest).ok()?;
        manifest.get("job")?.get("name")?.as_str().map(ToOwned::to_owned)
    }

    /// What the manifest means, with this parallelism if it is given.
    pub fn manifest(&self, parallelism: Option<u32>) -> Result<Manifest> {
        if !self.folder.is_absolute() {
            let folder = self.folder.display();
            return Err(Error::invalid(format!("the folder '{folder}' of a job is not absolute"))
                .mend("Name the folder that the manifest's paths are relative to from the root."));
        }
        let set: Vec<String> =
            self.set.iter().cloned().chain(parallelism.map(|p| format!("job.parallelism={p}"))).collect();
        let lookup = |name: &str| name.starts_with(VARIABLES).then(|| std::env::var(name).ok()).flatten();
        Manifest::parse(&self.manifest_name, self.manifest.clone(), &self.folder, &set, &lookup)
    }
}

/// Where an artifact is kept in a cluster's storage.
pub fn artifact_path(digest: &str) -> Result<String> {
    if digest.len() != 64 || !digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Err(Error::invalid(format!("'{digest}' names no artifact"))
            .mend("An artifact is named by its SHA-256: 64 hexadecimal digits in lower case."));
    }
    Ok(format!("{ARTIFACTS}/{digest}.wasm"))
}

/// The folder of artifacts in a cluster's storage.
pub const ARTIFACTS: &str = "artifacts";

/// The name of an artifact: the SHA-256 of its bytes.
pub fn digest(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads an artifact from a cluster's storage; what is found must be what was asked for.
pub fn read_artifact(blobs: &dyn tidemill_blobs::Blobs, artifact: &str) -> Result<Vec<u8>> {
    let path = artifact_path(artifact)?;
    let bytes = tidemill_blobs::read_all(blobs, &path)?;
    let bytes = bytes.ok_or_else(|| {
        Error::invalid(format!("there is no artifact {artifact} in the cluster's storage"))
            .mend("Upload the component first.")
    })?;
    if digest(&bytes) != artifact {
        return Err(Error::invalid(format!("the artifact {artifact} in the cluster's storage is damaged"))
            .mend(format!("Delete {} there and upload the component again.", Path::new(&path).display())));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_is_named_by_its_digest_and_by_nothing_else() {
        let empty = digest(b"");
        assert_eq!(empty, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(artifact_path(&empty).unwrap(), format!("artifacts/{empty}.wasm"));
        for wrong in ["", "../x", &empty.to_uppercase(), &empty[1..]] {
            assert!(artifact_path(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_manifest_reads_no_secret_of_the_cluster() {
        let text = |variable: &str| {
            format!("[job]\ncomponent = \"x.wasm\"\n[sources.a]\nconnector = \"stdin\"\nformat = \"${{{variable}}}\"\n")
        };
        let definition = |manifest| JobDefinition {
            artifact: digest(b""),
            manifest,
            manifest_name: unnamed(),
            folder: root(),
            set: Vec::new(),
        };
        let refused = definition(text("PATH")).manifest(None).unwrap_err().to_string();
        assert!(refused.contains("PATH"), "{refused}");
        let relative = JobDefinition { folder: PathBuf::from("x"), ..definition(text("PATH")) };
        assert!(relative.manifest(None).unwrap_err().to_string().contains("absolute"));
    }
}
