//! What is refused before it runs, and what loads fast.

use std::fs;

use tidemill_core::plan::DataType;
use tidemill_core::user::UserCodeFactory;
use tidemill_wasm::{Limits, Sandbox, SandboxSettings, WasmCode, componentize};

use crate::guests::*;

#[track_caller]
fn refused(bytes: &[u8], expected: &[&str]) {
    let error = SANDBOX.load("job.wasm", bytes).err().expect("it loads").to_string();
    for part in expected.iter().chain(&["job.wasm", "mend: "]) {
        assert!(error.contains(part), "'{part}' is missing in:\n{error}");
    }
}

#[test]
fn what_is_no_component_is_refused() {
    refused(b"", &["is not WebAssembly"]);
    refused(b"\x7fELF and so on", &["is not WebAssembly"]);
    refused(b"\0asm", &["is damaged"]);
    refused(&EVIL_MODULE, &["is a core WebAssembly module", "tidemill build"]);
    let hasty = sandbox(Limits { compile_ms: 1, ..limits() });
    let error = hasty.load("job.wasm", &EVIL).err().unwrap().to_string();
    assert!(error.contains("longer than 1 ms to compile, which is limits.compile-time"), "{error}");
    let big = sandbox(Limits { component_bytes: 1_000, ..limits() });
    let error = big.load("job.wasm", &EVIL).err().unwrap().to_string();
    assert!(error.contains("limits.component is 1000"), "{error}");
}

#[test]
fn truncated_components_are_refused() {
    for length in (8..EVIL.len()).step_by(EVIL.len() / 37) {
        // A cut between two sections is a valid but smaller component: whatever it is then, it is no job.
        refused(&EVIL[..length], &[]);
    }
}

#[test]
fn damaged_components_do_no_harm() {
    let mut neighbour = open("good", &transform(vec![]));
    for at in (8..EVIL.len()).step_by(EVIL.len() / 50) {
        let mut bytes = EVIL.clone();
        bytes[at] ^= 0x55;
        // Some damage is in a name or in data, and loads.
        if let Ok(component) = SANDBOX.load("job.wasm", &bytes) {
            drop(component.plan());
        }
        check_neighbour(&mut *neighbour);
    }
}

#[test]
fn a_component_is_described() {
    let component = SANDBOX.load("evil.wasm", &EVIL).unwrap();
    assert_eq!(component.name(), "evil.wasm");
    let imports = component.imports();
    let output = imports.iter().find(|i| i.name == "tidemill:job/output@0.1.1").unwrap();
    assert_eq!(output.functions, ["forward", "emit"]);
    assert!(component.exports().iter().any(|e| e.name == "tidemill:job/aggregate@0.1.1"));
    let sizes = component.sizes();
    assert_eq!(sizes.component_bytes, EVIL.len());
    assert!(sizes.compiled_bytes > 10_000 && !sizes.from_cache, "{sizes:?}");
    assert_eq!(component.plan().unwrap().name, "evil");
}

#[test]
fn modules_that_need_an_operating_system_are_no_jobs() {
    // A module with an import that the contract does not have: `(import "env" "open" (func))`.
    let module = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x02\x0c\x01\x03env\x04open\0\0";
    let error = componentize(module).unwrap_err().to_string();
    assert!(error.contains("can't become a component") && error.contains("mend: "), "{error}");
}

#[test]
fn a_compiled_job_is_loaded_from_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("aot");
    let start = || Sandbox::new(SandboxSettings { limits: limits(), cache: Some(cache.clone()) }).unwrap();
    let load = |sandbox: &Sandbox| {
        let component = sandbox.load("evil.wasm", &EVIL).unwrap();
        assert_eq!(component.plan().unwrap().name, "evil");
        component.sizes().from_cache
    };
    assert!(!load(&start()), "the first time");
    assert!(load(&start()), "in another process, so to speak");
    let entries: Vec<_> = fs::read_dir(&cache).unwrap().map(|e| e.unwrap().path()).collect();
    let [entry] = &entries[..] else { panic!("{entries:?}") };
    let mut bytes = fs::read(entry).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(entry, bytes).unwrap();
    assert!(!load(&start()), "damaged: compiled again");
    assert!(load(&start()), "and written again");
    let other = Sandbox::new(SandboxSettings {
        limits: Limits { stack_bytes: 512 << 10, ..limits() },
        cache: Some(cache.clone()),
    });
    load(&other.unwrap());
}

/// A component that was built before lists and maps came into the contract.
#[test]
fn components_for_a_smaller_patch_version_keep_running() {
    let component = SANDBOX.load("old.wasm", &of_0_1_0()).unwrap();
    assert!(component.imports().iter().any(|i| i.name == "tidemill:job/output@0.1.0"), "{:?}", component.imports());
    component.plan().unwrap();
    let code = WasmCode::new(component, vec![("do".into(), "good".into())]);
    let mut code =
        code.open(&subtask(), &transform(vec![inherited("id", DataType::Int64)]), &Default::default()).unwrap();
    check_neighbour(&mut *code);
}
