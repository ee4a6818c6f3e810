//! The project that `tidemill new` makes, as far as it shows without a compiler. `tests/cli` builds and runs one.

use std::fs;
use std::path::Path;

use super::{tidemill, transcript};

#[test]
fn a_new_project_has_all_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let found = transcript(&tidemill(folder.path()).args(["new", "word-count"]).output().unwrap());
    assert!(found.starts_with("exit code 0\n"), "{found}");
    let project = folder.path().join("word-count");
    for file in
        [".gitignore", "Cargo.toml", "Cargo.lock", "README.md", "tidemill.toml", "src/lib.rs", "data/messages.csv"]
    {
        let text = fs::read_to_string(project.join(file)).unwrap();
        assert!(!text.contains("{{"), "{file} has a placeholder left:\n{text}");
    }
    let manifest = fs::read_to_string(project.join("Cargo.toml")).unwrap();
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sdk/rust").canonicalize().unwrap();
    assert!(manifest.contains(&format!("tidemill = {{ path = \"{}\" }}", sdk.display())), "{manifest}");
    assert!(fs::read_to_string(project.join("src/lib.rs")).unwrap().contains("fn word_count("));
}

#[test]
fn what_is_there_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("job")).unwrap();
    fs::write(folder.path().join("job/mine"), "precious").unwrap();
    let found = transcript(&tidemill(folder.path()).args(["new", "job"]).output().unwrap());
    assert!(found.starts_with("exit code 2\n") && found.contains("job exists and is not empty"), "{found}");
    assert_eq!(fs::read_dir(folder.path().join("job")).unwrap().count(), 1);
}

#[test]
fn names_and_sdks_that_can_not_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let check = |args: &[&str], expected: &str| {
        let found = transcript(&tidemill(folder.path()).arg("new").args(args).output().unwrap());
        assert!(found.starts_with("exit code 2\n") && found.contains(expected), "{args:?}: {found}");
    };
    check(&["My Job"], "'My Job' can't be the name of a project");
    check(&["1st"], "'1st' can't be the name of a project");
    check(&["tidemill"], "'tidemill' is the name of something else");
    check(&["job", "--sdk", "nowhere"], "the Rust SDK is not in nowhere (by --sdk)");
}
