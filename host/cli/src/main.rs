//! The command `tidemill`: the one binary, and the only place that knows every part.
//!
//! `args` says what can be typed; each command is a module of `commands`; `manifest` reads `tidemill.toml`. Output for
//! people goes to stderr, so that what a job prints is alone on stdout; what a command is asked to print goes to stdout.

mod api;
mod args;
mod commands;
mod config;
mod contexts;
mod control;
mod failure;
mod process;
mod progress;
mod report;
mod screen;
mod units;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};
use tidemill_core::failpoint;
use tracing_subscriber::EnvFilter;

use args::{Cli, Color, Command};
use failure::{Failure, Outcome};
use screen::Screen;

fn main() -> ExitCode {
    tidemill_system::keep_freed_memory();
    let cli = match config::completed(std::env::args_os().collect()) {
        Ok(words) => parsed(words),
        Err(error) => return Failure::from(error).report(),
    };
    if cli.color == Color::Never {
        console::set_colors_enabled(false);
        console::set_colors_enabled_stderr(false);
    }
    let screen = Screen::new();
    let in_service = matches!(cli.command, Command::Coordinator(_) | Command::Worker(_));
    log_to_stderr(cli.verbose, in_service, screen.clone());
    match arm_failpoint().and_then(|()| object_store(&cli.command)).and_then(|()| dispatch(cli.command, &screen)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// The command line as it is meant. Help, and what is wrong with it, is said here.
fn parsed(words: Vec<OsString>) -> Cli {
    let matches = Cli::command().get_matches_from(words);
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    if let (Command::Coordinator(args), Some((name, matches))) = (&mut cli.command, matches.subcommand()) {
        args.shown = config::effective(name, matches);
    }
    cli
}

/// For the tests that kill: see the module.
fn arm_failpoint() -> Outcome {
    match std::env::var(failpoint::VARIABLE) {
        Ok(text) => Ok(failpoint::arm(&text)?),
        Err(_) => Ok(()),
    }
}

/// Says to this process where its object store is, before anything is opened there.
fn object_store(command: &Command) -> Outcome {
    let args = match command {
        Command::Run(args) => &args.s3,
        Command::Coordinator(args) => &args.s3,
        Command::Worker(args) => &args.s3,
        Command::State(command) => &command.project().s3,
        _ => return Ok(()),
    };
    Ok(args.apply()?)
}

fn dispatch(command: Command, screen: &Screen) -> Outcome {
    match command {
        Command::New(args) => commands::new::run(&args),
        Command::Build(args) => commands::build::run(&args),
        Command::Test(args) => commands::test::run(&args),
        Command::TestServer { component } => commands::test::serve(&component),
        Command::Run(args) => commands::run::run(&args, screen),
        Command::Savepoint(args) => commands::control::savepoint(&args),
        Command::Stop(args) => commands::control::stop(&args),
        Command::Cluster(command) => commands::local::run(&command),
        Command::Coordinator(args) => commands::serve::coordinator(&args),
        Command::Worker(args) => commands::serve::worker(&args),
        Command::Submit(args) => commands::cluster::submit(&args),
        Command::List(args) => commands::cluster::list(&args),
        Command::Status(args) => commands::cluster::status(&args),
        Command::Logs(args) => commands::logs::logs(&args),
        Command::Cancel(args) => commands::cluster::cancel(&args),
        Command::Rescale(args) => commands::cluster::rescale(&args),
        Command::Workers(args) => commands::cluster::workers(&args),
        Command::Artifacts(args) => commands::cluster::artifacts(&args),
        Command::Context(command) => commands::context::run(&command),
        Command::Certs(args) => commands::certs::run(&args),
        Command::State(command) => commands::state::run(&command),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Connectors(args) => commands::connectors::run(&args),
        Command::Configuration => {
            screen::print(&config::documentation());
            Ok(())
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tidemill", &mut script);
            screen::print(&String::from_utf8_lossy(&script));
            Ok(())
        }
    }
}

/// Warnings, and what jobs log, beside the progress display; more on request. With times, if it runs for long.
fn log_to_stderr(verbose: u8, in_service: bool, screen: Screen) {
    let default = match verbose {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("TIDEMILL_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let ansi = console::colors_enabled_stderr();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(screen).with_ansi(ansi).with_target(false);
    match in_service {
        true => log.compact().init(),
        false => log.without_time().compact().init(),
    }
}
