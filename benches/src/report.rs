//! How figures are told: medians with their spread, tables, and the machine they were taken on.

use std::fmt;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// Repeated measurements of one thing. The median is the figure; minimum and maximum show how far to trust it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The middle one (mean of the middle two).
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Sample {
    /// `None` without measurements.
    ///
    /// ```
    /// # use kvtier_benches::report::Sample;
    /// let sample = Sample::of(vec![3.0, 100.0, 1.0]).unwrap();
    /// assert_eq!((sample.min, sample.median, sample.max), (1.0, 3.0, 100.0));
    /// assert_eq!(Sample::of(vec![]), None);
    /// ```
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { median: (low + high) / 2.0, min, max })
    }

    /// The same measurements in another, reciprocal unit (time per block into blocks per time).
    #[must_use]
    pub fn inverse(&self, numerator: f64) -> Self {
        Self { median: numerator / self.median, min: numerator / self.max, max: numerator / self.min }
    }
}

/// Prints `median (min..max)`; the precision applies to all three, 1 by default.
impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(1);
        write!(f, "{:.digits$} ({:.digits$}..{:.digits$})", self.median, self.min, self.max)
    }
}

/// A table that reads well in a terminal and is valid Markdown, so that a printed result can be checked in.
/// The first column is text, the others are figures.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column titles.
    #[must_use]
    pub fn new(titles: &[&str]) -> Self {
        Self { rows: vec![titles.iter().map(ToString::to_string).collect()] }
    }

    /// Adds a row. Missing cells are empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|r| r.get(column))
                .map(|c| c.chars().count())
                .max()
                .unwrap_or(0)
                .max(2)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (number, row) in self.rows.iter().enumerate() {
            for (column, width) in widths.iter().enumerate() {
                let cell = row.get(column).map_or("", String::as_str);
                if column == 0 { write!(f, "| {cell:<width$} ")? } else { write!(f, "| {cell:>width$} ")? }
            }
            writeln!(f, "|")?;
            if number == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let (dashes, end) = ("-".repeat(width + 1), if column == 0 { "-" } else { ":" });
                    write!(f, "|{dashes}{end}")?;
                }
                writeln!(f, "|")?;
            }
        }
        Ok(())
    }
}

/// What a figure depends on beside the code. No host name, no path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Processor model.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Runnable tasks over the last minute, this command included: far above 1 means that figures of
    /// single-core work were disturbed.
    pub load: String,
    /// Kernel name and release.
    pub kernel: String,
    /// Commit that this was built from, if the build said so; else that of the current directory.
    /// `-dirty` when there were local changes.
    pub commit: String,
    /// `release` or `debug`. Figures of a debug build mean nothing.
    pub build: &'static str,
}

impl Machine {
    /// Asks the system; what it does not tell is `unknown`.
    #[must_use]
    pub fn here() -> Self {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        });
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok();
        let load = std::fs::read_to_string("/proc/loadavg").ok();
        let load = load.as_deref().and_then(|text| text.split(' ').next());
        Self {
            load: load.unwrap_or("unknown").to_owned(),
            cpu: cpu.unwrap_or_else(|| format!("unknown {}", std::env::consts::ARCH)),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: format!("{} {}", std::env::consts::OS, release.as_deref().unwrap_or("unknown").trim()),
            commit: commit().unwrap_or_else(|| "unknown".to_owned()),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
        }
    }
}

/// Today in UTC, as 2026-01-31. Howard Hinnant's days_from_civil the other way round.
pub(crate) fn today() -> String {
    let since = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    date(since / 86_400)
}

/// The day that is so many days after 1 January 1970.
fn date(days: u64) -> String {
    // Years begin in March, so that the day that comes and goes is the last one.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day:02}", 400 * era + year + next)
}

/// As given when this was built (a binary is carried to other machines), or of the current directory.
fn commit() -> Option<String> {
    if let Some(built) = option_env!("KVTIER_COMMIT") {
        return Some(built.to_owned());
    }
    let args = ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"];
    let out = Command::new("git").args(args).output().ok().filter(|out| out.status.success())?;
    Some(String::from_utf8(out.stdout).ok()?.trim().to_owned())
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cores, load, kernel, commit, build } = self;
        write!(f, "{cpu}, {cores} cores, load {load}, {kernel}, commit {commit}, {build} build")?;
        if *build == "debug" {
            write!(f, "\nFigures of a debug build mean nothing: run it with --release.")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_of_an_even_number_and_its_inverse() {
        let sample = Sample::of(vec![10.0, 20.0, 40.0, 50.0]).unwrap();
        assert_eq!(sample.median, 30.0);
        let rate = sample.inverse(1000.0);
        assert_eq!((rate.min, rate.max), (20.0, 100.0));
        assert_eq!(format!("{sample:.0}"), "30 (10..50)");
    }

    #[test]
    fn table_is_aligned_markdown() {
        let mut table = Table::new(&["name", "ns"]);
        table.row(["kvtier".into(), "7.5".into()]);
        table.row(["a very long one".into()]);
        let text = table.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "| name            |  ns |");
        assert_eq!(lines[1], "|-----------------|----:|");
        assert_eq!(lines[2], "| kvtier          | 7.5 |");
        assert_eq!(lines[3], "| a very long one |     |");
    }

    #[test]
    fn days_have_dates() {
        for (days, expected) in
            [(0, "1970-01-01"), (11_016, "2000-02-29"), (11_017, "2000-03-01"), (20_453, "2025-12-31")]
        {
            assert_eq!(date(days), expected);
        }
    }

    #[test]
    fn machine_names_no_host() {
        let machine = Machine::here();
        assert!(machine.cores > 0);
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        // A host named like a word of the facts themselves ("linux") proves nothing.
        if host.trim().len() > 6 {
            assert!(!machine.to_string().contains(host.trim()));
        }
    }
}
