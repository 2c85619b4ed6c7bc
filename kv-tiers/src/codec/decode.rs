//! Pieces to payload. Every length is checked before it is used; what the bytes say is the business of a checksum.

use super::kernels::Planes;
use super::{Codec, Damaged, Elements, GROUP, HEAD, Head, Method, PIECE, levels};

/// Encoded bytes that may lie in several places, as a store delivered them.
struct Source<'a> {
    segments: std::slice::Iter<'a, &'a [u8]>,
    now: &'a [u8],
    /// What spans two segments is put together here.
    joined: Vec<u8>,
}

impl Source<'_> {
    /// The next `n` bytes.
    fn take(&mut self, n: usize) -> Result<&[u8], Damaged> {
        if let Some((taken, after)) = self.now.split_at_checked(n) {
            self.now = after;
            return Ok(taken);
        }
        self.joined.clear();
        while self.joined.len() < n {
            if self.now.is_empty() {
                self.now = self.segments.next().ok_or(Damaged)?;
            }
            let (taken, after) = self.now.split_at(self.now.len().min(n - self.joined.len()));
            self.joined.extend_from_slice(taken);
            self.now = after;
        }
        Ok(&self.joined)
    }

    fn is_empty(&self) -> bool {
        self.now.is_empty() && self.segments.as_slice().iter().all(|segment| segment.is_empty())
    }
}

/// Memory for one piece: values of the level below, and of the level that is made of them.
struct Scratch {
    below: Vec<[u8; GROUP]>,
    level: Vec<[u8; GROUP]>,
}

impl Codec {
    /// Decodes what [`Codec::encode`] wrote, in any segments, to exactly the length of `into`.
    ///
    /// # Errors
    /// [`Damaged`]; `into` then holds anything. That it is not damaged proves nothing: check the payload's checksum.
    pub fn decode(self, elements: Elements, segments: &[&[u8]], into: &mut [u8]) -> Result<(), Damaged> {
        let mut source = Source { segments: segments.iter(), now: &[], joined: Vec::new() };
        // A vector more than the values: that is what the last step reads.
        let groups = (into.len() / elements.bytes()).min(PIECE).div_ceil(GROUP) + 1;
        let mut scratch = Scratch { below: vec![[0; GROUP]; groups], level: vec![[0; GROUP]; groups] };
        for piece in into.chunks_mut(PIECE * elements.bytes()) {
            let head = source.take(HEAD)?.first_chunk().ok_or(Damaged)?;
            let head = Head::from_bytes(*head)?;
            if head.body > piece.len() {
                return Err(Damaged);
            }
            let body = source.take(head.body)?;
            match head.method {
                Method::Raw if body.len() == piece.len() => piece.copy_from_slice(body),
                Method::Fill if body.len() == elements.bytes() => match body {
                    [low, high] => piece.as_chunks_mut().0.fill([*low, *high]),
                    _ => body.iter().for_each(|byte| piece.fill(*byte)),
                },
                Method::Levels => self.decode_levels(elements, head.levels, body, &mut scratch, piece)?,
                _ => return Err(Damaged),
            }
        }
        if source.is_empty() { Ok(()) } else { Err(Damaged) }
    }

    fn decode_levels(
        self,
        elements: Elements,
        count: usize,
        body: &[u8],
        scratch: &mut Scratch,
        piece: &mut [u8],
    ) -> Result<(), Damaged> {
        let n = piece.len() / elements.bytes();
        let groups = n.div_ceil(GROUP);
        let mut rest = body;
        let mut take = |bytes: usize| rest.split_off(..bytes).ok_or(Damaged);

        let (values, _) = take(3 * count)?.as_chunks::<3>();
        let mut levels: [&[Planes]; levels::MOST] = [&[]; _];
        let mut left = n;
        for planes in levels.iter_mut().take(count) {
            *planes = take(left.div_ceil(GROUP) * 16)?.as_chunks::<8>().0.as_chunks().0;
            if planes.last().is_some_and(|planes| !is_empty_behind(planes, left)) {
                return Err(Damaged);
            }
            // At most as many as the level has room for, so no level is larger than the one above it.
            left = planes.iter().map(|[low, high]| none(*low, *high)).sum();
        }
        let unlisted = take(left)?;
        let (plain, _) = take(groups * 8 * elements.plain_bits() as usize)?.as_chunks::<8>();
        let low = take(n * (elements.bytes() - 1))?;
        let last_plain = plain.get((groups - 1) * elements.plain_bits() as usize..).ok_or(Damaged)?;
        if !rest.is_empty() || !is_empty_behind(last_plain, n) {
            return Err(Damaged);
        }

        let Scratch { below, level } = scratch;
        below.as_flattened_mut().get_mut(..left).ok_or(Damaged)?.copy_from_slice(unlisted);
        for (planes, values) in levels.iter().zip(values).rev() {
            let made = level.get_mut(..planes.len()).ok_or(Damaged)?;
            self.expand(planes, *values, below.as_flattened(), made).ok_or(Damaged)?;
            std::mem::swap(below, level);
        }
        let symbols = below.get_mut(..groups).ok_or(Damaged)?;
        if elements.plain_bits() > 0 {
            self.scatter(plain, elements.plain_bits(), symbols);
        }
        let symbols = symbols.as_flattened();
        if elements.bytes() == 2 {
            self.merge_pairs(symbols, low, piece.as_chunks_mut().0);
        } else {
            piece.iter_mut().zip(symbols).for_each(|(byte, symbol)| *byte = symbol.rotate_right(1));
        }
        Ok(())
    }
}

/// Whether the planes of the last group of `n` values say nothing about what fills it up: one payload has one encoding.
fn is_empty_behind(planes: &[[u8; 8]], n: usize) -> bool {
    let used = n % GROUP;
    used == 0 || planes.iter().all(|plane| u64::from_le_bytes(*plane) >> used == 0)
}

/// How many of a group the next level has.
fn none(low: [u8; 8], high: [u8; 8]) -> usize {
    (u64::from_le_bytes(low) & u64::from_le_bytes(high)).count_ones() as usize
}
