//! A cluster's API, as the commands ask it.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use reqwest::blocking::{Client, RequestBuilder};
use reqwest::{Certificate, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidemill_core::Error;
use tidemill_rest::ProblemBody;
use tidemill_rest::operations::{Operation, OperationState};

use crate::args::ClusterArgs;
use crate::contexts::Contexts;

/// Where a cluster is that nobody named.
const DEFAULT: &str = "http://127.0.0.1:8081";
/// The variable with the token itself; a flag would show it to everyone on the machine.
const TOKEN: &str = "TIDEMILL_TOKEN";
/// How long a cluster may take to be there.
const CONNECT: Duration = Duration::from_secs(10);
/// How often an operation is asked for.
const POLL_EVERY: Duration = Duration::from_millis(50);
/// For so long, a cluster that does not answer is asked again: the next coordinator knows the operation too.
const AWAY: Duration = Duration::from_secs(60);

/// A cluster's API.
pub struct Api {
    client: Client,
    base: String,
    token: Option<String>,
}

impl Api {
    /// Of the cluster that is named, or in use.
    pub fn new(args: &ClusterArgs) -> anyhow::Result<Self> {
        // A context's token is for its cluster and no other.
        let context = match (&args.cluster, &args.context) {
            (Some(_), _) => None,
            (None, Some(name)) => Some(Contexts::read()?.get(name)?.clone()),
            (None, None) => Contexts::read()?.current()?.cloned(),
        };
        let cluster = args.cluster.as_deref().or(context.as_ref().map(|of| of.cluster.as_str())).unwrap_or(DEFAULT);
        let kept = context.as_ref();
        let token_file = args.token_file.as_deref().or(kept.and_then(|of| of.token_file.as_deref()));
        let authority = args.authority.as_deref().or(kept.and_then(|of| of.authority.as_deref()));
        let token = match token_file {
            Some(file) => Some(read(file, "the token")?.trim().to_owned()),
            None => std::env::var(TOKEN).ok().filter(|token| !token.is_empty()),
        };
        Self::at(cluster, token, authority)
    }

    /// By its URL, without the path of the API.
    pub fn at(url: &str, token: Option<String>, authority: Option<&Path>) -> anyhow::Result<Self> {
        // That there is one already is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // No time limit for answers: an upload is compiled before it is answered.
        let mut client = Client::builder().timeout(None).connect_timeout(CONNECT);
        if let Some(file) = authority {
            let certificates = Certificate::from_pem_bundle(read(file, "the authority's certificate")?.as_bytes());
            client = client.tls_certs_only(certificates.with_context(|| format!("{} is no PEM file", file.display()))?);
        }
        let client = client.build().context("no HTTP client")?;
        Ok(Self { client, base: format!("{}/api/v1", url.trim_end_matches('/')), token })
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}/{path}", self.base))
    }

    /// With a query.
    pub fn get_with(&self, path: &str, query: &[(&str, String)]) -> anyhow::Result<RequestBuilder> {
        let url = format!("{}/{path}", self.base);
        let asked = Url::parse_with_params(&url, query).with_context(|| format!("'{url}' is no URL"))?;
        Ok(self.client.get(asked))
    }

    pub fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(format!("{}/{path}", self.base))
    }

    pub fn json(&self, path: &str, body: &impl Serialize) -> RequestBuilder {
        self.post(path).json(body)
    }

    /// Asks for what takes long.
    pub fn begin(&self, path: &str, body: &impl Serialize) -> anyhow::Result<Operation> {
        self.answer(self.json(path, body))
    }

    /// Waits until it is done.
    pub fn finish(&self, begun: Operation) -> anyhow::Result<Operation> {
        let mut operation = begun;
        let mut heard = Instant::now();
        loop {
            match operation.state {
                OperationState::Completed => return Ok(operation),
                OperationState::Failed => bail!(operation.failure.unwrap_or_else(|| "it was given up".to_owned())),
                OperationState::Running => {
                    std::thread::sleep(POLL_EVERY);
                    match self.answer(self.get(&format!("operations/{}", operation.id))) {
                        Ok(now) => (operation, heard) = (now, Instant::now()),
                        Err(error) if error.is::<Unanswered>() && heard.elapsed() < AWAY => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }

    pub fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> anyhow::Result<T> {
        let unreachable = |e: reqwest::Error| {
            // The innermost cause says what is the matter.
            let mut cause: &dyn std::error::Error = &e;
            while let Some(inner) = cause.source() {
                cause = inner;
            }
            let reason = Error::invalid(format!("the cluster at {} can't be reached: {cause}", self.base))
                .mend("Start one with `tidemill cluster start`, or name it with --cluster URL.");
            anyhow!(Unanswered(reason.text()))
        };
        let request = self.token.iter().fold(request, |request, token| request.bearer_auth(token));
        let response = request.send().map_err(unreachable)?;
        let status = response.status();
        if status.is_success() {
            let text = response.text().map_err(|e| anyhow!(Unanswered(format!("the cluster broke off: {e}"))))?;
            return serde_json::from_str(&text).context("the cluster's answer can't be read");
        }
        let text = response.text().unwrap_or_default();
        let detail = match serde_json::from_str::<ProblemBody>(&text) {
            Ok(problem) => problem.detail,
            Err(_) => format!("the cluster answered {status}: {text}"),
        };
        Err(if PASSING.contains(&status) { anyhow!(Unanswered(detail)) } else { anyhow!(detail) })
    }
}

/// A cluster that can't answer now, or whoever stands before it.
const PASSING: [StatusCode; 3] =
    [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];

/// Nothing was answered, or not all: it may be, later.
#[derive(Debug)]
pub struct Unanswered(String);

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unanswered {}

fn read(file: &Path, what: &str) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("{what} can't be read from {}", file.display()))
}
