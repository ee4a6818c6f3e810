//! How long it takes from the upload of a job to its first output, on a warm cluster.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use serde::Serialize;

use super::{Cluster, Spread, unix_ms};
use crate::guests;

const MANIFEST: &str = r#"
[job]
name = "submit"

[sources.bids]
connector = "bids"

[sinks.out]
connector = "print"
"#;

/// What was measured.
#[derive(Debug, Serialize)]
pub struct SubmitFigures {
    /// Of the component that is uploaded, in bytes.
    pub component_bytes: usize,
    /// How often each was measured.
    pub rounds: usize,
    /// From the begin of the upload of a component that nobody has seen to the first line that its job prints.
    pub first_seen: Spread,
    /// From the submission of a job whose component is known already to the first line.
    pub known: Spread,
}

/// Measures both so often.
///
/// # Errors
/// When a job is refused or prints nothing.
pub fn measure(folder: &Path, rounds: usize) -> Result<SubmitFigures> {
    ensure!(rounds > 0, "one round or more");
    let component = guests::component("sample")?;
    let cluster = Cluster::start(folder, &[1])?;
    let (mut first_seen, mut known) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let unseen = unseen(&component, round as u64);
        let begin = SystemTime::now();
        let artifact = cluster.upload(unseen)?;
        let first = first_output(&cluster, &artifact.id, begin)?;
        let again = first_output(&cluster, &artifact.id, SystemTime::now())?;
        // The first round warms.
        if round > 0 {
            first_seen.push(first);
            known.push(again);
        }
    }
    let (first_seen, known) = (Spread::of(first_seen), Spread::of(known));
    Ok(SubmitFigures { component_bytes: component.len(), rounds, first_seen, known })
}

/// Milliseconds from `begin` to the first line of a job that is submitted now.
fn first_output(cluster: &Cluster, artifact: &str, begin: SystemTime) -> Result<f64> {
    cluster.lines().for_each(drop);
    let job = cluster.submit(artifact, MANIFEST)?;
    let line = cluster.line()?;
    cluster.cancel(&job.id)?;
    Ok(unix_ms(line.at) - unix_ms(begin))
}

/// The component with a custom section that makes it another one.
fn unseen(component: &[u8], round: u64) -> Vec<u8> {
    let nonce = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let content = format!("{nonce:032x}{round:016x}");
    let name = b"bench";
    let mut unseen = component.to_vec();
    // A section: its kind (0: custom), its length, the name with its length, the content. All lengths are below 128.
    unseen.extend([0, (1 + name.len() + content.len()) as u8, name.len() as u8]);
    unseen.extend(name);
    unseen.extend(content.bytes());
    unseen
}
