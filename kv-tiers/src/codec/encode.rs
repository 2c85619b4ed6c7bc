//! Payload to pieces.

use super::levels::Levels;
use super::{Codec, Elements, GROUP, HEAD, Head, LEAST_RATIO, Method, PIECE};

/// Elements at the start of each piece from which it is judged whether encoding is worth while.
const SAMPLE: usize = 32 * GROUP;

/// Memory for one piece.
struct Scratch {
    /// High bytes of the elements, then the values that reach the next level.
    symbols: Vec<[u8; GROUP]>,
    rest: Vec<[u8; GROUP]>,
    low: Vec<u8>,
}

impl Scratch {
    fn for_elements(n: usize) -> Self {
        // A vector more than the values: that is what the last step may write.
        let groups = n.div_ceil(GROUP) + 1;
        Self { symbols: vec![[0; GROUP]; groups], rest: vec![[0; GROUP]; groups], low: vec![0; n] }
    }
}

impl Codec {
    /// Appends the encoded payload to `out`. False, and nothing appended, if it would not shrink by
    /// [`LEAST_RATIO`], which most often is known after a look at a sixteenth of it, or if it is no whole number of
    /// elements. Every processor writes the same bytes.
    pub fn encode(self, elements: Elements, payload: &[u8], out: &mut Vec<u8>) -> bool {
        let size = elements.bytes();
        let n = payload.len() / size;
        if n == 0 || !payload.len().is_multiple_of(size) {
            return false;
        }
        let most = (payload.len() as f64 / LEAST_RATIO) as usize;
        let mut scratch = Scratch::for_elements(n.min(PIECE));
        // A sample may be wrong a little.
        if self.estimate(elements, payload, &mut scratch) > 1.02 * most as f64 {
            return false;
        }
        let start = out.len();
        out.reserve(most);
        for piece in payload.chunks(PIECE * size) {
            self.piece(elements, piece, &mut scratch, out);
            if out.len() - start > most {
                out.truncate(start);
                return false;
            }
        }
        true
    }

    /// Bytes that the payload is likely to take.
    fn estimate(self, elements: Elements, payload: &[u8], scratch: &mut Scratch) -> f64 {
        let bytes = |piece: &[u8]| {
            let n = piece.len() / elements.bytes();
            let sample = n.min(SAMPLE);
            let piece = piece.get(..sample * elements.bytes()).unwrap_or_default();
            if is_filled(elements, piece) {
                return 0.0;
            }
            self.split(elements, piece, scratch);
            let symbols = scratch.symbols.get_mut(..sample.div_ceil(GROUP)).unwrap_or_default();
            mask(elements, symbols);
            let plain = f64::from(elements.plain_bits()) + 8.0 * (elements.bytes() - 1) as f64;
            (Levels::of(symbols).bits + plain) / 8.0 * n as f64
        };
        payload.chunks(PIECE * elements.bytes()).map(bytes).sum()
    }

    /// Takes high and low bytes apart, and fills the last group up, with no plain bits.
    fn split(self, elements: Elements, piece: &[u8], scratch: &mut Scratch) {
        let n = piece.len() / elements.bytes();
        let (symbols, filling) = scratch.symbols.as_flattened_mut().split_at_mut(n);
        if elements.bytes() == 2 {
            self.split_pairs(piece.as_chunks().0, symbols, &mut scratch.low);
        } else {
            symbols.iter_mut().zip(piece).for_each(|(symbol, byte)| *symbol = byte.rotate_left(1));
        }
        filling.fill(symbols.first().map_or(0, |first| first & coded(elements)));
    }

    fn piece(self, elements: Elements, piece: &[u8], scratch: &mut Scratch, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; HEAD]);
        let (method, levels) = if is_filled(elements, piece) {
            out.extend(piece.iter().take(elements.bytes()));
            (Method::Fill, 0)
        } else {
            match self.levels(elements, piece, scratch, out) {
                Some(levels) if out.len() - start - HEAD < piece.len() => (Method::Levels, levels),
                _ => {
                    out.truncate(start + HEAD);
                    out.extend_from_slice(piece);
                    (Method::Raw, 0)
                }
            }
        };
        let head = Head { method, levels, body: out.len() - start - HEAD };
        if let Some(room) = out.get_mut(start..).and_then(|piece| piece.first_chunk_mut()) {
            *room = head.to_bytes();
        }
    }

    /// Appends the body of a coded piece; how many levels it has.
    fn levels(
        self,
        elements: Elements,
        piece: &[u8],
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        let n = piece.len() / elements.bytes();
        self.split(elements, piece, scratch);
        let Scratch { symbols, rest, low } = scratch;

        let groups = symbols.get_mut(..n.div_ceil(GROUP))?;
        let bits = elements.plain_bits();
        let mut plain = vec![[0; 8]; groups.len() * bits as usize];
        if bits > 0 {
            self.gather(groups, bits, &mut plain);
            mask(elements, groups);
        }

        let levels = Levels::of(groups);
        out.extend_from_slice(levels.values().as_flattened());
        let mut left = n;
        for values in levels.values() {
            let groups = left.div_ceil(GROUP);
            symbols.as_flattened_mut().get_mut(left..groups * GROUP)?.fill(values[0]);
            let at = out.len();
            out.resize(at + groups * 16, 0);
            let (planes, _) = out.get_mut(at..)?.as_chunks_mut::<8>().0.as_chunks_mut();
            left = self.compact(symbols.get(..groups)?, *values, planes, rest.as_flattened_mut())?;
            std::mem::swap(symbols, rest);
        }
        out.extend_from_slice(symbols.as_flattened().get(..left)?);
        out.extend_from_slice(plain.as_flattened());
        if elements.bytes() == 2 {
            out.extend_from_slice(low.get(..n)?);
        }
        Some(levels.values().len())
    }
}

/// The bits of a high byte that are coded.
const fn coded(elements: Elements) -> u8 {
    u8::MAX << elements.plain_bits()
}

/// Leaves the coded bits.
fn mask(elements: Elements, symbols: &mut [[u8; GROUP]]) {
    let coded = coded(elements);
    symbols.as_flattened_mut().iter_mut().for_each(|symbol| *symbol &= coded);
}

/// Whether all elements are equal.
fn is_filled(elements: Elements, piece: &[u8]) -> bool {
    // Equal to itself moved by one element.
    piece.get(elements.bytes()..).is_some_and(|moved| piece.starts_with(moved))
}
