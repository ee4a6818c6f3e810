//! Components of other toolchains. `tests/long/other-languages` builds them and runs these.

use std::path::PathBuf;
use std::sync::Arc;

use tidemill_core::graph::JobGraph;
use tidemill_core::metrics::TaskMetrics;
use tidemill_core::user::{EmittedRows, UserCodeFactory};
use tidemill_wasm::{Limits, WasmCode};

use crate::guests::*;

fn check_evens(name: &str) {
    let folder = std::env::var_os("TIDEMILL_OTHER_LANGUAGES").expect("run tests/long/other-languages");
    let bytes = std::fs::read(PathBuf::from(folder).join(name)).unwrap();
    let component = sandbox(Limits::default()).load(name, &bytes).unwrap();
    let plan = component.plan().unwrap();
    assert_eq!(plan, component.plan().unwrap(), "the same every time");
    let graph = JobGraph::from_plan(plan).unwrap();
    let node = &graph.nodes()[1];
    let metrics = Arc::new(TaskMetrics::default());
    let code = WasmCode::new(component.clone(), vec![("answer".into(), "42".into())]);
    let mut code = code.open(&subtask(), node, &metrics).unwrap();
    let values: Vec<i64> = (-2_000..2_096).collect();
    for _ in 0..3 {
        let effects = call(&mut *code, &batch(vec![ids(&values)])).unwrap();
        let EmittedRows::Of(rows) = &effects.emissions[0].rows else { panic!("{effects:?}") };
        let expected: Vec<u32> = (0..4_096).filter(|row| row % 2 == 0).collect();
        assert_eq!(rows[..], expected);
    }
    println!("{name}: {:?}, {} bytes of memory", component.sizes(), code.memory_bytes());
    let imports: Vec<_> = component.imports().into_iter().map(|i| i.name).collect();
    println!("  imports {}", imports.join(" "));
}

#[test]
#[ignore = "long: run tests/long/other-languages"]
fn python() {
    check_evens("python.wasm");
}

#[test]
#[ignore = "long: run tests/long/other-languages"]
fn javascript() {
    check_evens("javascript.wasm");
}
