//! A connection to one server, for large values.
//!
//! A value goes out from the memory where its record was built, and comes in to the memory where it stays until it
//! is verified. Between them and the system nothing is copied but what was read ahead, 16 KiB at most. (redis-rs
//! copies a value three times on its way out and twice on its way in: it is made for small ones.)
//!
//! One question at a time: whoever asks has the connection to itself, and closes it if it leaves early.

use std::future::Future;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;

use redis::{RedisError, RedisResult, Value};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::request::Request;
use crate::remote::buffers::{Buffer, Buffers};

/// What bytes go through.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Room for what is read ahead, and for the longest line.
const AHEAD: usize = 16 << 10;

/// Elements of one answer: a page of a scan, with room.
const MOST_ITEMS: usize = 1 << 16;

/// A page of a scan is a list with a list in it.
const DEPTH: u32 = 2;

/// A connection.
pub(super) struct Wire {
    stream: Box<dyn Stream>,
    ahead: Box<[u8]>,
    /// What of `ahead` was read and is not used yet.
    start: usize,
    end: usize,
    buffers: Arc<Buffers>,
}

/// What a server says to one command.
#[derive(Debug)]
pub(super) enum Answer {
    /// A string.
    Bytes(Buffer),
    /// Several things.
    Items(Vec<Answer>),
    /// A number, a word, nothing, or an error.
    Other(Value),
}

impl From<Value> for Answer {
    fn from(value: Value) -> Self {
        match value {
            Value::BulkString(bytes) => Self::Bytes(bytes.into()),
            Value::Array(items) => Self::Items(items.into_iter().map(Self::from).collect()),
            other => Self::Other(other),
        }
    }
}

/// Not the protocol, or more than was asked for: a broken server, or bytes that were changed on the way.
fn nonsense() -> RedisError {
    (redis::ErrorKind::Parse, "the server's answer makes no sense").into()
}

fn ended() -> RedisError {
    io::Error::from(ErrorKind::UnexpectedEof).into()
}

impl Wire {
    pub(super) fn new(stream: Box<dyn Stream>, buffers: Arc<Buffers>) -> Self {
        Self { stream, ahead: vec![0; AHEAD].into_boxed_slice(), start: 0, end: 0, buffers }
    }

    /// One answer for each command. After an error the connection is of no use.
    pub(super) async fn ask(&mut self, request: &Request<'_>) -> RedisResult<Vec<Answer>> {
        let encoded = request.encode();
        let mut slices = encoded.slices();
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            let n = self.stream.write_vectored(rest).await?;
            if n == 0 {
                return Err(io::Error::from(ErrorKind::WriteZero).into());
            }
            IoSlice::advance_slices(&mut rest, n);
        }
        self.stream.flush().await?;
        let mut answers = Vec::with_capacity(request.len());
        for mut most in request.longest_answers() {
            answers.push(self.answer(&mut most, DEPTH).await?);
        }
        // More than was asked for: it would answer the next question.
        if self.start < self.end { Err(nonsense()) } else { Ok(answers) }
    }

    /// `most`: bytes that it may still bring. `depth`: lists in lists that it may have.
    async fn answer(&mut self, most: &mut usize, depth: u32) -> RedisResult<Answer> {
        let (from, to) = self.line().await?;
        let line = self.ahead.get(from..to).unwrap_or_default();
        let number = || std::str::from_utf8(line.get(1..)?.strip_suffix(b"\r\n")?).ok()?.parse().ok();
        match line.first() {
            Some(b'$') if line == b"$-1\r\n" => Ok(Answer::Other(Value::Nil)),
            Some(b'$') => {
                let len: usize = number().filter(|len| *len <= *most).ok_or_else(nonsense)?;
                *most -= len;
                Ok(Answer::Bytes(self.bytes(len).await?))
            }
            Some(b'*') => {
                let len: usize = number().filter(|len| *len <= MOST_ITEMS).ok_or_else(nonsense)?;
                self.items(len, most, depth.checked_sub(1).ok_or_else(nonsense)?).await
            }
            Some(b'+' | b'-' | b':') => Ok(Answer::Other(redis::parse_redis_value(line)?)),
            _ => Err(nonsense()),
        }
    }

    fn items<'s>(
        &'s mut self,
        len: usize,
        most: &'s mut usize,
        depth: u32,
    ) -> Pin<Box<dyn Future<Output = RedisResult<Answer>> + Send + 's>> {
        Box::pin(async move {
            let mut items = Vec::new();
            for _ in 0..len {
                items.push(self.answer(most, depth).await?);
            }
            Ok(Answer::Items(items))
        })
    }

    /// The next line with its end, as a part of `ahead`.
    async fn line(&mut self) -> RedisResult<(usize, usize)> {
        loop {
            let unread = self.ahead.get(self.start..self.end).unwrap_or_default();
            if let Some(at) = unread.iter().position(|&byte| byte == b'\n') {
                let from = self.start;
                self.start += at + 1;
                return Ok((from, self.start));
            }
            self.ahead.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            let room = self.ahead.get_mut(self.end..).filter(|room| !room.is_empty()).ok_or_else(nonsense)?;
            match self.stream.read(room).await? {
                0 => return Err(ended()),
                n => self.end += n,
            }
        }
    }

    /// A string of that length and the end of its line.
    async fn bytes(&mut self, len: usize) -> RedisResult<Buffer> {
        let whole = len + 2;
        let mut buffer = self.buffers.take(whole);
        let there = whole.min(self.end - self.start);
        buffer.extend_from_slice(self.ahead.get(self.start..self.start + there).unwrap_or_default());
        self.start += there;
        while buffer.len() < whole {
            let missing = (whole - buffer.len()) as u64;
            if (&mut self.stream).take(missing).read_buf(&mut *buffer).await? == 0 {
                return Err(ended());
            }
        }
        if !buffer.ends_with(b"\r\n") {
            return Err(nonsense());
        }
        buffer.truncate(len);
        Ok(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::redis::request::Word;

    /// What a client makes of a server that says this, in pieces of so many bytes, to commands with these limits.
    fn said(bytes: &[u8], piece: usize, limits: &[usize]) -> RedisResult<Vec<Answer>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (ours, mut theirs) = tokio::io::duplex(piece);
            let mut request = Request::default();
            limits.iter().for_each(|&most| request.add_for(most, [Word::from("PING")]));
            let bytes = bytes.to_vec();
            let questions = limits.len() * b"*1\r\n$4\r\nPING\r\n".len();
            let server = tokio::spawn(async move {
                let mut asked = vec![0; questions];
                theirs.read_exact(&mut asked).await.unwrap();
                // The client may have left in the middle.
                theirs.write_all(&bytes).await.unwrap_or_default();
            });
            let answers = Wire::new(Box::new(ours), Arc::default()).ask(&request).await;
            server.await.unwrap();
            answers
        })
    }

    /// As text, strings in quotes.
    fn shown(answers: &[Answer]) -> String {
        let show = |answer: &Answer| match answer {
            Answer::Bytes(bytes) => format!("{:?}", String::from_utf8_lossy(bytes)),
            Answer::Items(items) => format!("[{}]", shown(items)),
            Answer::Other(value) => format!("{value:?}"),
        };
        answers.iter().map(show).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn answers_are_put_together_from_any_pieces() {
        let text =
            b"+OK\r\n$3\r\na\r\n\r\n$0\r\n\r\n:-7\r\n$-1\r\n*2\r\n$1\r\n0\r\n*2\r\n$2\r\nab\r\n$1\r\nc\r\n";
        for piece in 1..text.len() + 1 {
            let answers = said(text, piece, &[0, 3, 0, 0, 0, 4]).unwrap();
            assert_eq!(shown(&answers), r#"ok, "a\r\n", "", int(-7), nil, ["0", ["ab", "c"]]"#, "{piece}");
        }
        let large = [&b"$100000\r\n"[..], &vec![b'x'; 100_000], b"\r\n-ERR no\r\n"].concat();
        let answers = said(&large, 5000, &[100_000, 0]).unwrap();
        assert!(matches!(&answers[0], Answer::Bytes(bytes) if **bytes == vec![b'x'; 100_000]));
        assert!(matches!(&answers[1], Answer::Other(Value::ServerError(_))));
    }

    #[test]
    fn nonsense_is_an_error_that_spoils_the_connection() {
        for text in [
            &b"$4\r\nabcd\r\n"[..], // longer than was asked for
            b"*2\r\n$2\r\nab\r\n$2\r\nab\r\n",
            b"$3\r\nabcd\r\n",
            b"$-2\r\n",
            b"$99999999999999999999\r\n",
            b"*70000\r\n",
            b"*1\r\n*1\r\n*1\r\n:1\r\n",
            b"+OK\r\n+OK\r\n", // one too many
            b"?\r\n",
            b"\r\n",
            b"",
            b"$3\r\nab",
            &[b'+'; 20_000],
        ] {
            let error = said(text, 30_000, &[3]).map(|answers| shown(&answers)).unwrap_err();
            assert!(!super::super::link::leaves_link_good(&error), "{}", String::from_utf8_lossy(text));
        }
    }
}
