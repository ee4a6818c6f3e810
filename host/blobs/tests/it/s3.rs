//! The object store's own troubles.

use std::io::Write as _;

use tidemill_blobs::{Blobs, S3, Trouble};
use tidemill_test_servers::S3Server;

fn with(mut settings: Vec<(String, String)>, name: &str, value: &str) -> Vec<(String, String)> {
    settings.retain(|(known, _)| known != name);
    settings.push((name.to_owned(), value.to_owned()));
    settings
}

#[test]
fn a_bucket_that_is_not_there_is_an_error_and_not_an_empty_one() {
    let server = S3Server::start("bucket");
    let blobs = S3::with_settings("s3://bukcet/x", server.environment()).unwrap();
    let opened = blobs.open("log/1").err().unwrap();
    assert_eq!(opened.trouble, Trouble::NoSuchPlace, "{opened}");
    assert_eq!(blobs.list("log").unwrap_err().trouble, Trouble::NoSuchPlace);
    let put = blobs.put_new("log/1", b"x").unwrap_err();
    assert_eq!(put.trouble, Trouble::NoSuchPlace, "{put}");
    assert!(put.message.contains("s3://bukcet/x/log/1"), "{put}");
    let mut writer = blobs.create("files/1").unwrap();
    writer.write_all(b"x").unwrap();
    assert_eq!(writer.finish().unwrap_err().trouble, Trouble::NoSuchPlace);
}

#[test]
fn wrong_credentials_are_named_as_such() {
    let server = S3Server::start("bucket");
    let settings = with(server.environment(), "AWS_SECRET_ACCESS_KEY", "wrong");
    let blobs = S3::with_settings("s3://bucket", settings).unwrap();
    let error = blobs.put_new("log/1", b"x").unwrap_err();
    assert_eq!(error.trouble, Trouble::Denied, "{error}");
    assert!(!error.message.contains("wrong"), "a secret is never shown: {error}");
    // It was taken for a store that is not up, and asked again and again.
    assert_eq!(blobs.list("log").unwrap_err().trouble, Trouble::Denied);
}

#[test]
fn an_upload_that_is_dropped_leaves_nothing_to_read() {
    let server = S3Server::start("bucket");
    let blobs = S3::with_settings("s3://bucket/x", server.environment()).unwrap();
    let mut writer = blobs.create("files/1").unwrap();
    writer.write_all(&vec![7; 20 << 20]).unwrap();
    drop(writer);
    assert!(blobs.open("files/1").unwrap().is_none());
    assert!(blobs.list("files").unwrap().is_empty());
}

/// A page of the listing has a thousand.
#[test]
fn more_unfinished_uploads_than_a_page_has_are_all_found() {
    const UPLOADS: usize = 1_010;
    let server = S3Server::start("bucket");
    let blobs = S3::with_settings("s3://bucket/x", server.environment()).unwrap();
    let uploads = blobs.uploads(4);
    let mut begun: Vec<String> = (0..UPLOADS).map(|n| format!("part-{n:04}")).collect();
    for path in &begun {
        let mut upload = uploads.begin(path);
        upload.send(vec![1]).unwrap();
        upload.finish().unwrap();
    }
    let mut found: Vec<String> = blobs.unfinished().unwrap().into_iter().map(|upload| upload.path).collect();
    found.sort_unstable();
    begun.sort_unstable();
    assert_eq!(found, begun);
}

#[test]
fn a_url_without_a_bucket_is_refused() {
    for url in ["s3://", "s3:///prefix"] {
        let error = S3::with_settings(url, []).err().unwrap();
        assert!(error.to_string().contains("bucket"), "{error}");
    }
}
