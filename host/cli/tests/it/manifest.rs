//! What wrong manifests answer: `cases/NAME.toml` is run, `cases/NAME.txt` is what must come out. With BLESS=1 in the
//! environment what comes out is written there instead.

use std::fs;
use std::path::Path;

use super::{tidemill, transcript};

#[test]
fn wrong_manifests_are_quoted_with_the_mend() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/cases");
    let bless = std::env::var_os("BLESS").is_some();
    let mut cases = 0;
    let mut wrong = Vec::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "toml") {
            continue;
        }
        cases += 1;
        let name = path.file_name().unwrap().to_str().unwrap();
        let found = transcript(&tidemill(&folder).args(["run", "--manifest", name]).output().unwrap());
        let expected = path.with_extension("txt");
        if bless {
            fs::write(&expected, &found).unwrap();
        } else if fs::read_to_string(&expected).unwrap_or_default() != found {
            wrong.push(format!("--- {name}\n{found}"));
        }
    }
    assert!(cases > 10, "{} has no cases", folder.display());
    assert!(wrong.is_empty(), "not as expected (BLESS=1 accepts):\n{}", wrong.join("\n"));
}

#[test]
fn set_options_are_named_when_wrong() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/cases");
    let check = |set: &str, expected: &str| {
        let output = tidemill(&folder).args(["run", "--manifest", "missing-component.toml", "--set", set]).output();
        let found = transcript(&output.unwrap());
        assert!(found.starts_with("exit code 2\n") && found.contains(expected), "{set}: {found}");
    };
    check("job.parallelism", "--set job.parallelism: there is no '='");
    check("job.parallelism=many", "[job]: option 'parallelism' is \"many\"");
    check("job.name.x=1", "'name' is a value, it has nothing inside");
    check("job.paralelism=2", "did you mean 'parallelism'?");
    check("sinks.out.connector=blakhole", "did you mean 'blackhole'?");
    check("=2", "the name before '=' is not one");
    check("job.component=other.wasm", "there is no component ./other.wasm");
}

#[test]
fn a_folder_without_manifest_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let found = transcript(&tidemill(folder.path()).arg("run").output().unwrap());
    assert!(found.contains("there is no tidemill.toml") && found.contains("tidemill new my-job"), "{found}");
}
