//! Commands to be sent together, before anybody knows to whom.

use std::borrow::Cow;
use std::io::{IoSlice, Write};

use redis::Pipeline;

/// One argument.
pub(super) enum Word<'a> {
    /// Something short.
    Text(Cow<'static, str>),
    /// A value, which is not copied.
    Value(&'a [u8]),
}

impl From<&'static str> for Word<'_> {
    fn from(text: &'static str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Word<'_> {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl<'a> From<&'a [u8]> for Word<'a> {
    fn from(value: &'a [u8]) -> Self {
        Self::Value(value)
    }
}

impl Word<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Value(value) => value,
        }
    }
}

/// Bytes of strings in an answer that has none worth speaking of.
const SMALL: usize = 4 << 10;

struct Command<'a> {
    words: Vec<Word<'a>>,
    /// Bytes of the strings in its answer, at most. A longer answer is none.
    most: usize,
}

/// Some commands, each with one answer.
#[derive(Default)]
pub(super) struct Request<'a>(Vec<Command<'a>>);

impl<'a> Request<'a> {
    /// Adds a command with a short answer.
    pub(super) fn add(&mut self, words: impl IntoIterator<Item = Word<'a>>) {
        self.add_for(SMALL, words);
    }

    /// Adds a command whose answer has so many bytes at most.
    pub(super) fn add_for(&mut self, most: usize, words: impl IntoIterator<Item = Word<'a>>) {
        self.0.push(Command { words: words.into_iter().collect(), most });
    }

    /// Commands.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The longest answer to each command, in order.
    pub(super) fn longest_answers(&self) -> impl Iterator<Item = usize> {
        self.0.iter().map(|command| command.most)
    }

    /// For the client of a cluster, which copies every value.
    pub(super) fn pipeline(&self) -> Pipeline {
        let mut pipeline = Pipeline::new();
        for command in &self.0 {
            let mut words = command.words.iter();
            if let Some(Word::Text(name)) = words.next() {
                let command = pipeline.cmd(name);
                for word in words {
                    command.arg(word.bytes());
                }
            }
        }
        pipeline
    }

    /// As it goes over the wire.
    pub(super) fn encode(&self) -> Encoded<'_> {
        let mut encoded = Encoded { text: Vec::new(), values: Vec::new() };
        for command in &self.0 {
            encoded.head('*', command.words.len());
            for word in &command.words {
                encoded.head('$', word.bytes().len());
                match word {
                    Word::Text(text) => encoded.text.extend_from_slice(text.as_bytes()),
                    Word::Value(value) => encoded.values.push((encoded.text.len(), value)),
                }
                encoded.text.extend_from_slice(b"\r\n");
            }
        }
        encoded
    }
}

/// A request in the protocol: its text, and the values between.
pub(super) struct Encoded<'a> {
    text: Vec<u8>,
    /// Each behind so many bytes of text.
    values: Vec<(usize, &'a [u8])>,
}

impl Encoded<'_> {
    fn head(&mut self, kind: char, n: usize) {
        // Into memory, which takes everything.
        write!(self.text, "{kind}{n}\r\n").unwrap_or_default();
    }

    /// What is to be written, in order.
    pub(super) fn slices(&self) -> Vec<IoSlice<'_>> {
        let mut slices = Vec::with_capacity(2 * self.values.len() + 1);
        let mut rest = &self.text[..];
        let mut done = 0;
        for (behind, value) in &self.values {
            let (text, after) = rest.split_at(behind - done);
            slices.extend([IoSlice::new(text), IoSlice::new(value)]);
            (rest, done) = (after, *behind);
        }
        slices.push(IoSlice::new(rest));
        slices
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_encodings_are_the_same_bytes() {
        let values = [vec![0, 1, 2, 13, 10], Vec::new(), vec![7; 5000]];
        let mut request = Request::default();
        request.add(["EXISTS".into(), "a".to_owned().into()]);
        for value in &values {
            request.add(["SET".into(), "name".into(), Word::Value(value), "PX".into(), "5".into()]);
        }
        request.add_for(9, ["GET".into(), "name".into()]);
        let encoded: Vec<u8> = request.encode().slices().iter().flat_map(|slice| slice.to_vec()).collect();
        assert_eq!(encoded, request.pipeline().get_packed_pipeline());
        assert!(
            encoded
                .starts_with(b"*2\r\n$6\r\nEXISTS\r\n$1\r\na\r\n*5\r\n$3\r\nSET\r\n$4\r\nname\r\n$5\r\n\0")
        );
        assert_eq!(request.longest_answers().collect::<Vec<_>>(), [SMALL, SMALL, SMALL, SMALL, 9]);
    }
}
