//! Reads request traces: one JSON object per line, as the public Mooncake and agent traces have them.
//!
//! ```text
//! {"timestamp": 27482, "input_length": 6758, "output_length": 500, "hash_ids": [46, 47, 48]}
//! ```
//!
//! `hash_ids` names the blocks of the prompt in order; equal ids are equal blocks *in equal context*, and
//! the last one may be only partly filled. The number of tokens per block is not in the file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Longer lines are refused rather than read into memory. The longest prompt that any public trace holds
/// (1 M tokens in 16-token blocks) needs less than 1 MiB.
const LONGEST_LINE: usize = 16 << 20;

/// One request of a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Arrival, in milliseconds since an origin that the trace chose.
    #[serde(rename = "timestamp")]
    pub timestamp_ms: u64,
    /// Tokens of the prompt.
    #[serde(rename = "input_length")]
    pub input_tokens: u32,
    /// Tokens generated.
    #[serde(rename = "output_length")]
    pub output_tokens: u32,
    /// Blocks of the prompt, first to last.
    pub hash_ids: Vec<u64>,
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub enum BadLine {
    /// Longer than 16 MiB.
    #[error("is longer than {} MiB; is this a trace?", LONGEST_LINE >> 20)]
    TooLong,
    /// Not text.
    #[error("is not UTF-8 (first bad byte at column {column})")]
    NotUtf8 {
        /// 1-based byte.
        column: usize,
    },
    /// Not a request.
    #[error(
        "is not a request: {what} (column {column}); expected whole, non-negative timestamp (ms), \
         input_length, output_length and a list hash_ids"
    )]
    NotARequest {
        /// What the JSON parser stumbled over.
        what: String,
        /// 1-based byte.
        column: usize,
    },
}

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be opened.
    #[error("cannot open trace {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Reading failed half-way.
    #[error("cannot read trace {} after line {line}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The last line that was read.
        line: u64,
        /// Why.
        source: io::Error,
    },
    /// A line is malformed. The reader can go on with the next one.
    #[error("{}, line {line}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// 1-based.
        line: u64,
        /// What is wrong.
        source: BadLine,
    },
}

/// Streams the requests of one trace in file order, one line in memory at a time.
///
/// Blank lines, CRLF, a byte-order mark and a missing final newline are accepted; unknown fields are ignored.
///
/// ```
/// use kvtier_benches::trace::TraceReader;
/// let text = r#"{"timestamp": 5, "input_length": 700, "output_length": 9, "hash_ids": [0, 1]}"#;
/// let request = TraceReader::new("inline", text.as_bytes()).next().unwrap()?;
/// assert_eq!((request.timestamp_ms, request.hash_ids.len()), (5, 2));
/// # Ok::<(), kvtier_benches::trace::TraceError>(())
/// ```
pub struct TraceReader<R> {
    path: PathBuf,
    input: R,
    buffer: Vec<u8>,
    line: u64,
    skip_bad: bool,
    skipped: u64,
    /// Set by an I/O error: what follows it is unknown.
    broken: bool,
}

impl TraceReader<BufReader<File>> {
    /// Opens a file.
    ///
    /// # Errors
    /// [`TraceError::Open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TraceError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| TraceError::Open { path: path.into(), source })?;
        Ok(Self::new(path, BufReader::with_capacity(256 << 10, file)))
    }
}

impl<R: BufRead> TraceReader<R> {
    /// Reads from `input`; `name` stands in errors where a path would.
    pub fn new(name: impl Into<PathBuf>, input: R) -> Self {
        let path = name.into();
        Self { path, input, buffer: Vec::new(), line: 0, skip_bad: false, skipped: 0, broken: false }
    }

    /// Counts malformed lines instead of returning them.
    #[must_use]
    pub fn skip_bad(mut self) -> Self {
        self.skip_bad = true;
        self
    }

    /// Malformed lines passed over so far.
    #[must_use]
    pub const fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Reads one line into the buffer. `None` at the end of the input.
    fn read_line(&mut self) -> io::Result<Option<Result<(), BadLine>>> {
        self.buffer.clear();
        let mut limited = (&mut self.input).take(LONGEST_LINE as u64 + 1);
        if limited.read_until(b'\n', &mut self.buffer)? == 0 {
            return Ok(None);
        }
        self.line += 1;
        if self.buffer.len() > LONGEST_LINE && self.buffer.last() != Some(&b'\n') {
            self.input.skip_until(b'\n')?;
            self.buffer = Vec::new();
            return Ok(Some(Err(BadLine::TooLong)));
        }
        Ok(Some(Ok(())))
    }

    /// The request in the buffer; `None` for a blank line.
    fn parse(&self) -> Result<Option<Request>, BadLine> {
        let text =
            str::from_utf8(&self.buffer).map_err(|e| BadLine::NotUtf8 { column: e.valid_up_to() + 1 })?;
        let text = if self.line == 1 { text.trim_start_matches('\u{feff}') } else { text };
        if text.trim_ascii().is_empty() {
            return Ok(None);
        }
        serde_json::from_str(text).map(Some).map_err(|e| {
            let full = e.to_string();
            let what = full.split(" at line ").next().unwrap_or(&full).to_owned();
            BadLine::NotARequest { what, column: e.column() }
        })
    }
}

impl<R: BufRead> Iterator for TraceReader<R> {
    type Item = Result<Request, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.broken {
            let parsed = match self.read_line() {
                Ok(None) => return None,
                Ok(Some(Ok(()))) => self.parse(),
                Ok(Some(Err(bad))) => Err(bad),
                Err(source) => {
                    self.broken = true;
                    return Some(Err(TraceError::Read { path: self.path.clone(), line: self.line, source }));
                }
            };
            match parsed {
                Ok(Some(request)) => return Some(Ok(request)),
                Ok(None) => {}
                Err(_) if self.skip_bad => self.skipped += 1,
                Err(source) => {
                    return Some(Err(TraceError::Line { path: self.path.clone(), line: self.line, source }));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SplitMix64;
    use std::error::Error as _;

    const GOOD: &str = r#"{"timestamp": 1, "input_length": 20, "output_length": 3, "hash_ids": [7, 8]}"#;

    fn read(text: impl AsRef<[u8]>) -> Vec<Result<Request, TraceError>> {
        TraceReader::new("t.jsonl", text.as_ref()).collect()
    }

    fn only_error(text: impl AsRef<[u8]>) -> String {
        let mut all = read(text);
        assert_eq!(all.len(), 1);
        let error = all.remove(0).expect_err("the line is bad");
        format!("{error}: {}", error.source().expect("says why"))
    }

    #[test]
    fn reads_what_it_writes() {
        let request = Request {
            timestamp_ms: u64::MAX,
            input_tokens: 9,
            output_tokens: 0,
            hash_ids: vec![0, u64::MAX],
        };
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(read(line).remove(0).unwrap(), request);
    }

    #[test]
    fn accepts_crlf_blank_lines_marks_unknown_fields_and_no_final_newline() {
        let extra = GOOD.replace("{", r#"{"type": "agent", "#);
        let text = format!("\u{feff}{GOOD}\r\n\r\n   \n{extra}\n\n{GOOD}");
        let all: Vec<_> = read(text).into_iter().map(Result::unwrap).collect();
        assert_eq!(all.len(), 3);
        assert!(all.iter().all(|r| r.hash_ids == [7, 8] && r.input_tokens == 20));
        assert!(read("").is_empty());
    }

    #[test]
    fn says_which_line_is_wrong_and_why() {
        let error = only_error(format!("{}\n", GOOD.replace("20", "-20")));
        assert!(error.starts_with("t.jsonl, line 1: "), "{error}");
        assert!(error.contains("integer `-20`, expected u32"), "{error}");
        assert!(only_error(GOOD.replace("1,", "1.5,")).contains("floating point `1.5`, expected u64"));
        assert!(only_error(GOOD.replace("20", "4294967296")).contains("expected u32"));
        assert!(only_error(GOOD.replace("8]", "18446744073709551616]")).contains("expected u64"));
        assert!(only_error(GOOD.replace("hash_ids", "ids")).contains("missing field `hash_ids`"));
        assert!(only_error(&GOOD[..40]).contains("EOF"));
        assert!(only_error("[1]").contains("not a request"));
        assert!(only_error(b"{\"timestamp\": \xff}").contains("not UTF-8 (first bad byte at column 15)"));

        let third = read(format!("{GOOD}\n\nnonsense\n{GOOD}\n"));
        assert_eq!(third.len(), 3, "the reader goes on after a bad line");
        assert!(matches!(third[1], Err(TraceError::Line { line: 3, .. })));
        assert!(third[2].is_ok());
    }

    #[test]
    fn skip_bad_counts() {
        let text = format!("{GOOD}\nx\n{}\n{GOOD}", GOOD.replace("3", "-3"));
        let mut reader = TraceReader::new("t", text.as_bytes()).skip_bad();
        assert_eq!(reader.by_ref().filter(Result::is_ok).count(), 2);
        assert_eq!(reader.skipped(), 2);
    }

    #[test]
    fn a_line_without_end_is_refused_without_being_held() {
        let text = io::repeat(b'7').take(3 * LONGEST_LINE as u64).chain(io::Cursor::new(format!("\n{GOOD}")));
        let mut reader = TraceReader::new("t", BufReader::new(text));
        let error = reader.next().expect("first line").expect_err("too long");
        assert!(matches!(error, TraceError::Line { line: 1, source: BadLine::TooLong, .. }));
        assert_eq!(reader.next().expect("second line").expect("good").hash_ids, [7, 8]);
        assert!(reader.next().is_none());
    }

    #[test]
    fn an_io_error_ends_the_trace() {
        struct Dying;
        impl Read for Dying {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("gone"))
            }
        }
        let text = format!("{GOOD}\n");
        let mut reader = TraceReader::new("t", BufReader::new(text.as_bytes().chain(Dying)));
        assert!(reader.next().expect("one request").is_ok());
        assert!(matches!(reader.next(), Some(Err(TraceError::Read { line: 1, .. }))));
        assert!(reader.next().is_none());
        let missing = TraceReader::open("no/such/trace.jsonl").err().expect("no such file");
        assert!(missing.to_string().contains("no/such/trace.jsonl"));
    }

    /// Cut, flip and repeat bytes of a good trace. `KVTIER_SOAK=1` makes it a hundred times longer.
    #[test]
    fn no_damage_makes_it_panic_or_stop() {
        let good = format!("{GOOD}\n{GOOD}\r\n\n{GOOD}\n");
        let rounds = if std::env::var_os("KVTIER_SOAK").is_some() { 500_000 } else { 5_000 };
        let mut rng = SplitMix64::new(42);
        for _ in 0..rounds {
            let mut bytes = good.clone().into_bytes();
            for _ in 0..rng.between(1, 6) {
                let at = rng.below(bytes.len() as u64) as usize;
                match rng.below(3) {
                    0 => bytes[at] = rng.next_u64() as u8,
                    1 => bytes.truncate(at.max(1)),
                    _ => bytes.extend_from_within(at..),
                }
            }
            let lines = bytes.split(|b| *b == b'\n').filter(|l| !l.trim_ascii().is_empty()).count();
            let mut reader = TraceReader::new("t", &bytes[..]).skip_bad();
            let good = reader.by_ref().inspect(|r| assert!(r.is_ok(), "bad lines are skipped")).count();
            assert_eq!(good as u64 + reader.skipped(), lines as u64, "every line is read or counted");
        }
    }
}
