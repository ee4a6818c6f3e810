//! `tidemill new`: a project that builds and passes its test as it is.
//!
//! The files are those of `templates/`, embedded. While the SDK is not on crates.io, the project finds it by path.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use console::style;
use tidemill_core::Error;

use crate::args::NewArgs;
use crate::failure::Outcome;

/// Name in the project, text. `{{name}}`, `{{crate}}`, `{{sdk}}` and `{{testkit}}` are replaced.
const FILES: [(&str, &str); 6] = [
    ("Cargo.toml", include_str!("../../templates/Cargo.toml.in")),
    (".gitignore", include_str!("../../templates/gitignore")),
    ("README.md", include_str!("../../templates/README.md")),
    ("tidemill.toml", include_str!("../../templates/tidemill.toml.in")),
    ("src/lib.rs", include_str!("../../templates/lib.rs.in")),
    ("data/messages.csv", include_str!("../../templates/messages.csv")),
];
/// cargo's limit is 64 for crates.io; longer ones make no sense anywhere.
const MAX_NAME: usize = 64;

pub fn run(args: &NewArgs) -> Outcome {
    let name = project_name(&args.name)?;
    let sdk = sdk_folder(args.sdk.as_deref())?;
    let folder = &args.name;
    if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::invalid(format!("{} exists and is not empty", folder.display()))
            .mend("Choose another name, or move away what is there.")
            .into());
    }
    let replace = |text: &str| {
        text.replace("{{name}}", &name)
            .replace("{{crate}}", &name.replace('-', "_"))
            .replace("{{sdk}}", &toml_path(&sdk))
            .replace("{{testkit}}", &toml_path(&testkit_folder(&sdk)))
    };
    for (file, text) in FILES {
        write(&folder.join(file), &replace(text))?;
    }
    lock_versions(&sdk, folder)?;
    println!("{} {}\n", style("made").green().bold(), folder.display());
    let about = [
        ("src/lib.rs", "the job: counts words per minute of event time, and its test"),
        ("tidemill.toml", "where its rows come from and go to"),
        ("data/messages.csv", "a small input"),
    ];
    for (file, what) in about {
        println!("  {:<18} {what}", style(file).cyan());
    }
    println!("\nnext\n  cd {}", folder.display());
    println!("  tidemill test      its test, natively and as a component");
    println!("  tidemill run --build");
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).with_context(|| format!("the folder {} can't be made", parent.display()))?;
    fs::write(path, text).with_context(|| format!("{} can't be written", path.display()))
}

/// The last part of the path, if cargo takes it for a package's name.
fn project_name(path: &Path) -> Result<String, Error> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let fits = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_')
        && name.len() <= MAX_NAME;
    if !fits {
        return Err(Error::invalid(format!("'{name}' can't be the name of a project"))
            .mend("Use lower-case letters, digits and '-', a letter first: tidemill new my-job"));
    }
    if ["tidemill", "test", "std", "core", "alloc"].contains(&name.as_str()) {
        return Err(Error::invalid(format!("'{name}' is the name of something else a job needs"))
            .mend("Choose another one: tidemill new my-job"));
    }
    Ok(name)
}

fn sdk_folder(typed: Option<&Path>) -> Result<PathBuf, Error> {
    let mend = "Name the folder sdk/rust of a Tidemill checkout with --sdk, or set TIDEMILL_HOME to the checkout.";
    let home = std::env::var_os("TIDEMILL_HOME").filter(|h| !h.is_empty()).map(PathBuf::from);
    let built_from = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sdk/rust");
    let (folder, how) = match (typed, home) {
        (Some(folder), _) => (folder.to_owned(), "--sdk"),
        (None, Some(home)) => (home.join("sdk/rust"), "TIDEMILL_HOME"),
        (None, None) => (built_from(), "the checkout this command was built from"),
    };
    let found = folder.canonicalize().ok().filter(|f| f.join("Cargo.toml").is_file());
    found.ok_or_else(|| Error::invalid(format!("the Rust SDK is not in {} (by {how})", folder.display())).mend(mend))
}

/// The test kit lies in the SDK's checkout.
fn testkit_folder(sdk: &Path) -> PathBuf {
    sdk.ancestors().nth(2).unwrap_or(sdk).join("host/testkit")
}

/// The same versions of everything as the SDK was tested with. cargo drops what the project does not use.
fn lock_versions(sdk: &Path, folder: &Path) -> anyhow::Result<()> {
    let Some(text) = sdk.ancestors().nth(2).and_then(|root| fs::read_to_string(root.join("Cargo.lock")).ok()) else {
        return Ok(()); // cargo makes one
    };
    write(&folder.join("Cargo.lock"), &text)
}

/// A path inside a TOML text.
fn toml_path(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"")
}
