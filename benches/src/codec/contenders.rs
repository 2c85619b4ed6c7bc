//! Who encodes: kvtier with each set of instructions, general-purpose codecs, and memcpy.

use kv_tiers::codec::{Codec, Elements};

/// Appends the encoding of a block.
type Encode = Box<dyn FnMut(&[u8], &mut Vec<u8>)>;
/// Fills a block from its encoding.
type Decode = Box<dyn FnMut(&[u8], &mut [u8])>;

/// One way to make blocks smaller.
pub struct Contender {
    /// For the table.
    pub name: String,
    pub(super) encode: Encode,
    pub(super) decode: Decode,
}

/// The first one is memcpy, the second one kvtier as it is used.
pub(super) fn all(elements: Elements) -> Vec<Contender> {
    let mut all = vec![memcpy()];
    all.extend(Codec::available().into_iter().rev().map(|codec| kvtier(codec, elements)));
    #[cfg(feature = "peers")]
    all.extend(peers::all(elements));
    all
}

fn memcpy() -> Contender {
    Contender {
        name: "memcpy".to_owned(),
        encode: Box::new(|block, out| out.extend_from_slice(block)),
        decode: Box::new(|encoded, block| block.copy_from_slice(encoded)),
    }
}

/// As a record of a remote store: as it is if it would not shrink.
fn kvtier(codec: Codec, elements: Elements) -> Contender {
    Contender {
        name: format!("kvtier, {}", codec.name()),
        encode: Box::new(move |block, out| {
            if !codec.encode(elements, block, out) {
                out.extend_from_slice(block);
            }
        }),
        decode: Box::new(move |encoded, block| {
            if encoded.len() == block.len() {
                block.copy_from_slice(encoded);
            } else if codec.decode(elements, &[encoded], block).is_err() {
                // The comparison with what was encoded will show it.
                block.fill(0xEE);
            }
        }),
    }
}

#[cfg(feature = "peers")]
mod peers {
    use super::{Contender, Decode, Encode};
    use kv_tiers::codec::Elements;

    /// A general-purpose codec over some bytes.
    type Whole = (&'static str, fn(&[u8], &mut Vec<u8>), fn(&[u8], &mut [u8]));

    const WHOLE: [Whole; 2] = [
        (
            "zstd -1",
            |from, out| {
                let at = out.len();
                out.resize(at + zstd::zstd_safe::compress_bound(from.len()), 0);
                let done = zstd::bulk::compress_to_buffer(from, &mut out[at..], 1).unwrap_or(0);
                out.truncate(at + done);
            },
            |from, to| {
                zstd::bulk::decompress_to_buffer(from, to).unwrap_or(0);
            },
        ),
        (
            "lz4",
            |from, out| {
                let at = out.len();
                out.resize(at + lz4_flex::block::get_maximum_output_size(from.len()), 0);
                let done = lz4_flex::block::compress_into(from, &mut out[at..]).unwrap_or(0);
                out.truncate(at + done);
            },
            |from, to| {
                lz4_flex::block::decompress_into(from, to).unwrap_or(0);
            },
        ),
    ];

    /// Each over the whole block and, where elements have two bytes, over the exponents alone: a canonical Huffman
    /// code of them is what zstd then makes.
    pub(super) fn all(elements: Elements) -> Vec<Contender> {
        let mut all = Vec::new();
        for (name, encode, decode) in WHOLE {
            all.push(Contender { name: name.to_owned(), encode: Box::new(encode), decode: Box::new(decode) });
            if matches!(elements, Elements::Bf16 | Elements::F16) {
                let name = format!("{name}, split");
                all.push(Contender { name, encode: split(encode), decode: merge(decode) });
            }
        }
        all
    }

    /// Low bytes as they are, then the high ones encoded.
    fn split(encode: fn(&[u8], &mut Vec<u8>)) -> Encode {
        let (mut high, mut low) = (Vec::new(), Vec::new());
        Box::new(move |block, out| {
            let n = block.len() / 2;
            high.resize(n, 0);
            low.resize(n, 0);
            let pairs = block.as_chunks::<2>().0.iter();
            for ((pair, high), low) in pairs.zip(&mut high).zip(&mut low) {
                let turned = u16::from_le_bytes(*pair).rotate_left(1);
                (*low, *high) = (turned as u8, (turned >> 8) as u8);
            }
            out.extend_from_slice(&low);
            encode(&high, out);
        })
    }

    fn merge(decode: fn(&[u8], &mut [u8])) -> Decode {
        let mut high = Vec::new();
        Box::new(move |encoded, block| {
            let n = block.len() / 2;
            high.resize(n, 0);
            let (low, rest) = encoded.split_at(n);
            decode(rest, &mut high);
            let pairs = block.as_chunks_mut::<2>().0.iter_mut();
            for ((pair, high), low) in pairs.zip(&high).zip(low) {
                *pair = (u16::from(*high) << 8 | u16::from(*low)).rotate_right(1).to_le_bytes();
            }
        })
    }
}
