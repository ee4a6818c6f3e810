//! The settings of the object store, against a real one: from the command line, the environment, and a process's file.

use std::fs;
use std::process::Command;

use tempfile::TempDir;
use tidemill_test_servers::S3Server;

use super::{text, tidemill, transcript};

const SECRETS: [&str; 2] = ["test-secret", "not-the-secret"];

/// A server, and a project whose checkpoints are there.
struct Bench {
    server: S3Server,
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let (server, folder) = (S3Server::start("bucket"), TempDir::new().unwrap());
        let manifest =
            "[job]\nname = \"job\"\ncomponent = \"job.wasm\"\n\n[checkpoints]\nlocation = \"s3://bucket/kept\"\n";
        fs::write(folder.path().join("tidemill.toml"), manifest).unwrap();
        for (file, secret) in [("right", SECRETS[0]), ("wrong", SECRETS[1])] {
            let keys = format!("[default]\naws_access_key_id = test-key\naws_secret_access_key = {secret}\n");
            fs::write(folder.path().join(file), keys).unwrap();
        }
        Self { server, folder }
    }

    fn endpoint(&self) -> String {
        self.of_environment("AWS_ENDPOINT_URL")
    }

    fn of_environment(&self, wanted: &str) -> String {
        self.server.environment().into_iter().find(|(name, _)| name == wanted).unwrap().1
    }

    /// The command, with nothing in its environment that says where the store is.
    fn tidemill(&self) -> Command {
        let mut command = tidemill(self.folder.path());
        let ours = |name: &str| name.starts_with("AWS_") || name.starts_with("TIDEMILL_");
        std::env::vars().filter(|(name, _)| ours(name)).for_each(|(name, _)| _ = command.env_remove(name));
        command
    }

    /// What it says to the end; whatever that is, no secret is in it.
    fn says(&self, command: &mut Command) -> String {
        let said = transcript(&command.output().unwrap());
        assert!(SECRETS.iter().all(|secret| !said.contains(secret)), "{said}");
        said
    }
}

#[test]
fn flags_and_variables_say_where_the_store_is_and_win_over_the_names_of_aws() {
    let bench = Bench::new();
    let endpoint = bench.endpoint();
    let list = || {
        let mut command = bench.tidemill();
        command.args(["state", "list"]);
        command
    };
    let flags = |credentials: &'static str| {
        let mut command = list();
        command.args(["--s3-endpoint", &endpoint, "--s3-region", "us-east-1", "--s3-addressing", "path"]);
        command.args(["--s3-credentials", credentials]);
        command
    };
    let found = bench.says(&mut flags("right"));
    assert!(found.starts_with("exit code 0\ncheckpoint"), "{found}");
    let refused = bench.says(&mut flags("wrong"));
    assert!(refused.contains("allow this user (these credentials)"), "{refused}");
    let others =
        [("AWS_ACCESS_KEY_ID", "other"), ("AWS_SESSION_TOKEN", "other"), ("AWS_ENDPOINT_URL", "http://127.0.0.1:1")];
    let found = bench.says(flags("right").envs(others));
    assert!(found.starts_with("exit code 0\n"), "{found}");
    let variables = [("TIDEMILL_S3_ENDPOINT", endpoint.as_str()), ("TIDEMILL_S3_CREDENTIALS", "right")];
    // The region is still that of the environment.
    let found = bench.says(list().envs(variables).env("AWS_REGION", "us-east-1"));
    assert!(found.starts_with("exit code 0\n"), "{found}");
    let found = bench.says(list().envs(bench.server.environment()));
    assert!(found.starts_with("exit code 0\n"), "as before, without any setting: {found}");
}

#[test]
fn what_is_wrong_with_the_settings_is_named() {
    let bench = Bench::new();
    let says = |flags: &[&str], words: &str| {
        let said = bench.says(bench.tidemill().args(["state", "list"]).args(flags));
        assert!(said.starts_with("exit code 2\n") && said.contains(words), "not '{words}': {said}");
    };
    says(&["--s3-endpoint", "store:9000"], "'store:9000' is no endpoint of an object store");
    says(&["--s3-endpoint", "http://key:not-the-secret@store"], "has credentials in it");
    says(&["--s3-addressing", "somehow"], "invalid value 'somehow'");
    says(&["--s3-credentials", "nowhere"], "nowhere can't be read");
    says(&["--s3-credentials", "tidemill.toml"], "no aws_access_key_id in its section [default]");
}

/// It never comes to run: the store tells whether it was asked, and by whom.
#[test]
fn a_coordinator_takes_them_from_its_file() {
    let bench = Bench::new();
    let file = format!(
        "storage: s3://bucket/cluster\nlisten: 127.0.0.1:0\nrest: 127.0.0.1:0\ns3-endpoint: {}\ns3-region: us-east-1\ns3-credentials: wrong\n",
        bench.endpoint()
    );
    fs::write(bench.folder.path().join("coordinator.yaml"), file).unwrap();
    let said = bench.says(bench.tidemill().args(["coordinator", "--config", "coordinator.yaml"]));
    assert!(!said.starts_with("exit code 0\n"), "{said}");
    assert!(said.contains("s3://bucket/cluster") && said.contains("allow this user (these credentials)"), "{said}");
    assert!(said.contains(&bench.endpoint()), "another store was asked: {said}");
    let help = bench.tidemill().args(["worker", "--help"]).output().unwrap();
    assert!(text(&help.stdout).contains("--s3-credentials <FILE>"));
}
