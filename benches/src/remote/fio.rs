//! The limit of a shared directory: fio with a file for each value.
//!
//! Puts: a new file is made, written with one call, synced and closed for each value; older files are unlinked, as
//! they are where the store renames over them. fio pays for no rename, no sync of the directory and no checksum.
//! Gets: each file is opened and read with one call through the page cache, as the store does; fio reads into one
//! buffer that stays in the processor's cache, and neither checks nor copies it.

use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::Direction;
use crate::ByteSize;

/// One directory.
pub(super) struct Fio<'a> {
    pub(super) dir: &'a Path,
    pub(super) value: ByteSize,
    pub(super) files: u64,
    pub(super) jobs: u32,
    pub(super) time: Duration,
}

/// fio did not measure.
#[derive(Debug, thiserror::Error)]
pub enum FioFailed {
    /// It is not there or cannot be started.
    #[error("fio, the limit of a directory, cannot be started: {0}; install the package fio")]
    Start(#[from] io::Error),
    /// It ended with an error, or its report has no rate.
    #[error("fio failed: {0}")]
    Failed(String),
}

/// What the limit does.
pub(super) const fn how(direction: Direction) -> &'static str {
    match direction {
        Direction::Get => "fio: open, read, close",
        Direction::Put => "fio: create, write, fsync, close",
    }
}

impl Fio<'_> {
    fn files_of_a_job(&self) -> u64 {
        self.files.div_ceil(u64::from(self.jobs))
    }

    /// Makes the files that are read.
    pub(super) fn fill(&self) -> Result<(), FioFailed> {
        self.run("get", "write", &["--loops=1".to_owned()]).map(drop)
    }

    /// Bytes per second.
    pub(super) fn measure(&self, direction: Direction) -> Result<f64, FioFailed> {
        let time = [format!("--runtime={}ms", self.time.as_millis()), "--time_based".to_owned()];
        match direction {
            Direction::Get => self.run("get", "read", &time),
            Direction::Put => {
                let new = ["--fsync=1", "--create_on_open=1", "--unlink_each_loop=1"].map(str::to_owned);
                self.run("put", "write", &[&time[..], &new].concat())
            }
        }
    }

    /// Each name has files of its own.
    fn run(&self, name: &str, rw: &str, more: &[String]) -> Result<f64, FioFailed> {
        let files = self.files_of_a_job();
        let out = Command::new("fio")
            .current_dir(self.dir)
            .arg(format!("--name={name}"))
            .args(["--ioengine=psync", "--thread", "--group_reporting", "--output-format=json"])
            // Without it fio drops its files from the page cache, and empties what it would read.
            .args(["--invalidate=0", "--openfiles=1", "--file_service_type=random:1"])
            .arg(format!("--rw={rw}"))
            .arg(format!("--bs={}", self.value.0))
            .arg(format!("--filesize={}", self.value.0))
            .arg(format!("--size={}", files * self.value.0))
            .arg(format!("--nrfiles={files}"))
            .arg(format!("--numjobs={}", self.jobs))
            .args(more)
            .output()?;
        let text = String::from_utf8_lossy(&out.stdout);
        if !out.status.success() {
            let errors = String::from_utf8_lossy(&out.stderr);
            let why = errors.lines().chain(text.lines()).find(|line| !line.trim().is_empty());
            return Err(FioFailed::Failed(why.unwrap_or("it did not say why").trim().to_owned()));
        }
        rate(&text, rw).ok_or_else(|| FioFailed::Failed("there is no rate in its report".to_owned()))
    }
}

/// Warnings may stand before the JSON object.
fn rate(text: &str, rw: &str) -> Option<f64> {
    let json: Value = serde_json::from_str(text.get(text.find('{')?..)?).ok()?;
    json["jobs"][0][rw]["bw_bytes"].as_f64().filter(|rate| *rate > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_behind_warnings_and_no_rate_is_no_measurement() {
        let text =
            "fio: a warning\n{\"jobs\": [{\"read\": {\"bw_bytes\": 0}, \"write\": {\"bw_bytes\": 25}}]}";
        assert_eq!(rate(text, "write"), Some(25.0));
        for (text, rw) in [(text, "read"), ("", "read"), ("{}", "write")] {
            assert_eq!(rate(text, rw), None, "{text}");
        }
    }
}
