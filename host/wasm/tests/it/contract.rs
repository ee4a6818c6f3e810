//! Components of other shapes: forbidden imports, unknown versions, missing exports.

use wasm_encoder::{
    Component, ComponentExportKind, ComponentExportSection, ComponentImportSection, ComponentInstanceSection,
    ComponentTypeRef, ComponentTypeSection, InstanceType,
};

use crate::guests::*;

/// A component with an import and with exports of empty instances.
fn component(import: Option<&str>, exports: &[&str]) -> Vec<u8> {
    let mut component = Component::new();
    let mut types = ComponentTypeSection::new();
    types.instance(&InstanceType::new());
    component.section(&types);
    if let Some(name) = import {
        let mut imports = ComponentImportSection::new();
        imports.import(name, ComponentTypeRef::Instance(0));
        component.section(&imports);
    }
    let mut instances = ComponentInstanceSection::new();
    instances.export_items([] as [(&str, ComponentExportKind, u32); 0]);
    component.section(&instances);
    let empty = u32::from(import.is_some());
    let mut section = ComponentExportSection::new();
    for &name in exports {
        section.export(name, ComponentExportKind::Instance, empty, None);
    }
    component.section(&section);
    component.finish()
}

fn refusal(bytes: &[u8]) -> String {
    SANDBOX.load("job.wasm", bytes).err().expect("it loads").to_string()
}

const LIFECYCLE: &str = "tidemill:job/lifecycle@0.1.0";

#[test]
fn forbidden_imports_are_named() {
    for name in
        ["wasi:http/types@0.2.0", "wasi:keyvalue/store@0.2.0", "acme:secrets/vault@1.0.0", "wasi:cli/stdin@0.3.0"]
    {
        let message = refusal(&component(Some(name), &[LIFECYCLE]));
        assert!(message.contains(&format!("imports '{name}', which a job must not have")), "{message}");
    }
}

#[test]
fn unknown_versions_are_named() {
    for name in ["tidemill:job/lifecycle@9.9.9", "tidemill:job/lifecycle@0.1.7", "tidemill:job/lifecycle@0.2.0"] {
        let message = refusal(&component(None, &[name]));
        let version = name.split('@').nth(1).unwrap();
        assert!(message.contains(&format!("built for version {version} of the contract")), "{message}");
        assert!(message.contains("this Tidemill runs version 0.1.1"), "{message}");
    }
    let message = refusal(&component(Some("tidemill:job/output@3.0.0"), &[LIFECYCLE]));
    assert!(message.contains("built for version 3.0.0"), "{message}");
}

#[test]
fn what_is_no_job_is_refused() {
    let message = refusal(&component(None, &["wasi:cli/run@0.2.0"]));
    assert!(message.contains("is no Tidemill job") && message.contains("wasi:cli/run@0.2.0"), "{message}");
}

#[test]
fn a_job_without_its_functions_is_refused_when_it_is_planned() {
    let loaded = SANDBOX.load("job.wasm", &component(None, &[LIFECYCLE])).unwrap();
    let message = loaded.plan().unwrap_err().to_string();
    assert!(message.contains("job.wasm does not export plan of tidemill:job/lifecycle@0.1.1"), "{message}");
}
