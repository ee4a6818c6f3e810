//! The command line as it is typed. Help texts and completions come from here, and from nowhere else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use tidemill_checkpoint::blobs::{S3Addressing, S3Credentials, S3Settings};
use tidemill_checkpoint::{Origin, Start};
use tidemill_connector_kit::{ByteSize, OptionValue as _};

/// Stream processing whose user code is WebAssembly: one job, one component.
#[derive(Parser, Debug)]
#[command(name = "tidemill", version, max_term_width = 100, propagate_version = true)]
#[command(after_help = "Start with: tidemill new my-job\n\n\
    Exit codes:\n  \
    0    all went well\n  \
    1    the job, its build or its test failed\n  \
    2    the command line, the manifest or the component is wrong\n  \
    130  cancelled by a second Ctrl-C; the first stops a job cleanly")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Say more (debug messages; twice: everything). TIDEMILL_LOG takes a filter such as `tidemill_wasm=trace`
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Use colours and redraw lines: where a terminal is found, or never
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto)]
    pub color: Color,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make a project: a small job with its test, sample data and manifest
    New(NewArgs),
    /// Compile a project's job into one component, check it, and compile that for this machine
    Build(ProjectArgs),
    /// Run a project's tests natively, then build and check its component
    Test(TestArgs),
    /// What tests under `tidemill test --sandbox` run their job in
    #[command(hide = true)]
    TestServer {
        /// The component
        component: PathBuf,
    },
    /// Run a job in this process
    Run(RunArgs),
    /// Take a savepoint of a running job, which goes on
    Savepoint(SavepointArgs),
    /// Stop a running job cleanly, with a checkpoint if it takes any
    Stop(StopArgs),
    /// Start, look at and stop a cluster of processes of this machine
    #[command(subcommand)]
    Cluster(LocalCommand),
    /// Run a cluster's coordinator: it keeps jobs, and runs them in the slots of workers
    Coordinator(CoordinatorArgs),
    /// Run a worker: it offers slots to a coordinator
    Worker(WorkerArgs),
    /// Upload a job to a cluster, and follow it
    Submit(SubmitArgs),
    /// The jobs of a cluster
    List(ClusterArgs),
    /// A job of a cluster: its state, operators and checkpoints
    Status(StatusArgs),
    /// What was logged of a job of a cluster, by its code and by the engine
    Logs(LogsArgs),
    /// End a job of a cluster at once; nothing more is written
    Cancel(ClusterJobArgs),
    /// Give a job of a cluster another number of slots
    Rescale(RescaleArgs),
    /// The workers of a cluster
    Workers(ClusterArgs),
    /// The components that were uploaded to a cluster
    Artifacts(ClusterArgs),
    /// Names for clusters, so that commands need no --cluster
    #[command(subcommand)]
    Context(ContextCommand),
    /// Make certificates for trying a cluster under TLS
    Certs(CertsArgs),
    /// Look into checkpoints and savepoints, without the job's code
    #[command(subcommand)]
    State(StateCommand),
    /// Show what a component is: its plan, its imports, its sizes
    Inspect(InspectArgs),
    /// Show the connectors and their options
    Connectors(ConnectorsArgs),
    /// Print all settings of coordinators and workers, as Markdown
    Configuration,
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

#[derive(Args, Debug)]
pub struct NewArgs {
    /// The project's name, which is also its folder
    pub name: PathBuf,
    /// The folder of the Rust SDK [default: TIDEMILL_HOME/sdk/rust, or the checkout this command was built from]
    #[arg(long, value_name = "FOLDER")]
    pub sdk: Option<PathBuf>,
}

#[derive(Args, Debug, Clone)]
pub struct ProjectArgs {
    /// The project: its folder or its manifest
    #[arg(default_value = ".")]
    pub project: PathBuf,
    /// The manifest, if it is not the project's tidemill.toml
    #[arg(long, value_name = "FILE", conflicts_with = "project")]
    pub manifest: Option<PathBuf>,
    /// Change the manifest: `sources.bids.path=other.csv`, `job.parallelism=2`, `params.limit=7`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

#[derive(Args, Debug)]
pub struct TestArgs {
    #[command(flatten)]
    pub project: ProjectArgs,
    /// Only run tests whose names contain this
    #[arg(long, value_name = "TEXT")]
    pub filter: Option<String>,
    /// Run the same tests again with the job in the sandbox
    #[arg(long)]
    pub sandbox: bool,
}

#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub project: ProjectArgs,
    #[command(flatten)]
    pub start: StartArgs,
    /// How progress and the final summary are written, on stderr
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    pub format: Format,
    #[command(flatten)]
    pub s3: S3Args,
}

/// How a job starts, in this process or in a cluster.
#[derive(Args, Debug)]
pub struct StartArgs {
    /// The component, instead of the manifest's
    #[arg(long, value_name = "FILE")]
    pub component: Option<PathBuf>,
    /// Slots: threads that each run a slice of the job, instead of the manifest's
    #[arg(long, short, value_name = "SLOTS", value_parser = clap::value_parser!(u32).range(1..))]
    pub parallelism: Option<u32>,
    /// Build first
    #[arg(long, conflicts_with = "component")]
    pub build: bool,
    /// Go on from a savepoint (its folder), from `latest` (however the last run ended), or from a checkpoint by
    /// its number. Without it, a run that was interrupted is gone on with, and else the job starts anew
    #[arg(long, value_name = "SAVEPOINT")]
    pub from: Option<String>,
    /// Start with nothing, even if the last run was interrupted
    #[arg(long, conflicts_with = "from")]
    pub fresh: bool,
    /// Drop state of operators that the job does not have any more, instead of refusing it
    #[arg(long)]
    pub allow_non_restored: bool,
}

impl StartArgs {
    /// What the job starts from.
    pub fn start(&self) -> Start {
        match self.from.as_deref() {
            None if self.fresh => Start::Anew,
            None => Start::Recover,
            Some("latest") => Start::GoOn,
            Some(from) => Start::At(match from.parse() {
                Ok(number) if !Path::new(from).exists() => Origin::Checkpoint(number),
                _ => Origin::Savepoint(from.to_owned()),
            }),
        }
    }
}

#[derive(Args, Debug)]
pub struct SavepointArgs {
    /// Where: a folder that is not there yet, or s3://BUCKET/PREFIX
    pub location: String,
    #[command(flatten)]
    pub running: RunningArgs,
}

#[derive(Args, Debug)]
pub struct StopArgs {
    /// Stop with a savepoint here: a folder that is not there yet, or s3://BUCKET/PREFIX
    #[arg(long, value_name = "LOCATION")]
    pub savepoint: Option<String>,
    #[command(flatten)]
    pub running: RunningArgs,
}

#[derive(Subcommand, Debug)]
pub enum StateCommand {
    /// The checkpoints that there are
    List(StateProjectArgs),
    /// What a checkpoint or savepoint keeps: operators, their state and its types, splits, watermarks
    Inspect(StateInspectArgs),
    /// Rows of an operator's state, as JSON lines
    Query(StateQueryArgs),
    /// A whole state as a file
    Export(StateExportArgs),
}

impl StateCommand {
    /// Whose state.
    pub fn project(&self) -> &StateProjectArgs {
        match self {
            Self::List(args) => args,
            Self::Inspect(args) => &args.from.project,
            Self::Query(args) => &args.part.from.project,
            Self::Export(args) => &args.part.from.project,
        }
    }
}

#[derive(Args, Debug)]
pub struct StateProjectArgs {
    /// The project whose manifest says where the checkpoints are: its folder or its manifest
    #[arg(long, default_value = ".", value_name = "PROJECT")]
    pub project: PathBuf,
    #[command(flatten)]
    pub s3: S3Args,
}

#[derive(Args, Debug)]
pub struct StateFromArgs {
    /// A savepoint (its folder), `latest`, or the number of a checkpoint
    #[arg(long, default_value = "latest", value_name = "SAVEPOINT")]
    pub from: String,
    #[command(flatten)]
    pub project: StateProjectArgs,
}

#[derive(Args, Debug)]
pub struct StateInspectArgs {
    #[command(flatten)]
    pub from: StateFromArgs,
    /// As one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Which part of which operator's state.
#[derive(Args, Debug)]
pub struct StatePartArgs {
    /// The operator: its uid or its name
    pub operator: String,
    /// One value by its name, or a whole table or log, or `event-timers` or `processing-timers`; needed if the operator
    /// has several tables or logs
    pub part: Option<String>,
    #[command(flatten)]
    pub from: StateFromArgs,
}

#[derive(Args, Debug)]
pub struct StateQueryArgs {
    #[command(flatten)]
    pub part: StatePartArgs,
    /// Only this key; once per column of the key
    #[arg(long, value_name = "VALUE")]
    pub key: Vec<String>,
    /// At most so many rows
    #[arg(long, value_name = "ROWS")]
    pub limit: Option<usize>,
}

#[derive(Args, Debug)]
pub struct StateExportArgs {
    #[command(flatten)]
    pub part: StatePartArgs,
    /// The file to write; its extension says how: .json (JSON lines) or .parquet
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
}

/// A job that runs on this machine, or in a cluster.
#[derive(Args, Debug)]
pub struct RunningArgs {
    /// The project whose job runs: its folder or its manifest
    #[arg(long, default_value = ".", value_name = "PROJECT")]
    pub project: PathBuf,
    /// A job of a cluster, instead
    #[arg(long, value_name = "ID", conflicts_with = "project")]
    pub job: Option<String>,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Which cluster.
#[derive(Args, Debug)]
pub struct ClusterArgs {
    /// Where the cluster's API is [default: that of the context in use, or http://127.0.0.1:8081]
    #[arg(long, env = "TIDEMILL_CLUSTER", value_name = "URL", conflicts_with = "context")]
    pub cluster: Option<String>,
    /// A cluster by the name that `tidemill context add` gave it
    #[arg(long, env = "TIDEMILL_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
    /// The file with the token that the cluster asks for; the environment may also have the token itself: TIDEMILL_TOKEN
    #[arg(long, env = "TIDEMILL_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The certificate of the authority that signed that of the API, if it is not one that this machine knows
    #[arg(long, env = "TIDEMILL_AUTHORITY", value_name = "FILE")]
    pub authority: Option<PathBuf>,
    /// Answer with JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct ClusterJobArgs {
    /// The job's id, as `tidemill list` shows it
    pub job: String,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

#[derive(Args, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    pub job: ClusterJobArgs,
    /// Look again every second, until the job is over
    #[arg(long)]
    pub watch: bool,
}

#[derive(Args, Debug)]
pub struct LogsArgs {
    #[command(flatten)]
    pub job: ClusterJobArgs,
    /// Go on with what comes, until the job is over
    #[arg(long, short)]
    pub follow: bool,
    /// Only what an operator logged (its name, uid or number in the plan), or one of its subtasks
    #[arg(long, value_name = "OPERATOR[/SUBTASK]")]
    pub task: Option<String>,
    /// Begin with so many entries, the newest
    #[arg(long, default_value = "1000", value_name = "ENTRIES", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
}

#[derive(Args, Debug)]
pub struct RescaleArgs {
    #[command(flatten)]
    pub job: ClusterJobArgs,
    /// How many slots
    #[arg(long, short, value_name = "SLOTS", value_parser = clap::value_parser!(u32).range(1..))]
    pub parallelism: u32,
    /// Wait until the job runs so
    #[arg(long)]
    pub wait: bool,
}

#[derive(Args, Debug)]
pub struct SubmitArgs {
    #[command(flatten)]
    pub project: ProjectArgs,
    #[command(flatten)]
    pub start: StartArgs,
    /// Do not follow the job
    #[arg(long)]
    pub detach: bool,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

#[derive(Subcommand, Debug)]
pub enum LocalCommand {
    /// Start a coordinator and workers, or what is missing of them, and wait until they are ready
    Start(ClusterStartArgs),
    /// What runs, by its pids
    Status(LocalArgs),
    /// End the processes that were started; jobs that have not ended go on when the cluster is started again
    Stop(LocalArgs),
}

#[derive(Args, Debug)]
pub struct LocalArgs {
    /// The run folder: pids and logs [default: tidemill/cluster in XDG_STATE_HOME or ~/.local/state]
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
    /// Answer with JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct ClusterStartArgs {
    /// How many workers
    #[arg(long, default_value = "2", value_name = "N", value_parser = clap::value_parser!(u32).range(0..=64))]
    pub workers: u32,
    /// How many slots each has [default: 2]
    #[arg(long, value_name = "SLOTS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub slots: Option<u32>,
    /// How much memory jobs may hold on each [default: 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = size_text)]
    pub memory: Option<String>,
    /// Where artifacts and jobs are kept: a folder, or s3://BUCKET/PREFIX [default: as before, at first in the run folder]
    #[arg(long, value_name = "LOCATION")]
    pub storage: Option<String>,
    /// Where workers register, on loopback; 0: any that is free [default: as before, at first 6123]
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Where the API is, on loopback; 0: any that is free [default: as before, at first 8081]
    #[arg(long, value_name = "PORT")]
    pub rest_port: Option<u16>,
    #[command(flatten)]
    pub local: LocalArgs,
}

impl ClusterStartArgs {
    pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 6123);
    pub const DEFAULT_REST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8081);
    pub const DEFAULT_SLOTS: u32 = 2;
}

#[derive(Args, Debug)]
pub struct CoordinatorArgs {
    /// Settings, YAML: docs/configuration.md. The environment and this command line win over it
    #[arg(long, env = "TIDEMILL_COORDINATOR_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where artifacts and jobs are kept: a folder that all processes of the cluster reach, or s3://BUCKET/PREFIX
    #[arg(long, env = "TIDEMILL_COORDINATOR_STORAGE", value_name = "LOCATION")]
    pub storage: String,
    /// Where workers register
    #[arg(long, env = "TIDEMILL_COORDINATOR_LISTEN", default_value = "127.0.0.1:6123", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Where the API is
    #[arg(long, env = "TIDEMILL_COORDINATOR_REST", default_value = "127.0.0.1:8081", value_name = "ADDRESS")]
    pub rest: SocketAddr,
    /// Who may use the API: a file of tokens, each with a name and a role. Without it, only this machine
    #[arg(long, env = "TIDEMILL_COORDINATOR_TOKENS", value_name = "FILE")]
    pub tokens: Option<PathBuf>,
    /// The certificate of the API, PEM: with it, the API speaks TLS
    #[arg(long, env = "TIDEMILL_COORDINATOR_REST_CERTIFICATE", value_name = "FILE", requires = "rest_key")]
    pub rest_certificate: Option<PathBuf>,
    /// The private key of the API
    #[arg(long, env = "TIDEMILL_COORDINATOR_REST_KEY", value_name = "FILE", requires = "rest_certificate")]
    pub rest_key: Option<PathBuf>,
    /// What becomes of a job that wants more slots than are free: wait, or refuse
    #[arg(long, env = "TIDEMILL_COORDINATOR_WHEN_FULL", default_value = "wait", value_name = "WHAT")]
    pub when_full: WhenFullArg,
    /// How many free slots are kept for jobs that are started again: no new job gets them, and none that is to be larger
    #[arg(long, env = "TIDEMILL_COORDINATOR_STANDBY_SLOTS", default_value = "0", value_name = "SLOTS")]
    pub standby_slots: u32,
    /// How many operations that are over are remembered (savepoints, stops, checkpoints and rescalings that were asked for)
    #[arg(long, env = "TIDEMILL_COORDINATOR_OPERATIONS_KEPT", default_value = "1000", value_name = "NUMBER")]
    pub operations_kept: usize,
    /// For how long, at most
    #[arg(long, env = "TIDEMILL_COORDINATOR_OPERATIONS_AGE", default_value = "7d", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub operations_age: Duration,
    /// How often what is new of the logs of jobs is written to the storage: so much of them may be lost with the coordinator
    #[arg(long, env = "TIDEMILL_COORDINATOR_LOGS_EVERY", default_value = "5s", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub logs_every: Duration,
    /// How much of the logs of each job is kept there; 0: nothing
    #[arg(long, env = "TIDEMILL_COORDINATOR_LOGS_SIZE", default_value = "16MiB", value_name = "SIZE", value_parser = size)]
    pub logs_size: ByteSize,
    /// For how long, at most
    #[arg(long, env = "TIDEMILL_COORDINATOR_LOGS_AGE", default_value = "7d", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub logs_age: Duration,
    #[command(flatten)]
    pub tls: TlsArgs,
    #[command(flatten)]
    pub s3: S3Args,
    /// All of these, as the API shows them.
    #[arg(skip)]
    pub shown: serde_json::Value,
}

/// What becomes of a job that wants more slots than are free.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum WhenFullArg {
    /// It is accepted and waits.
    Wait,
    /// It is refused.
    Refuse,
}

/// When copies of checkpoints are kept on a worker's disk.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LocalRecoveryArg {
    /// Of jobs whose checkpoints are in an object store.
    Auto,
    /// Of all jobs.
    Always,
    /// Never.
    Never,
}

#[derive(Args, Debug)]
pub struct WorkerArgs {
    /// Settings, YAML: docs/configuration.md. The environment and this command line win over it
    #[arg(long, env = "TIDEMILL_WORKER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the coordinator is
    #[arg(long, env = "TIDEMILL_WORKER_COORDINATOR", default_value = "127.0.0.1:6123", value_name = "HOST:PORT")]
    pub coordinator: String,
    /// How many slots it offers: each runs a slice of a job, on a thread
    #[arg(long, env = "TIDEMILL_WORKER_SLOTS", default_value = "1", value_name = "SLOTS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub slots: u32,
    /// How much memory jobs may hold there: user code, state, buffers, rows between slots. A job that needs more goes to another worker, or fails
    #[arg(long, env = "TIDEMILL_WORKER_MEMORY", default_value = "1GiB", value_name = "SIZE", value_parser = size)]
    pub memory: ByteSize,
    /// When copies of checkpoints are kept on the local disk, for restarts: auto (of jobs whose checkpoints are in an object store), always, never
    #[arg(long, env = "TIDEMILL_WORKER_LOCAL_RECOVERY", default_value = "auto", value_name = "WHEN")]
    pub local_recovery: LocalRecoveryArg,
    /// How much all of these may have together. What does not fit is read from the store
    #[arg(long, env = "TIDEMILL_WORKER_LOCAL_RECOVERY_SIZE", default_value = "1GiB", value_name = "SIZE", value_parser = size)]
    pub local_recovery_size: ByteSize,
    /// Where they are: best on the disk of [state] path, where they are hard links. By default, tidemill-local-recovery in the folder of temporary files
    #[arg(long, env = "TIDEMILL_WORKER_LOCAL_RECOVERY_FOLDER", value_name = "FOLDER")]
    pub local_recovery_folder: Option<PathBuf>,
    /// Where other workers connect; port 0: any that is free
    #[arg(long, env = "TIDEMILL_WORKER_LISTEN", default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// What others are told of where that is, if it is not what it listens on
    #[arg(long, env = "TIDEMILL_WORKER_ADVERTISE", value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    #[command(flatten)]
    pub tls: TlsArgs,
    #[command(flatten)]
    pub s3: S3Args,
}

/// Certificates, PEM. With them, whoever has none of the cluster's is not heard.
#[derive(Args, Debug)]
pub struct TlsArgs {
    /// The certificate of the authority that signed all certificates of the cluster
    #[arg(long, env = "TIDEMILL_TLS_AUTHORITY", value_name = "FILE", requires_all = ["tls_certificate", "tls_key"])]
    pub tls_authority: Option<PathBuf>,
    /// This process's certificate, for the name `tidemill-cluster`
    #[arg(long, env = "TIDEMILL_TLS_CERTIFICATE", value_name = "FILE", requires = "tls_authority")]
    pub tls_certificate: Option<PathBuf>,
    /// Its private key
    #[arg(long, env = "TIDEMILL_TLS_KEY", value_name = "FILE", requires = "tls_authority")]
    pub tls_key: Option<PathBuf>,
}

/// The object store of locations `s3://...`. What is not said here is taken from the environment, under the names that the
/// tools of AWS use.
#[derive(Args, Debug)]
pub struct S3Args {
    /// The URL of the object store behind s3://, if it is not Amazon's. By default, AWS_ENDPOINT_URL
    #[arg(long, env = "TIDEMILL_S3_ENDPOINT", value_name = "URL", help_heading = S3_HEADING)]
    pub s3_endpoint: Option<String>,
    /// Its region. By default, AWS_REGION
    #[arg(long, env = "TIDEMILL_S3_REGION", value_name = "REGION", help_heading = S3_HEADING)]
    pub s3_region: Option<String>,
    /// Where its URLs have the bucket: path (https://HOST/BUCKET), or virtual-host (https://BUCKET.HOST). By default, path
    #[arg(long, env = "TIDEMILL_S3_ADDRESSING", value_name = "WHERE", help_heading = S3_HEADING, hide_possible_values = true)]
    pub s3_addressing: Option<S3AddressingArg>,
    /// A file with the access key and its secret, like ~/.aws/credentials: its section [default]. By default, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY
    #[arg(long, env = "TIDEMILL_S3_CREDENTIALS", value_name = "FILE", help_heading = S3_HEADING)]
    pub s3_credentials: Option<PathBuf>,
}

const S3_HEADING: &str = "Object store";

/// How requests name the bucket.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum S3AddressingArg {
    /// In the path.
    Path,
    /// In the name of the host.
    VirtualHost,
}

impl S3Args {
    /// These are the settings of this process from now on.
    pub fn apply(&self) -> Result<(), tidemill_core::Error> {
        let addressing = self.s3_addressing.map(|addressing| match addressing {
            S3AddressingArg::Path => S3Addressing::Path,
            S3AddressingArg::VirtualHost => S3Addressing::VirtualHost,
        });
        let credentials = self.s3_credentials.as_deref().map(S3Credentials::read).transpose()?;
        let (endpoint, region) = (self.s3_endpoint.clone(), self.s3_region.clone());
        S3Settings { endpoint, region, addressing, credentials }.use_in_this_process()
    }
}

#[derive(Subcommand, Debug)]
pub enum ContextCommand {
    /// Add a name, or replace it; the first one is used from then on
    Add(ContextAddArgs),
    /// Use a cluster where none is named
    Use {
        /// Which
        name: String,
    },
    /// The names that there are
    List {
        /// Answer with JSON
        #[arg(long)]
        json: bool,
    },
    /// Forget a name
    Remove {
        /// Which
        name: String,
    },
}

#[derive(Args, Debug)]
pub struct ContextAddArgs {
    /// What it is to be called
    pub name: String,
    /// Where its API is
    #[arg(long, value_name = "URL")]
    pub cluster: String,
    /// The file with the token that it asks for
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The certificate of the authority that signed that of its API
    #[arg(long, value_name = "FILE")]
    pub authority: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct CertsArgs {
    /// Where: a folder, which is made if it is not there
    pub folder: PathBuf,
    /// Another name or address under which processes are reached
    #[arg(long = "name", value_name = "HOST")]
    pub names: Vec<String>,
    /// How long they are good for
    #[arg(long, default_value = "365", value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
}

#[derive(Args, Debug)]
pub struct InspectArgs {
    /// A component, or a project (its folder or its manifest)
    #[arg(default_value = ".")]
    pub target: PathBuf,
    /// The plan as a graph for Graphviz: `tidemill inspect --dot | dot -Tsvg > plan.svg`
    #[arg(long, conflicts_with = "json")]
    pub dot: bool,
    /// Everything as one JSON document
    #[arg(long)]
    pub json: bool,
    /// The plan as the component wrote it, with the columns that nobody reads
    #[arg(long)]
    pub unpruned: bool,
}

#[derive(Args, Debug)]
pub struct ConnectorsArgs {
    /// Only this one, with all its options
    pub name: Option<String>,
    /// All of them with all their options, as Markdown
    #[arg(long)]
    pub markdown: bool,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A live display on a terminal, else plain lines
    Auto,
    /// Plain lines, one every few seconds
    Plain,
    /// JSON, one object per line
    Json,
    /// Nothing while it runs, nothing at its end; errors only
    Quiet,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Color {
    Auto,
    Never,
}

fn size(text: &str) -> Result<ByteSize, String> {
    ByteSize::from_default(text)
}

fn size_text(text: &str) -> Result<String, String> {
    size(text).map(|_| text.to_owned())
}
