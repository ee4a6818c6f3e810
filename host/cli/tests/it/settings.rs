//! The settings of a cluster's processes: file, environment, command line, and what is said of what is wrong. None of these
//! processes comes to run: where they would listen is refused, and the refusal says which value won.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::{text, tidemill, transcript};

/// What a worker says with a file, a variable and flags.
fn worker(file: &str, variables: &[(&str, &str)], flags: &[&str]) -> String {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("worker.yaml"), file).unwrap();
    let mut command = tidemill(folder.path());
    for name in ["TIDEMILL_WORKER_LISTEN", "TIDEMILL_WORKER_CONFIG", "TIDEMILL_WORKER_SLOTS"] {
        command.env_remove(name);
    }
    command.args(["worker", "--config", "worker.yaml"]).args(flags).envs(variables.iter().copied());
    transcript(&command.output().unwrap())
}

#[track_caller]
fn says(found: &str, words: &str) {
    assert!(found.starts_with("exit code 2\n") && found.contains(words), "not '{words}': {found}");
}

#[test]
fn the_command_line_wins_over_the_environment_and_that_over_the_file() {
    let (file, variable) = ("listen: 10.1.1.1:1\nslots: 2\n", ("TIDEMILL_WORKER_LISTEN", "10.2.2.2:2"));
    says(&worker(file, &[], &[]), "others reach 10.1.1.1:1 without certificates");
    says(&worker(file, &[variable], &[]), "others reach 10.2.2.2:2 without certificates");
    says(&worker(file, &[variable], &["--listen", "10.3.3.3:3"]), "others reach 10.3.3.3:3 without certificates");
    says(&worker("# nothing\n", &[variable], &[]), "others reach 10.2.2.2:2");
    says(&worker("slots:\n", &[variable], &[]), "others reach 10.2.2.2:2");
}

#[test]
fn what_is_wrong_with_a_file_is_named() {
    says(&worker("slts: 2", &[], &[]), "there is no key 'slts'");
    says(&worker("slts: 2", &[], &[]), "did you mean 'slots'?");
    says(&worker("config: other.yaml", &[], &[]), "there is no key 'config'");
    says(&worker("verbose: 1", &[], &[]), "there is no key 'verbose'");
    says(&worker("slots: [1, 2]", &[], &[]), "'slots' takes one value");
    says(&worker("slots: many", &[], &[]), "invalid value 'many' for '--slots <SLOTS>'");
    says(&worker("slots: 0", &[], &[]), "0 is not in 1..=1024");
    says(&worker("slots: 1\nslots: 2", &[], &[]), "duplicate");
    says(&worker("tls-key: key.pem", &[], &[]), "--tls-authority <FILE>");
    says(&worker("- a\n- b", &[], &[]), "not YAML with one value per key");
    says(&worker("slots: [", &[], &[]), "at line 2 column 1");
    let missing = tidemill(Path::new("/")).args(["worker", "--config", "nowhere.yaml"]).output().unwrap();
    says(&transcript(&missing), "can't be read from nowhere.yaml");
}

#[test]
fn every_setting_is_documented() {
    let output = tidemill(Path::new("/")).arg("configuration").output().unwrap();
    let (made, page) =
        (text(&output.stdout), Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md"));
    if std::env::var_os("BLESS").is_some() {
        fs::write(&page, &made).unwrap();
    }
    let kept = fs::read_to_string(&page).unwrap_or_default();
    assert!(kept == made, "docs/configuration.md is not what `tidemill configuration` prints (BLESS=1 writes it)");
}
