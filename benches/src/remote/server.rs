//! A Redis of the benchmark's own, and redis-benchmark on it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kv_tiers::remote::{Limits, OpenError, RedisConfig, RedisStore, Servers};

use super::{Direction, RemoteBenchError};
use crate::ByteSize;

/// A server that writes nothing to disk, killed when dropped.
pub(super) struct Server {
    process: Child,
    port: u16,
}

fn failed(what: &str, error: impl std::fmt::Display) -> RemoteBenchError {
    RemoteBenchError::Redis(format!("{what}: {error}"))
}

impl Server {
    pub(super) fn start() -> Result<Self, RemoteBenchError> {
        let free = || TcpListener::bind("127.0.0.1:0")?.local_addr();
        let port = free().map_err(|e| failed("finding a port", e))?.port();
        let process = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string()])
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|e| failed("starting redis-server", e))?;
        let server = Self { process, port };
        let end = Instant::now() + Duration::from_secs(20);
        while let Err(error) = TcpStream::connect(("127.0.0.1", port)) {
            if Instant::now() > end {
                return Err(failed("waiting for redis-server", error));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    pub(super) fn store(&self, limits: Limits) -> Result<RedisStore, OpenError> {
        RedisStore::open(RedisConfig {
            servers: Servers::One(format!("redis://127.0.0.1:{}", self.port)),
            ttl: Duration::from_secs(86_400),
            root_certificate: None,
            limits,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// redis-benchmark with values of one size.
pub(super) struct Limit<'a> {
    pub(super) server: &'a Server,
    pub(super) value: ByteSize,
    /// Different keys, of which each request takes any.
    pub(super) keys: u64,
    /// Connections, each with one request at a time.
    pub(super) calls: u32,
}

/// What the limit does.
pub(super) const fn how(direction: Direction) -> &'static str {
    match direction {
        Direction::Get => "redis-benchmark: GET",
        Direction::Put => "redis-benchmark: SET",
    }
}

impl Limit<'_> {
    /// Writes every key, so that no GET finds nothing.
    pub(super) fn fill(&self) -> Result<(), RemoteBenchError> {
        let fill = || -> std::io::Result<()> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.server.port))?;
            let value = vec![b'x'; self.value.0 as usize];
            for key in 0..self.keys {
                let head = format!("*3\r\n$3\r\nSET\r\n$16\r\nkey:{key:012}\r\n${}\r\n", value.len());
                stream.write_all(head.as_bytes())?;
                stream.write_all(&value)?;
                stream.write_all(b"\r\n")?;
                let mut answer = [0; 5];
                stream.read_exact(&mut answer)?;
                if answer != *b"+OK\r\n" {
                    return Err(std::io::Error::other("the server refused a value"));
                }
            }
            Ok(())
        };
        fill().map_err(|e| failed("writing values", e))
    }

    /// Requests that take about that long.
    pub(super) fn requests(&self, direction: Direction, time: Duration) -> Result<u64, RemoteBenchError> {
        let trial = 64 * u64::from(self.calls);
        Ok(self.requests_at(self.measure(direction, trial)?, time))
    }

    /// The same at a known rate in bytes per second.
    pub(super) fn requests_at(&self, rate: f64, time: Duration) -> u64 {
        ((rate / self.value.0 as f64 * time.as_secs_f64()) as u64).max(8 * u64::from(self.calls))
    }

    /// Bytes per second.
    pub(super) fn measure(&self, direction: Direction, requests: u64) -> Result<f64, RemoteBenchError> {
        let test = match direction {
            Direction::Get => "get",
            Direction::Put => "set",
        };
        let out = Command::new("redis-benchmark")
            .args(["-h", "127.0.0.1", "--csv", "-t", test, "-p", &self.server.port.to_string()])
            .args(["-c", &self.calls.to_string(), "-n", &requests.to_string()])
            .args(["-d", &self.value.0.to_string(), "-r", &self.keys.to_string()])
            .output()
            .map_err(|e| failed("starting redis-benchmark", e))?;
        let text = String::from_utf8_lossy(&out.stdout);
        let rate =
            per_second(&text, test).ok_or_else(|| failed("redis-benchmark reported no rate", &text))?;
        Ok(rate * self.value.0 as f64)
    }
}

/// From a report in CSV: `"SET","1234.50",...`.
fn per_second(text: &str, test: &str) -> Option<f64> {
    let unquoted = |field: &str| field.trim_matches('"').to_owned();
    let line = text.lines().map(|line| line.split(',').map(unquoted).collect::<Vec<_>>());
    let rate =
        line.into_iter().find(|fields| fields.first().is_some_and(|f| f.eq_ignore_ascii_case(test)))?;
    rate.get(1)?.parse().ok().filter(|rate| *rate > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_and_no_rate_is_no_measurement() {
        let text = "\"test\",\"rps\",\"avg_latency_ms\"\n\"SET\",\"9803.92\",\"0.054\"\n";
        assert_eq!(per_second(text, "set"), Some(9803.92));
        for (text, test) in [(text, "get"), ("", "set"), ("\"SET\",\"0.00\"", "set"), ("\"SET\"", "set")] {
            assert_eq!(per_second(text, test), None, "{text}");
        }
    }
}
