//! `tidemill certs`: an authority and a certificate for all processes of a cluster, for trying TLS. Where it matters, each
//! process has a certificate of its own, and the authority's key is not on its machine.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use tidemill_core::Error;
use tidemill_core::time::{Clock as _, SystemClock};
use tidemill_rpc::tls::DOMAIN;
use time::{Duration, OffsetDateTime};

use super::build::say;
use crate::args::CertsArgs;
use crate::failure::Outcome;

const FILES: [&str; 4] = ["authority.pem", "authority.key", "cluster.pem", "cluster.key"];

pub fn run(args: &CertsArgs) -> Outcome {
    let folder = args.folder.as_path();
    fs::create_dir_all(folder).with_context(|| format!("the folder {} can't be made", folder.display()))?;
    if let Some(there) = FILES.iter().map(|name| folder.join(name)).find(|path| path.exists()) {
        return Err(Error::invalid(format!("{} is there already", there.display()))
            .mend("Name another folder, or delete the certificates there if nothing uses them.")
            .into());
    }
    let [authority, authority_key, cluster, cluster_key] = make(&args.names, args.days)?;
    write(folder, "authority.pem", &authority, 0o644)?;
    write(folder, "authority.key", &authority_key, 0o600)?;
    write(folder, "cluster.pem", &cluster, 0o644)?;
    write(folder, "cluster.key", &cluster_key, 0o600)?;
    say("made", &format!("an authority and a certificate in {}, good for {} days", folder.display(), args.days));
    let file = |name: &str| folder.join(name).display().to_string();
    let (authority, cluster, key) = (file("authority.pem"), file("cluster.pem"), file("cluster.key"));
    say("processes", &format!("--tls-authority {authority} --tls-certificate {cluster} --tls-key {key}"));
    say(
        "the api",
        &format!("--rest-certificate {cluster} --rest-key {key}; for those who ask it: --authority {authority}"),
    );
    Ok(())
}

/// Certificate and key of the authority, then of the cluster; PEM.
fn make(names: &[String], days: u32) -> anyhow::Result<[String; 4]> {
    let now = OffsetDateTime::from_unix_timestamp(SystemClock.now().0 / 1_000)?;
    // Clocks of machines differ a little.
    let (from, until) = (now - Duration::hours(1), now + Duration::days(i64::from(days)));
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "tidemill authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (from, until);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

    let here = [DOMAIN, "localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let names: Vec<String> = here.into_iter().chain(names.iter().cloned()).collect();
    let mut params = CertificateParams::new(names).context("a --name is no host name and no address")?;
    params.distinguished_name.push(DnType::CommonName, DOMAIN);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    (params.not_before, params.not_after) = (from, until);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &authority)?;
    Ok([authority.pem(), authority.key().serialize_pem(), certificate.pem(), key.serialize_pem()])
}

fn write(folder: &Path, name: &str, text: &str, mode: u32) -> anyhow::Result<()> {
    let path = folder.join(name);
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("{} can't be written", path.display()))
}
