//! A lossless codec for KV: floats whose exponents take few values, in an order of their own.
//!
//! ```text
//!   payload   | 32 Ki elements | 32 Ki elements | ...           each piece is coded alone
//!   encoded   | head, 8 B | body | head, 8 B | body | ...       and can be decoded alone
//!
//!   element   s eeeeeeee mmmmmmm  --rotate left by 1-->  eeeeeeee mmmmmmms
//!                                                        '-- coded   '-- stored as it is
//! ```
//!
//! Exponents of K and V carry about 2.5 to 3 bits; sign and mantissa look random and are stored as they are.
//! Exponents are coded in *levels* of two bits: "one of these three values, or none of them". What is none of them
//! goes to the next level, which has three other values. The most frequent values come first, so a level passes
//! about a third on, and the code comes within 0.1 bits of the entropy. Levels are bit planes of 64 elements, so that
//! one step of a vector unit decodes 64 elements by masks, without a table and without a branch.
//!
//! What else there is: an ideal entropy coder makes bf16 another 1 % smaller, but decodes several times slower and so
//! would win only on links below 0.2 Gbit/s. A code of four bits for each exponent reaches 1.33x instead of 1.47x: even
//! if it decoded as fast as memory is copied, it would win only above 15 Gbit/s. `kvtier bench codec` has the figures.
//!
//! What is decoded is not to be trusted: whoever has the checksum of the payload must check it. The decoder promises
//! that it reads and writes nothing outside what it was given, whatever it is fed, and fills the payload or fails.
//!
//! ```
//! use kv_tiers::codec::{Codec, Elements};
//! let payload: Vec<u8> = (0..1000).flat_map(|i| half::bf16::from_f32((i as f32).sin()).to_le_bytes()).collect();
//! let mut encoded = Vec::new();
//! assert!(Codec::best().encode(Elements::Bf16, &payload, &mut encoded));
//! assert!(encoded.len() * 5 < payload.len() * 4);
//! let mut decoded = vec![0; payload.len()];
//! Codec::best().decode(Elements::Bf16, &[&encoded], &mut decoded)?;
//! assert_eq!(decoded, payload);
//! # Ok::<(), kv_tiers::codec::Damaged>(())
//! ```

mod decode;
mod encode;
mod kernels;
mod levels;
mod portable;
#[cfg(target_arch = "x86_64")]
mod simd;

use kv_core::layout::DType;

pub use kernels::Codec;

/// Elements that are coded together: 64 KiB of bf16.
const PIECE: usize = 32 << 10;

/// Elements of a vector step; planes have this many bits.
const GROUP: usize = 64;

/// A payload that would not shrink by this factor is not encoded.
pub const LEAST_RATIO: f64 = 1.05;

/// Encoded bytes do not decode to as many bytes as were stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("encoded KV is damaged")]
pub struct Damaged;

/// What a payload consists of. Each has its number in the header of a record, so a reader need not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Elements {
    /// bfloat16: 8 of 16 bits are coded.
    Bf16 = 1,
    /// IEEE 754 binary16: 5 of 16.
    F16 = 2,
    /// 8-bit float with 4 exponent bits: these are coded.
    Fp8E4M3 = 3,
    /// 8-bit float with 5 exponent bits.
    Fp8E5M2 = 4,
}

impl Elements {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Bf16, Self::F16, Self::Fp8E4M3, Self::Fp8E5M2];

    /// Elements of a KV layout; `None` for those that do not shrink enough to be worth it.
    #[must_use]
    pub const fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::Bf16 => Some(Self::Bf16),
            DType::F16 => Some(Self::F16),
            DType::Fp8E4M3 => Some(Self::Fp8E4M3),
            DType::Fp8E5M2 => Some(Self::Fp8E5M2),
            DType::F32 => None,
        }
    }

    /// Number in the header of a record. 0 is a payload stored as it is.
    #[must_use]
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// The elements of that number.
    #[must_use]
    pub fn by_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|elements| elements.id() == id)
    }

    /// Bytes of one.
    const fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::Fp8E4M3 | Self::Fp8E5M2 => 1,
        }
    }

    /// Low bits of the high byte that are stored as they are, once sign and exponent have changed places. The low
    /// byte of those that have one is stored as it is.
    const fn plain_bits(self) -> u32 {
        match self {
            Self::Bf16 => 0,
            Self::F16 | Self::Fp8E5M2 => 3,
            Self::Fp8E4M3 => 4,
        }
    }
}

/// How a piece is stored: first byte of its head.
///
/// | byte | what |
/// |---|---|
/// | 0 | method |
/// | 1 | number of levels |
/// | 2-3 | 0 |
/// | 4-7 | bytes of the body, little-endian |
///
/// Body of a coded piece of `n` elements in `g` groups of 64, the last one filled up with codes and plain bits that are 0:
/// three values for each level; for each level its groups of two 64-bit planes, low bits first; the values that no
/// level has; the plain bits of the high bytes, lowest first, as a 64-bit plane for each group; the `n` low bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// The body is the piece.
    Raw = 0,
    /// The body is one element, which all are equal to.
    Fill = 1,
    /// See the table above.
    Levels = 2,
}

/// Head of a piece.
const HEAD: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    method: Method,
    levels: usize,
    body: usize,
}

impl Head {
    fn to_bytes(self) -> [u8; HEAD] {
        let [a, b, c, d] = (self.body as u32).to_le_bytes();
        [self.method as u8, self.levels as u8, 0, 0, a, b, c, d]
    }

    fn from_bytes(bytes: [u8; HEAD]) -> Result<Self, Damaged> {
        let [method, levels, 0, 0, a, b, c, d] = bytes else { return Err(Damaged) };
        let method = match method {
            0 => Method::Raw,
            1 => Method::Fill,
            2 => Method::Levels,
            _ => return Err(Damaged),
        };
        let levels = usize::from(levels);
        let right = if method == Method::Levels { (1..=levels::MOST).contains(&levels) } else { levels == 0 };
        let body = u32::from_le_bytes([a, b, c, d]) as usize;
        if right { Ok(Self { method, levels, body }) } else { Err(Damaged) }
    }
}

#[cfg(test)]
mod tests;
