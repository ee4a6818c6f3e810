//! The published JSON Schema and the shapes of this crate are the same thing.
#![cfg(feature = "schema")]

use tidemill_plan::{DataType, Plan};

/// Regenerate with `BLESS=1 cargo test --release --workspace -p tidemill-plan`.
#[test]
fn the_published_schema_is_that_of_the_types() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../plan.schema.json");
    let schema = format!("{}\n", serde_json::to_string_pretty(&tidemill_plan::json_schema()).unwrap());
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &schema).unwrap();
    }
    let published = std::fs::read_to_string(path).unwrap();
    assert!(schema == published, "wit/plan.schema.json is out of date: run this test with BLESS=1");
}

#[test]
fn types_have_plain_names_in_json() {
    let names: Vec<String> = [DataType::Int64, DataType::UInt8, DataType::Utf8, DataType::Timestamp]
        .iter()
        .map(|t| serde_json::to_string(t).unwrap())
        .collect();
    assert_eq!(names, ["\"int64\"", "\"uint8\"", "\"utf8\"", "\"timestamp\""]);
}

#[test]
fn an_unknown_field_is_refused_by_name() {
    let error = serde_json::from_str::<Plan>(r#"{"version":1,"name":"x","nodes":[],"nods":[]}"#).unwrap_err();
    assert!(error.to_string().contains("unknown field `nods`"), "{error}");
}
