//! The limit that the log is compared with: what else can move extents of the same size on the same files.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{Direction, threads};

/// One measurement. The files exist, and every byte of them was written before.
#[derive(Clone, Debug)]
pub(super) struct Task<'a> {
    /// Where the files are.
    pub(super) dir: &'a Path,
    /// Names in `dir`.
    pub(super) files: &'a [String],
    pub(super) direction: Direction,
    /// Bytes of one I/O.
    pub(super) extent: usize,
    /// I/Os in flight.
    pub(super) depth: u32,
    pub(super) time: Duration,
    /// Reads go to other places with another seed.
    pub(super) seed: u64,
}

/// Who sets the limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    /// fio with io_uring, registered buffers and files.
    Fio { version: String },
    /// [`threads`].
    Threads {
        /// Why not fio.
        why: String,
    },
}

/// fio did not measure.
#[derive(Debug, thiserror::Error)]
pub enum FioError {
    /// It is not there or cannot be started.
    #[error("fio: {0}")]
    Start(#[from] io::Error),
    /// It ended with an error.
    #[error("fio failed: {0}")]
    Failed(String),
    /// Its report is not what this program knows.
    #[error("fio's report has no rate in it; is its version older than 3?")]
    Report,
}

impl Limit {
    /// fio, if it is installed and can read a trial file in `dir` as it will have to.
    pub(super) fn choose(dir: &Path) -> io::Result<Self> {
        const TRIAL: usize = 64 << 10;
        let name = "trial".to_owned();
        std::fs::write(dir.join(&name), vec![1; TRIAL])?;
        let trial = Task {
            dir,
            files: std::slice::from_ref(&name),
            direction: Direction::Read,
            extent: TRIAL,
            depth: 1,
            time: Duration::from_millis(10),
            seed: 0,
        };
        let chosen = match fio(&trial) {
            Ok(report) => Self::Fio { version: report.version },
            Err(FioError::Start(e)) if e.kind() == ErrorKind::NotFound => {
                Self::Threads { why: "fio is not installed".into() }
            }
            Err(e) => Self::Threads { why: e.to_string() },
        };
        std::fs::remove_file(dir.join(name))?;
        Ok(chosen)
    }

    /// Bytes per second.
    pub(super) fn measure(&self, task: &Task<'_>) -> Result<f64, super::NvmeBenchError> {
        match self {
            Self::Fio { .. } => Ok(fio(task)?.bytes_per_second),
            Self::Threads { .. } => threads::measure(task).map_err(super::NvmeBenchError::Threads),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fio { version } => {
                write!(f, "{version} (io_uring, O_DIRECT, registered buffers, huge pages)")
            }
            Self::Threads { why } => {
                write!(
                    f,
                    "threads with pread and pwrite (O_DIRECT, one per unit of queue depth), because {why}"
                )
            }
        }
    }
}

struct Report {
    version: String,
    bytes_per_second: f64,
}

/// Runs fio. Names of files are relative, so that a colon in the path of the directory separates nothing.
fn fio(task: &Task<'_>) -> Result<Report, FioError> {
    let Task { dir, files, direction, extent, depth, time, seed } = task;
    let mut command = Command::new("fio");
    command
        .current_dir(dir)
        // Without huge pages, which the arena has too, fio moves large extents at half the rate.
        .env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
        .args(["--name=limit", "--ioengine=io_uring", "--fixedbufs", "--registerfiles", "--direct=1"])
        // Offsets as in the log: whole pages, not multiples of the extent.
        .args(["--ba=4096", "--norandommap", "--time_based", "--allow_file_create=0", "--output-format=json"])
        .arg(format!("--filename={}", files.join(":")))
        .arg(format!("--bs={extent}"))
        .arg(format!("--iodepth={depth}"))
        .arg(format!("--runtime={}ms", time.as_millis()))
        .arg(format!("--randseed={seed}"));
    match direction {
        Direction::Read => command.args(["--rw=randread", "--readonly"]),
        Direction::Write => command.arg("--rw=write"),
    };
    let out = command.output()?;
    let text = String::from_utf8_lossy(&out.stdout);
    if !out.status.success() {
        let errors = String::from_utf8_lossy(&out.stderr);
        let why = errors.lines().chain(text.lines()).find(|line| !line.trim().is_empty());
        return Err(FioError::Failed(why.unwrap_or("it did not say why").trim().to_owned()));
    }
    parse(&text, *direction).ok_or(FioError::Report)
}

/// Warnings may stand before the JSON object.
fn parse(text: &str, direction: Direction) -> Option<Report> {
    let json: Value = serde_json::from_str(text.get(text.find('{')?..)?).ok()?;
    let side = match direction {
        Direction::Read => "read",
        Direction::Write => "write",
    };
    let rate = json["jobs"][0][side]["bw_bytes"].as_f64().filter(|rate| *rate > 0.0)?;
    Some(Report { version: json["fio version"].as_str()?.to_owned(), bytes_per_second: rate })
}

/// The segment files of a log, by name.
pub(super) fn segment_files(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = PathBuf::from(entry?.file_name());
        if path.extension().is_some_and(|e| e == "kvt") {
            names.extend(path.to_str().map(str::to_owned));
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_behind_warnings() {
        let text = "fio: a warning\n{\"fio version\": \"fio-3.33\", \"jobs\": [{\"read\": {\"bw_bytes\": 0}, \
                    \"write\": {\"bw_bytes\": 2500000000}}]}";
        let report = parse(text, Direction::Write).unwrap();
        assert_eq!((report.version.as_str(), report.bytes_per_second), ("fio-3.33", 2.5e9));
        for (text, direction) in [(text, Direction::Read), ("", Direction::Read), ("{}", Direction::Write)] {
            assert!(parse(text, direction).is_none(), "no rate is no measurement: {text}");
        }
    }
}
