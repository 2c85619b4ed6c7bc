//! A real `redis-server` (the Debian package of that name), on a port and in a directory of its own.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server, killed when dropped.
pub struct RedisServer {
    process: Child,
    port: u16,
    arguments: Vec<String>,
    dir: tempfile::TempDir,
}

/// A port that nobody listens on. Somebody else may take it first: then the server fails to start, and is tried again.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn spawn(dir: &Path, arguments: &[String]) -> Child {
    let started = Command::new("redis-server")
        .args(arguments)
        .current_dir(dir)
        .stdout(Stdio::null())
        .stdin(Stdio::null())
        .spawn();
    started.unwrap_or_else(|error| {
        panic!("cannot start redis-server ({error}): install the package redis-server")
    })
}

impl RedisServer {
    /// Starts one with more arguments, and waits until it answers.
    #[must_use]
    pub fn start(more: &[&str]) -> Self {
        Self::start_with("--port", more)
    }

    /// The same, speaking TLS only.
    #[must_use]
    pub fn start_tls(more: &[&str]) -> Self {
        Self::start_with("--tls-port", &[more, &["--port", "0"]].concat())
    }

    fn start_with(port_argument: &str, more: &[&str]) -> Self {
        for _ in 0..10 {
            let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
            // Nothing is written to disk: a restart has lost everything, as a cache may.
            let fixed = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"];
            let number = port.to_string();
            let arguments = [&fixed[..], &[port_argument, &number], more].concat();
            let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
            let process = spawn(dir.path(), &arguments);
            let mut server = Self { process, port, arguments, dir };
            if server.is_up() {
                return server;
            }
        }
        panic!("redis-server does not start");
    }

    /// Waits until somebody listens; false if the server ended instead.
    fn is_up(&mut self) -> bool {
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            if self.process.try_wait().unwrap().is_some() {
                return false;
            }
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("redis-server does not listen");
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Kills it (`kill -9`), and waits until it is gone.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again at the same port, empty.
    pub fn start_again(&mut self) {
        self.process = spawn(self.dir.path(), &self.arguments);
        assert!(self.is_up(), "redis-server does not start again");
    }

    /// Sends a command and returns what comes back first, raw.
    pub fn command(&self, words: &[&[u8]]) -> Vec<u8> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend(format!("${}\r\n", word.len()).into_bytes());
            request.extend_from_slice(word);
            request.extend(b"\r\n");
        }
        stream.write_all(&request).unwrap();
        // Until there is a whole line, and after a bulk header its bytes.
        let mut answer = Vec::new();
        let mut buffer = [0; 65_536];
        loop {
            let n = stream.read(&mut buffer).unwrap();
            answer.extend_from_slice(&buffer[..n]);
            let Some(line) = answer.windows(2).position(|w| w == b"\r\n") else {
                assert!(n > 0, "redis-server hung up");
                continue;
            };
            let bulk: Option<usize> =
                (answer[0] == b'$').then(|| std::str::from_utf8(&answer[1..line]).unwrap().parse().unwrap());
            if bulk.is_none_or(|len| answer.len() >= line + 4 + len) || n == 0 {
                return answer;
            }
        }
    }

    /// Sets strings behind every client's back, many at a time.
    pub fn set_all<'a>(&self, strings: impl IntoIterator<Item = (String, &'a [u8])>) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let (mut request, mut commands) = (Vec::new(), 0);
        let mut send = |request: &mut Vec<u8>, commands: &mut usize| {
            stream.write_all(request).unwrap();
            let mut answer = vec![0; *commands * 5];
            stream.read_exact(&mut answer).unwrap();
            assert!(answer.chunks(5).all(|ok| ok == b"+OK\r\n"), "redis-server refused a string");
            (*commands, *request) = (0, Vec::new());
        };
        for (name, value) in strings {
            let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{name}\r\n${}\r\n", name.len(), value.len());
            request.extend([head.as_bytes(), value, b"\r\n"].concat());
            commands += 1;
            if commands == 500 {
                send(&mut request, &mut commands);
            }
        }
        send(&mut request, &mut commands);
    }

    /// How many strings there are.
    #[must_use]
    pub fn strings(&self) -> u64 {
        let size = String::from_utf8(self.command(&[b"DBSIZE"])).unwrap();
        size.trim_start_matches(':').trim_end().parse().unwrap()
    }

    /// The bytes of a string.
    #[must_use]
    pub fn string(&self, name: &str) -> Vec<u8> {
        let answer = self.command(&[b"GET", name.as_bytes()]);
        let line = answer.windows(2).position(|w| w == b"\r\n").unwrap();
        answer[line + 2..answer.len() - 2].to_vec()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.kill();
        }
    }
}
