//! Which uploads were begun and neither completed nor aborted: what attempts that died leave behind, which costs money and
//! which no listing of objects shows.
//!
//! The object store's client has no such request, so it is signed with it and sent here.

use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;
use object_store::signer::{Method, SignedUrlOptions, Signer as _};
use serde::Deserialize;

use super::{CONNECT_LIMIT, REQUEST_LIMIT, S3, below, wait};
use crate::{BlobError, Trouble, at_path};

/// How long a signed request is good for; the clocks of both sides may differ by some of it.
const SIGNED_FOR: Duration = Duration::from_secs(15 * 60);

/// An upload that was begun, and neither completed nor aborted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Of its object, relative to the location.
    pub path: String,
    /// The store's name of the upload.
    pub id: String,
}

impl S3 {
    /// The unfinished uploads below this location. Some stores (MinIO) answer none unless the whole key is named.
    pub fn unfinished(&self) -> Result<Vec<Unfinished>, BlobError> {
        let mut found = Vec::new();
        let mut after = Some((String::new(), String::new()));
        while let Some((key, id)) = after {
            let page = match self.unfinished_page(&key, &id)? {
                Some(page) => page,
                // By the key alone it is nearly the same: no two uploads of ours have one key.
                None => self.unfinished_page(&key, "")?.unwrap_or_default(),
            };
            let named = page.uploads.into_iter();
            found
                .extend(named.filter_map(|u| Some(Unfinished { path: below(&self.prefix, &u.key)?, id: u.upload_id })));
            after = page.is_truncated.then_some((page.next_key_marker, page.next_upload_id_marker));
        }
        Ok(found)
    }

    /// What comes after these markers. `None`: the store refuses that of the upload, as some do once it has ended, and
    /// versitygw always.
    fn unfinished_page(&self, key: &str, id: &str) -> Result<Option<Page>, BlobError> {
        let prefix = if self.prefix.as_ref().is_empty() { String::new() } else { format!("{}/", self.prefix) };
        let query = [("uploads", ""), ("prefix", &prefix), ("key-marker", key), ("upload-id-marker", id)];
        let given = query.into_iter().filter(|(name, value)| *name == "uploads" || !value.is_empty());
        let options = SignedUrlOptions::new().with_query(given);
        let store = Arc::clone(&self.store);
        let url =
            wait(async move { store.signed_url_opts(Method::GET, &Path::default(), SIGNED_FOR, &options).await })?;
        let url = url.map_err(|e| self.failed("listing the uploads of", "", &e))?;
        let whole = at_path(&self.location, "");
        let failed = move |trouble, why: &dyn std::fmt::Display| BlobError {
            trouble,
            in_doubt: false,
            message: format!("listing the uploads of '{whole}': {why}"),
        };
        let answer = wait(async move {
            let client = reqwest::Client::builder().timeout(REQUEST_LIMIT).connect_timeout(CONNECT_LIMIT).build()?;
            let answer = client.get(url).send().await?;
            Ok::<_, reqwest::Error>((answer.status(), answer.text().await?))
        })?;
        // The address has the signature in it.
        let (status, text) = answer.map_err(|e| failed(Trouble::Unavailable, &e.without_url()))?;
        if status == reqwest::StatusCode::BAD_REQUEST && !id.is_empty() {
            return Ok(None);
        }
        if !status.is_success() {
            let trouble = match status.as_u16() {
                401 | 403 => Trouble::Denied,
                _ if text.contains("NoSuchBucket") => Trouble::NoSuchPlace,
                404 | 405 | 501 => Trouble::Unfit,
                _ => Trouble::Unavailable,
            };
            return Err(failed(trouble, &status));
        }
        quick_xml::de::from_str(&text).map(Some).map_err(|e| failed(Trouble::Unfit, &e))
    }
}

/// The answer, as the standard has it.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_key_marker: String,
    #[serde(default)]
    next_upload_id_marker: String,
    #[serde(default, rename = "Upload")]
    uploads: Vec<Named>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    key: String,
    upload_id: String,
}
