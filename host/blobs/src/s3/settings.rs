//! What a process is told of its object store. What it is not told is taken from the environment.
//!
//! A process has one object store, as it has one environment, so this is of the process too: whatever opens `s3://...` there
//! uses it, also a sink, which knows nothing of who started the process.

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use object_store::aws::AmazonS3ConfigKey;
use tidemill_core::error::{Error, Result};

/// No file of credentials is larger.
const LARGEST_FILE: u64 = 64 << 10;
/// The section of such a file that is read.
const SECTION: &str = "default";

static OF_THIS_PROCESS: OnceLock<S3Settings> = OnceLock::new();

/// The settings of an object store. `None`: as the environment says.
#[derive(Clone, Debug, Default)]
pub struct S3Settings {
    /// Its URL, `http://` or `https://`, without a bucket.
    pub endpoint: Option<String>,
    /// Its region.
    pub region: Option<String>,
    /// How requests name the bucket.
    pub addressing: Option<S3Addressing>,
    /// Who asks.
    pub credentials: Option<S3Credentials>,
}

/// How requests name the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum S3Addressing {
    /// `https://HOST/BUCKET/KEY`.
    Path,
    /// `https://BUCKET.HOST/KEY`.
    VirtualHost,
}

/// A key and its secret. They are never shown.
#[derive(Clone)]
pub struct S3Credentials {
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
}

impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("S3Credentials(not shown)")
    }
}

impl S3Credentials {
    /// Reads a file as the tools of AWS have it (`~/.aws/credentials`): its section `[default]`. Messages name lines by their
    /// numbers and show nothing of them.
    pub fn read(path: &Path) -> Result<Self> {
        let whole = |e: &dyn fmt::Display| {
            let message = format!("the file of S3 credentials {} can't be read: {e}", path.display());
            Error::invalid(message).mend("Name a file like ~/.aws/credentials; docs/checkpoints.md shows one.")
        };
        if fs::metadata(path).map_err(|e| whole(&e))?.len() > LARGEST_FILE {
            return Err(whole(&format!("it has more than {LARGEST_FILE} bytes")));
        }
        Self::parse(&fs::read_to_string(path).map_err(|e| whole(&e))?).map_err(|why| whole(&why))
    }

    fn parse(text: &str) -> std::result::Result<Self, String> {
        let [mut access_key_id, mut secret_access_key, mut session_token] = [const { None }; 3];
        let mut is_ours = false;
        for (line, number) in text.lines().map(str::trim).zip(1..) {
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                is_ours = section.trim() == SECTION;
                continue;
            }
            let (key, value) = line.split_once('=').ok_or_else(|| format!("line {number} is not KEY = VALUE"))?;
            let place = match key.trim().to_ascii_lowercase().as_str() {
                "aws_access_key_id" => &mut access_key_id,
                "aws_secret_access_key" => &mut secret_access_key,
                "aws_session_token" => &mut session_token,
                // Tools keep more there.
                _ => continue,
            };
            if is_ours && place.replace(value.trim().to_owned()).is_some() {
                return Err(format!("line {number} says again what was said before"));
            }
        }
        let needed = |value: Option<String>, key: &str| {
            value
                .filter(|value| !value.is_empty())
                .ok_or_else(|| format!("there is no {key} in its section [{SECTION}]"))
        };
        Ok(Self {
            access_key_id: needed(access_key_id, "aws_access_key_id")?,
            secret_access_key: needed(secret_access_key, "aws_secret_access_key")?,
            session_token: session_token.filter(|token| !token.is_empty()),
        })
    }
}

impl S3Settings {
    /// These are the settings of this process from now on. Once, before anything is opened.
    pub fn use_in_this_process(self) -> Result<()> {
        self.check()?;
        OF_THIS_PROCESS.set(self).map_err(|_| Error::internal("the object store's settings were set before"))
    }

    /// Those of this process.
    pub(super) fn of_this_process() -> Self {
        OF_THIS_PROCESS.get().cloned().unwrap_or_default()
    }

    fn check(&self) -> Result<()> {
        let Some(endpoint) = &self.endpoint else { return Ok(()) };
        let host = endpoint.split_once("://").filter(|(scheme, _)| matches!(*scheme, "http" | "https"));
        match host.filter(|(_, host)| !host.trim_matches('/').is_empty()) {
            Some((_, host)) if host.contains('@') => {
                let message = "the endpoint of the object store has credentials in it";
                Err(Error::invalid(message).mend("Put them into the file that s3-credentials names."))
            }
            Some(_) => Ok(()),
            None => Err(Error::invalid(format!("'{endpoint}' is no endpoint of an object store"))
                .mend("Name a URL, such as https://minio.example.com:9000.")),
        }
    }

    /// Settings of a bucket by the names of the environment: these, and of the environment's what they don't say.
    pub(super) fn over(
        &self,
        environment: impl IntoIterator<Item = (String, String)>,
        bucket: &str,
    ) -> Vec<(String, String)> {
        let is_said = |name: &str| {
            use AmazonS3ConfigKey::{
                AccessKeyId, DefaultRegion, Endpoint, Region, S3Endpoint, SecretAccessKey, SkipSignature, Token,
                VirtualHostedStyleRequest,
            };
            match name.to_ascii_lowercase().parse() {
                Ok(Endpoint | S3Endpoint) => self.endpoint.is_some(),
                Ok(Region | DefaultRegion) => self.region.is_some(),
                Ok(VirtualHostedStyleRequest) => self.addressing.is_some(),
                // A token belongs to its key.
                Ok(AccessKeyId | SecretAccessKey | Token | SkipSignature) => self.credentials.is_some(),
                _ => false,
            }
        };
        let mut all: Vec<_> = environment.into_iter().filter(|(name, _)| !is_said(name)).collect();
        let credentials = self.credentials.as_ref();
        let said = [
            ("AWS_ENDPOINT_URL", self.endpoint_of(bucket)),
            ("AWS_REGION", self.region.clone()),
            (
                "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
                self.addressing.map(|of| (of == S3Addressing::VirtualHost).to_string()),
            ),
            ("AWS_ACCESS_KEY_ID", credentials.map(|of| of.access_key_id.clone())),
            ("AWS_SECRET_ACCESS_KEY", credentials.map(|of| of.secret_access_key.clone())),
            ("AWS_SESSION_TOKEN", credentials.and_then(|of| of.session_token.clone())),
        ];
        all.extend(said.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        all
    }

    /// The store's client does not put the bucket into the host of an endpoint by itself.
    fn endpoint_of(&self, bucket: &str) -> Option<String> {
        let endpoint = self.endpoint.as_ref()?.trim_end_matches('/');
        match (self.addressing, endpoint.split_once("://")) {
            (Some(S3Addressing::VirtualHost), Some((scheme, host))) => Some(format!("{scheme}://{bucket}.{host}")),
            _ => Some(endpoint.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# made by a tool\n[other]\naws_access_key_id = not-this\n\n[default]\n\
                        aws_access_key_id = the-key\naws_secret_access_key=the=secret/+\nregion = eu\n";

    fn over(settings: &S3Settings, environment: &[(&str, &str)]) -> Vec<String> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let mut all: Vec<String> =
            settings.over(environment, "bucket").iter().map(|(name, value)| format!("{name}={value}")).collect();
        all.sort();
        all
    }

    #[test]
    fn what_is_set_wins_over_the_environment_and_the_rest_is_the_environments() {
        let environment = [
            ("AWS_ACCESS_KEY_ID", "old-key"),
            ("AWS_ENDPOINT_URL_S3", "http://old"),
            ("AWS_REGION", "old-region"),
            ("AWS_SECRET_ACCESS_KEY", "old-secret"),
            ("AWS_SESSION_TOKEN", "old-token"),
        ];
        let as_it_is: Vec<String> = environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(over(&S3Settings::default(), &environment), as_it_is);
        let endpoint = Some("https://store:9000/".to_owned());
        let credentials = Some(S3Credentials::parse(FILE).unwrap());
        let some = S3Settings { endpoint: endpoint.clone(), credentials, ..S3Settings::default() };
        // The old token would not fit the new key.
        let keys = ["AWS_ACCESS_KEY_ID=the-key", "AWS_ENDPOINT_URL=https://store:9000", "AWS_REGION=old-region"];
        assert_eq!(over(&some, &environment), [&keys[..], &["AWS_SECRET_ACCESS_KEY=the=secret/+"]].concat());
        let by = |addressing| {
            let (addressing, region) = (Some(addressing), Some("eu".to_owned()));
            over(&S3Settings { endpoint: endpoint.clone(), addressing, region, credentials: None }, &environment[2..3])
        };
        let style = |is: bool| format!("AWS_VIRTUAL_HOSTED_STYLE_REQUEST={is}");
        let region = || "AWS_REGION=eu".to_owned();
        let path = vec!["AWS_ENDPOINT_URL=https://store:9000".to_owned(), region(), style(false)];
        assert_eq!(by(S3Addressing::Path), path);
        let host = vec!["AWS_ENDPOINT_URL=https://bucket.store:9000".to_owned(), region(), style(true)];
        assert_eq!(by(S3Addressing::VirtualHost), host);
    }

    #[test]
    fn a_wrong_file_is_named_and_nothing_of_it_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials");
        let said = |text: &str| {
            fs::write(&path, text).unwrap();
            S3Credentials::read(&path).unwrap_err().to_string()
        };
        for (text, why) in [
            ("[default]\naws_access_key_id = hush\nhush\n", "line 3 is not KEY = VALUE"),
            ("[default]\naws_access_key_id = hush\n", "no aws_secret_access_key in its section [default]"),
            ("[else]\naws_access_key_id = hush\naws_secret_access_key = hush", "no aws_access_key_id in its section"),
            ("[default]\naws_access_key_id = hush\naws_access_key_id = hush", "line 3 says again"),
        ] {
            let said = said(text);
            assert!(said.contains(why) && said.contains("credentials") && !said.contains("hush"), "{said}");
        }
        let missing = S3Credentials::read(&folder.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("none can't be read") && missing.contains("docs/checkpoints.md"), "{missing}");
        fs::write(&path, FILE).unwrap();
        let credentials = Some(S3Credentials::read(&path).unwrap());
        let shown = format!("{:?}", S3Settings { credentials, ..S3Settings::default() });
        assert!(!shown.contains("the-key") && !shown.contains("secret/"), "{shown}");
    }

    #[test]
    fn an_endpoint_is_a_url_without_secrets() {
        let checked =
            |endpoint: &str| S3Settings { endpoint: Some(endpoint.to_owned()), ..S3Settings::default() }.check();
        for wrong in ["", "store:9000", "ftp://store", "https://", "https:///"] {
            assert!(checked(wrong).unwrap_err().to_string().contains("is no endpoint"), "{wrong}");
        }
        let error = checked("https://key:hush@store").unwrap_err().to_string();
        assert!(error.contains("s3-credentials") && !error.contains("hush"), "{error}");
        assert!(checked("http://127.0.0.1:9000").is_ok());
    }
}
