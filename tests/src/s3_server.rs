//! A real S3 server (`s3s-fs`) in a process of its own, on a port and in a directory of its own; and one that only
//! refuses.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use kv_tiers::remote::{Limits, RemoteKey, S3Config, S3Credentials};

/// The only bucket.
pub const BUCKET: &str = "blocks";
const KEY_ID: &str = "kvtier";
const SECRET: &str = "open sesame";

/// What a store must know that finds a server on this machine.
#[must_use]
pub fn config(port: u16) -> S3Config {
    S3Config {
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        region: "us-east-1".to_owned(),
        bucket: BUCKET.to_owned(),
        path_style: true,
        allow_http: true,
        credentials: S3Credentials::Given {
            key_id: KEY_ID.to_owned(),
            secret: SECRET.to_owned(),
            token: None,
        },
        root_certificate: None,
        limits: Limits::default(),
    }
}

/// The file that holds a block's object, below the bucket.
#[must_use]
pub fn object(key: &RemoteKey) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let RemoteKey { namespace, epoch, fingerprint, key } = key;
    let key = hex(&key.to_bytes());
    let shard = &key[..1];
    format!("kvtier-1/{shard}/{}/{:016x}/{}/{key}", hex(&namespace.0), epoch.0, hex(&fingerprint.0))
}

/// A server, killed when dropped.
pub struct S3Server {
    process: Child,
    port: u16,
    program: PathBuf,
    dir: tempfile::TempDir,
}

fn spawn(program: &Path, dir: &Path, port: u16) -> Option<(Child, u16)> {
    let mut process = Command::new(program)
        .arg(dir)
        .args([KEY_ID, SECRET, &port.to_string()])
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    match line.trim().parse() {
        Ok(port) => Some((process, port)),
        Err(_) => {
            process.wait().unwrap();
            None
        }
    }
}

impl S3Server {
    /// Starts one: `program` is this crate's `s3-server`. It has one bucket, and nothing in it.
    #[must_use]
    pub fn start(program: &str) -> Self {
        let (program, dir) = (PathBuf::from(program), tempfile::tempdir().unwrap());
        std::fs::create_dir(dir.path().join(BUCKET)).unwrap();
        let (process, port) = spawn(&program, dir.path(), 0).expect("the server starts");
        Self { process, port, program, dir }
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it keeps what is in the bucket.
    #[must_use]
    pub fn files(&self) -> PathBuf {
        self.dir.path().join(BUCKET)
    }

    /// Parts of uploads that have not ended.
    #[must_use]
    pub fn unfinished_parts(&self) -> usize {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        entries
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("part-"))
            .count()
    }

    /// Kills it (`kill -9`), and waits until it is gone.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again at the same port, with what it had.
    pub fn start_again(&mut self) {
        for _ in 0..1000 {
            if let Some((process, _)) = spawn(&self.program, self.dir.path(), self.port) {
                self.process = process;
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the S3 server does not start again");
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.kill();
        }
    }
}

/// Answers every request with what the script says, and the last of it again and again.
pub struct Script {
    port: u16,
    requests: Arc<AtomicU64>,
    closing: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Script {
    /// Whole answers, with their status lines.
    #[must_use]
    pub fn start(answers: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&requests);
        let closing = Arc::new(AtomicBool::new(false));
        let closed = Arc::clone(&closing);
        let thread = std::thread::spawn(move || {
            for connection in listener.incoming() {
                if closed.load(Ordering::Acquire) {
                    return;
                }
                let mut connection = connection.unwrap();
                // Whoever is cancelled in time has asked nothing.
                if !read_request(&mut connection) {
                    continue;
                }
                let n = usize::try_from(count.fetch_add(1, Ordering::Relaxed)).unwrap();
                let answer = answers.get(n).or(answers.last()).unwrap();
                // Whoever hung up has had enough.
                connection.write_all(answer.as_bytes()).unwrap_or_default();
            }
        });
        Self { port, requests, closing, thread: Some(thread) }
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many requests there were.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// A head, and the body that it announces. False for a connection that says nothing.
fn read_request(connection: &mut TcpStream) -> bool {
    let mut reader = BufReader::new(connection);
    let (mut line, mut body) = (String::new(), 0);
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return false;
    }
    while !line.trim().is_empty() {
        if let Some(length) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            body = length.trim().parse().unwrap();
        }
        line.clear();
        reader.read_line(&mut line).unwrap_or(0);
    }
    reader.read_exact(&mut vec![0; body]).is_ok()
}

impl Drop for Script {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Release);
        // Wakes the thread.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}
