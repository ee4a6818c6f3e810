//! Who may do what: bearer tokens, each with a name and a role.
//!
//! Everything asks for a token, if there are any, but for what [`is_open`] names. What is compared are digests, in constant
//! time and with every token that there is, so that how long an answer takes says nothing. No token is ever written to a
//! log, an answer or a message; neither is a digest.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tidemill_core::{Error, Result};

use crate::problem::Problem;

/// A token is as good as it is hard to guess.
const SHORTEST_TOKEN: usize = 16;
/// A file of tokens is no larger.
const LARGEST_FILE: u64 = 1 << 20;

/// What somebody may do; each role also what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look at everything.
    Read,
    /// Upload components; submit, cancel, stop, save and rescale jobs.
    Submit,
    /// Delete artifacts.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

/// Who may ask.
#[derive(Debug, Default)]
pub enum Access {
    /// Whoever reaches it, from this machine: nobody is asked who he is.
    #[default]
    Local,
    /// Who has one of these tokens.
    Tokens(Tokens),
}

/// The tokens of a cluster.
pub struct Tokens(Vec<Entry>);

struct Entry {
    name: String,
    role: Role,
    digest: [u8; 32],
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|of| format!("{} ({})", of.name, of.role))).finish()
    }
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokensFile {
    tokens: Vec<Written>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Written {
    name: String,
    role: Role,
    sha256: Option<String>,
    token_file: Option<PathBuf>,
    token_env: Option<String>,
}

impl Tokens {
    /// Reads a file of tokens: YAML, with `tokens` as a list of `name`, `role`, and one of `sha256`, `token-file` and
    /// `token-env`.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let unreadable = |e: &dyn fmt::Display| {
            Error::invalid(format!("the file of tokens {shown} can't be read: {e}"))
                .mend("docs/operate-a-cluster.md shows what it holds.")
        };
        if fs::metadata(path).map_err(|e| unreadable(&e))?.len() > LARGEST_FILE {
            return Err(unreadable(&format!("it has more than {LARGEST_FILE} bytes")));
        }
        let text = fs::read_to_string(path).map_err(|e| unreadable(&e))?;
        Self::parse(&text, &|name| std::env::var(name).ok())
            .map_err(|e| e.prefixed(&format!("the file of tokens {shown}")))
    }

    fn parse(text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let invalid = |what: String| Error::invalid(what).mend("docs/operate-a-cluster.md shows what it holds.");
        let file: TokensFile = yaml_serde::from_str(text).map_err(|e| invalid(e.to_string()))?;
        let mut entries: Vec<Entry> = Vec::new();
        for written in file.tokens {
            let name = written.name.clone();
            let entry = entry(written, environment).map_err(|e| e.prefixed(&format!("token '{name}'")))?;
            if entries.iter().any(|of| of.name == name || bool::from(of.digest.ct_eq(&entry.digest))) {
                return Err(invalid(format!("token '{name}' is there twice")));
            }
            entries.push(entry);
        }
        if entries.is_empty() {
            return Err(invalid("there is no token in it".to_owned()));
        }
        Ok(Self(entries))
    }

    fn find(&self, token: &str) -> Option<&Entry> {
        let digest = digest(token);
        // All are compared, whichever it is.
        self.0.iter().fold(None, |found, of| if of.digest.ct_eq(&digest).into() { Some(of) } else { found })
    }
}

fn entry(written: Written, environment: &dyn Fn(&str) -> Option<String>) -> Result<Entry> {
    let Written { name, role, sha256, token_file, token_env } = written;
    let digest = match (sha256, token_file, token_env) {
        (Some(hexadecimal), None, None) => {
            parse_digest(&hexadecimal).ok_or_else(|| Error::invalid("its 'sha256' is not 64 hexadecimal digits"))?
        }
        (None, Some(file), None) => {
            let read = fs::read_to_string(&file);
            let text = read.map_err(|e| Error::invalid(format!("its file {} can't be read: {e}", file.display())))?;
            digest_of_long(text.trim())?
        }
        (None, None, Some(variable)) => {
            let value = environment(&variable);
            let value = value.ok_or_else(|| Error::invalid(format!("there is no environment variable {variable}")))?;
            digest_of_long(value.trim())?
        }
        _ => return Err(Error::invalid("it needs one of 'sha256', 'token-file' and 'token-env'")),
    };
    Ok(Entry { name, role, digest })
}

fn digest_of_long(token: &str) -> Result<[u8; 32]> {
    if token.len() < SHORTEST_TOKEN {
        return Err(Error::invalid(format!("it has fewer than {SHORTEST_TOKEN} characters"))
            .mend("Make one with `openssl rand -hex 32`."));
    }
    Ok(digest(token))
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

fn parse_digest(hexadecimal: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    let digits = hexadecimal.as_bytes();
    if digits.len() != 2 * digest.len() {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

/// What is answered to anyone: whether the process is there and well, and what the API is.
fn is_open(path: &str) -> bool {
    matches!(path, "/health" | "/ready" | "/docs" | "/api/v1/openapi.json")
}

/// Which role a request asks for.
fn needed(method: &Method) -> Role {
    match *method {
        Method::GET | Method::HEAD | Method::OPTIONS => Role::Read,
        Method::DELETE => Role::Admin,
        _ => Role::Submit,
    }
}

/// Lets through who may ask for it.
pub(crate) async fn check(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    match decide(&access, request.method(), request.uri().path(), request.headers()) {
        Ok(who) => {
            if let Some(name) = who.filter(|_| needed(request.method()) > Role::Read) {
                tracing::info!("{name}: {} {}", request.method(), request.uri().path());
            }
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

/// The name of who asks, if that is known; or why it may not be asked.
fn decide<'a>(
    access: &'a Access,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Result<Option<&'a str>, Problem> {
    let tokens = match access {
        Access::Local => return from_this_machine(headers).map(|()| None),
        Access::Tokens(tokens) => tokens,
    };
    if is_open(path) {
        return Ok(None);
    }
    let unknown = |what: &str| {
        Problem::new(
            StatusCode::UNAUTHORIZED,
            format!(
                "{what}\n  mend: Send `Authorization: Bearer TOKEN`; the commands take it from --token-file or TIDEMILL_TOKEN."
            ),
        )
    };
    let given = headers.get(header::AUTHORIZATION).ok_or_else(|| unknown("this cluster asks for a token"))?;
    let given = given.to_str().ok().and_then(|text| text.split_once(' '));
    let token = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
    let token = token.ok_or_else(|| unknown("only bearer tokens are taken"))?;
    let who = tokens.find(token).ok_or_else(|| unknown("the token is not one of this cluster's"))?;
    let role = needed(method);
    if who.role < role {
        let (name, has) = (&who.name, who.role);
        let detail = format!(
            "{method} {path} is for the role '{role}', and '{name}' has the role '{has}'\n  mend: Ask whoever runs the cluster for a token of that role."
        );
        return Err(Problem::new(StatusCode::FORBIDDEN, detail));
    }
    Ok(Some(&who.name))
}

/// Without tokens, a page in a browser of this machine must not be able to ask in its user's place: neither one of another
/// site, nor one whose name was made to lead here.
fn from_this_machine(headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let is_here = |host: &str| {
        let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
        let name = name.map_or(host, |(name, _)| name);
        name == "localhost" || name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok()
    };
    let host = text(header::HOST);
    let origin = text(header::ORIGIN).map(|origin| origin.split_once("://").map_or(origin, |(_, host)| host));
    if host.is_none_or(is_here) && origin.is_none_or(|origin| Some(origin) == host) {
        return Ok(());
    }
    let detail = "without tokens, requests are only taken from this machine, and not from pages of other sites\n  mend: Ask at http://127.0.0.1, or start the coordinator with --tokens FILE.";
    Err(Problem::new(StatusCode::FORBIDDEN, detail))
}

#[cfg(test)]
mod tests;
