//! Real servers for tests, each in a folder of its own and gone with its handle. `scripts/setup all` installs them.
#![allow(clippy::panic, clippy::expect_used, reason = "a test that has no server fails here")]

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a server may take to answer.
const START_LIMIT: Duration = Duration::from_secs(30);

/// An object store that speaks S3, on a port of the loopback: versitygw over a folder, in which a bucket is a folder.
pub struct S3Server {
    process: Child,
    port: u16,
    folder: TempDir,
}

impl S3Server {
    const KEY: &str = "test-key";
    const SECRET: &str = "test-secret";

    /// Starts one that has a bucket.
    pub fn start(bucket: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the server");
        fs::create_dir(folder.path().join(bucket)).expect("a folder for the bucket");
        let port = free_port();
        let process = Command::new(installed("versitygw"))
            .env("ROOT_ACCESS_KEY", Self::KEY)
            .env("ROOT_SECRET_KEY", Self::SECRET)
            .args(["--port", &format!("127.0.0.1:{port}"), "--quiet", "posix"])
            .arg(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("versitygw starts");
        let server = Self { process, port, folder };
        server.wait_for_answer();
        server
    }

    /// What a client needs, by the names of its environment.
    pub fn environment(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        let settings = [
            ("AWS_ACCESS_KEY_ID", Self::KEY),
            ("AWS_SECRET_ACCESS_KEY", Self::SECRET),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", &endpoint),
        ];
        settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    /// Where the objects of a bucket are, by their keys.
    pub fn folder(&self, bucket: &str) -> PathBuf {
        self.folder.path().join(bucket)
    }

    /// Where an object's bytes are, for a test that damages them.
    pub fn file(&self, bucket: &str, key: &str) -> PathBuf {
        self.folder.path().join(bucket).join(key)
    }

    fn wait_for_answer(&self) {
        let deadline = Instant::now() + START_LIMIT;
        while !answers(self.port) {
            assert!(Instant::now() < deadline, "versitygw does not answer on port {}", self.port);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn answers(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let asked = stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    asked.and_then(|()| stream.read(&mut [0; 16])).is_ok_and(|n| n > 0)
}

/// Another process may take it before the server does; then the server does not start, and the test says so.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("the port's address").port()
}

fn installed(name: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let program = cache.unwrap_or_default().join("tidemill/bin").join(name);
    assert!(program.is_file(), "{} is not there; scripts/setup all installs it", program.display());
    program
}
