//! Machines of a cluster as network namespaces, each with a link to a switch that can be cut.
//!
//! Nothing outside of these namespaces is touched; they go when this is dropped.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Of the coordinator's machine, and where workers find it there.
pub const COORDINATOR: &str = "10.77.0.1:7400";

/// The switch, the coordinator's machine, and the workers' machines.
pub struct Links {
    prefix: String,
    workers: u64,
}

/// A link that is cut until it is mended.
#[must_use]
pub struct Cut(Vec<String>);

impl Links {
    /// With so many machines for workers.
    ///
    /// # Errors
    /// The machine does not allow it: it takes `ip`, and the right to make namespaces.
    pub fn new(workers: u64) -> Result<Self> {
        let links = Self { prefix: format!("tidemill-{}", std::process::id()), workers };
        let switch = links.switch();
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", "bridge0", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "bridge0", "up"])?;
        for at in 0..=workers {
            let (machine, port) = (links.machine(at), port(at));
            ip(&["netns", "add", &machine])?;
            ip(&["-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &machine])?;
            ip(&["-n", &switch, "link", "set", &port, "master", "bridge0", "up"])?;
            ip(&["-n", &machine, "address", "add", &format!("{}/24", address(at)), "dev", "eth0"])?;
            for device in ["lo", "eth0"] {
                ip(&["-n", &machine, "link", "set", device, "up"])?;
            }
        }
        Ok(links)
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.prefix)
    }

    /// The namespace of the coordinator, which is 0, or of a worker.
    pub fn machine(&self, at: u64) -> String {
        format!("{}-{at}", self.prefix)
    }

    /// Cuts a machine off from all others.
    pub fn isolate(&self, at: u64) -> Result<Cut> {
        let (switch, port) = (self.switch(), port(at));
        ip(&["-n", &switch, "link", "set", &port, "down"])?;
        Ok(Cut::mended_by(&["-n", &switch, "link", "set", &port, "up"]))
    }

    /// Cuts the way between two machines, which reach the others.
    pub fn part(&self, one: u64, other: u64) -> Result<Cut> {
        let (machine, to) = (self.machine(one), format!("{}/32", address(other)));
        ip(&["-n", &machine, "route", "add", "blackhole", &to])?;
        Ok(Cut::mended_by(&["-n", &machine, "route", "del", "blackhole", &to]))
    }
}

impl Cut {
    fn mended_by(words: &[&str]) -> Self {
        Self(words.iter().map(|&word| word.to_owned()).collect())
    }

    /// Mends it.
    pub fn mend(self) -> Result<()> {
        ip(&self.0.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        for at in 0..=self.workers {
            // What could not be made is not there.
            _ = ip(&["netns", "delete", &self.machine(at)]);
        }
        _ = ip(&["netns", "delete", &self.switch()]);
    }
}

/// Where a machine is reached.
pub fn address(at: u64) -> String {
    format!("10.77.0.{}", at + 1)
}

fn port(at: u64) -> String {
    format!("port{at}")
}

fn ip(words: &[&str]) -> Result<()> {
    let done = Command::new("ip").args(words).output().context("`ip` can't be run (Debian: iproute2)")?;
    if !done.status.success() {
        bail!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}
