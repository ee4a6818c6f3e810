//! The names of the contract: which versions this host runs, which imports a component may have, which exports a plan
//! needs. Decided by name before anything is linked, so that a refusal can say exactly what is wrong.

use tidemill_core::graph::runs_user_code;
use tidemill_core::{Error, Result};
use tidemill_plan::{Node, NodeKind, Plan};

/// The version of `tidemill:job` that this host implements; it runs components built for it and for smaller patch
/// versions of it.
pub const CONTRACT_VERSION: &str = "0.1.1";

const PACKAGE: &str = "tidemill:job";
/// WASI p2 packages that are linked, virtual or denied (see `wasi.rs`). Toolchains of other languages import them
/// whether or not the code uses them.
const WASI_PACKAGES: [&str; 6] =
    ["wasi:cli", "wasi:clocks", "wasi:filesystem", "wasi:io", "wasi:random", "wasi:sockets"];
const IMPORTED: [&str; 5] = ["types", "output", "state", "collections", "logging"];

/// A name like `tidemill:job/output@0.1.0`.
struct Name<'a> {
    package: &'a str,
    interface: &'a str,
    version: Option<&'a str>,
}

fn parse(name: &str) -> Option<Name<'_>> {
    let (path, version) = match name.split_once('@') {
        Some((path, version)) => (path, Some(version)),
        None => (name, None),
    };
    let (package, interface) = path.split_once('/')?;
    Some(Name { package, interface, version })
}

/// The full name of an interface of the contract.
pub(crate) fn interface(name: &str) -> String {
    format!("{PACKAGE}/{name}@{CONTRACT_VERSION}")
}

/// What of WASI a component asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wasi {
    Unused,
    Imported,
}

/// Whether a component's export is this interface of the contract, in any version that was let in.
pub(crate) fn is_interface(export: &str, name: &str) -> bool {
    parse(export).is_some_and(|export| export.package == PACKAGE && export.interface == name)
}

/// Checks the names of a component's imports and exports.
pub(crate) fn check<'a>(
    what: &str,
    imports: impl Iterator<Item = &'a str>,
    exports: impl Iterator<Item = &'a str>,
) -> Result<Wasi> {
    let mut wasi = Wasi::Unused;
    for name in imports {
        if check_import(what, name)? == Wasi::Imported {
            wasi = Wasi::Imported;
        }
    }
    let mut lifecycle = false;
    let mut others = Vec::new();
    for name in exports {
        match parse(name).filter(|n| n.package == PACKAGE) {
            Some(own) => {
                check_version(what, name, own.version)?;
                lifecycle |= own.interface == "lifecycle";
            }
            None => others.push(name),
        }
    }
    if !lifecycle {
        let message =
            format!("{what} is no Tidemill job: it does not export {} (it exports {others:?})", interface("lifecycle"));
        return Err(Error::invalid(message).mend("Build the job with `tidemill build`."));
    }
    Ok(wasi)
}

fn check_import(what: &str, name: &str) -> Result<Wasi> {
    let refused = || {
        Error::invalid(format!("{what} imports '{name}', which a job must not have")).mend(format!(
            "Remove what needs it. A job may import {} of {PACKAGE}@{CONTRACT_VERSION}, and WASI 0.2, which is virtual.",
            "output, state, collections and logging"
        ))
    };
    let Some(parsed) = parse(name) else { return Err(refused()) };
    if parsed.package == PACKAGE {
        check_version(what, name, parsed.version)?;
        return if IMPORTED.contains(&parsed.interface) { Ok(Wasi::Unused) } else { Err(refused()) };
    }
    let wasi = WASI_PACKAGES.contains(&parsed.package) && parsed.version.is_some_and(|v| v.starts_with("0.2."));
    if wasi { Ok(Wasi::Imported) } else { Err(refused()) }
}

fn check_version(what: &str, name: &str, version: Option<&str>) -> Result<()> {
    let found = version.and_then(numbers);
    let own = numbers(CONTRACT_VERSION);
    let fits = match (found, own) {
        (Some([major, minor, patch]), Some([own_major, own_minor, own_patch])) => {
            major == own_major && minor == own_minor && patch <= own_patch
        }
        _ => false,
    };
    if fits {
        return Ok(());
    }
    let message = format!(
        "{what} is built for version {} of the contract ('{name}'); this Tidemill runs version {CONTRACT_VERSION}",
        version.unwrap_or("(none)")
    );
    Err(Error::invalid(message).mend("Build the job with the SDK that comes with this Tidemill."))
}

fn numbers(version: &str) -> Option<[u64; 3]> {
    let mut parts = version.split('.').map(|p| p.parse().ok());
    let numbers = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(numbers)
}

/// The interface that a node's user code is in, if it runs any.
pub(crate) fn interface_of(node: &Node) -> Option<&'static str> {
    match &node.kind {
        NodeKind::Transform { .. } => Some("transform"),
        NodeKind::Process { .. } => Some("keyed"),
        NodeKind::Window { .. } if runs_user_code(node) => Some("aggregate"),
        _ => None,
    }
}

/// Checks that the component exports what its plan needs.
pub(crate) fn check_plan(what: &str, plan: &Plan, exports: impl Fn(&str) -> bool) -> Result<()> {
    for node in &plan.nodes {
        let Some(needed) = interface_of(node) else { continue };
        if !exports(needed) {
            let message =
                format!("{what}: operator '{}' needs the export {}, which is missing", node.name, interface(needed));
            return Err(Error::invalid(message).mend("Export the interface, or take the operator out of the plan."));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(imports: &[&str], exports: &[&str]) -> Result<Wasi, String> {
        check("job.wasm", imports.iter().copied(), exports.iter().copied()).map_err(|e| e.to_string())
    }

    #[test]
    fn imports_are_named_when_refused() {
        let lifecycle = ["tidemill:job/lifecycle@0.1.0"];
        assert_eq!(of(&["tidemill:job/output@0.1.0"], &lifecycle), Ok(Wasi::Unused));
        assert_eq!(of(&["tidemill:job/collections@0.1.1"], &lifecycle), Ok(Wasi::Unused));
        assert_eq!(of(&["wasi:clocks/wall-clock@0.2.9"], &lifecycle), Ok(Wasi::Imported));
        for bad in
            ["wasi:http/types@0.2.0", "wasi:clocks/wall-clock@0.3.0", "env", "a:b/c", "tidemill:job/secrets@0.1.0"]
        {
            let message = of(&[bad], &lifecycle).unwrap_err();
            assert!(message.contains(&format!("'{bad}'")), "{message}");
        }
    }

    #[test]
    fn versions_are_named_when_unknown() {
        for bad in ["tidemill:job/lifecycle@0.1.2", "tidemill:job/lifecycle@0.2.0", "tidemill:job/lifecycle@1.1.0"] {
            let message = of(&[], &[bad]).unwrap_err();
            assert!(message.contains(bad) && message.contains("runs version 0.1.1"), "{message}");
        }
        let message = of(&[], &["run"]).unwrap_err();
        assert!(message.contains("no Tidemill job"), "{message}");
    }
}
