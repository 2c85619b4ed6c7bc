//! The inner loops, and which instructions they may use.

use super::portable;
#[cfg(target_arch = "x86_64")]
use super::simd;

/// The two planes of a group: low bits and high bits of its codes.
pub(super) type Planes = [[u8; 8]; 2];

/// Instructions that the inner loops use. All give the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codec(Set);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(simd::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(simd::Avx512),
}

macro_rules! dispatch {
    ($self:ident, $kernel:ident($($arg:expr),*)) => {
        match $self.0 {
            Set::Portable => portable::$kernel($($arg),*),
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(here) => here.$kernel($($arg),*),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(here) => here.$kernel($($arg),*),
        }
    };
}

impl Codec {
    /// What every processor has.
    pub const PORTABLE: Self = Self(Set::Portable);

    /// Those that this processor has, slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::PORTABLE];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(simd::Avx2::detect().map(|here| Self(Set::Avx2(here))));
            all.extend(simd::Avx512::detect().map(|here| Self(Set::Avx512(here))));
        }
        all
    }

    /// The fastest that this processor has.
    #[must_use]
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let widest = simd::Avx512::detect().map(|here| Self(Set::Avx512(here)));
            if let Some(best) = widest.or_else(|| simd::Avx2::detect().map(|here| Self(Set::Avx2(here)))) {
                return best;
            }
        }
        Self::PORTABLE
    }

    /// For tables: `portable`, `AVX2` or `AVX-512`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            Set::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(_) => "AVX-512",
        }
    }

    /// Codes a level: planes of every group, and the values that it has not, packed, into `rest`. How many those
    /// are; `None` if `rest` does not have room for a group behind them.
    pub(super) fn compact(
        self,
        symbols: &[[u8; 64]],
        values: [u8; 3],
        planes: &mut [Planes],
        rest: &mut [u8],
    ) -> Option<usize> {
        dispatch!(self, compact(symbols, values, planes, rest))
    }

    /// Undoes [`Codec::compact`]. `None` if `rest` does not have room for a group behind what is taken from it.
    pub(super) fn expand(
        self,
        planes: &[Planes],
        values: [u8; 3],
        rest: &[u8],
        symbols: &mut [[u8; 64]],
    ) -> Option<()> {
        dispatch!(self, expand(planes, values, rest, symbols))
    }

    /// The low `bits` bits of every byte, one plane for each bit of a group.
    pub(super) fn gather(self, bytes: &[[u8; 64]], bits: u32, planes: &mut [[u8; 8]]) {
        dispatch!(self, gather(bytes, bits, planes));
    }

    /// Puts those bits into bytes where they are 0. (Where they are not it flips them, so that damage shows.)
    pub(super) fn scatter(self, planes: &[[u8; 8]], bits: u32, bytes: &mut [[u8; 64]]) {
        dispatch!(self, scatter(planes, bits, bytes));
    }

    /// Rotates two-byte elements left by one, and takes high and low bytes apart.
    pub(super) fn split_pairs(self, elements: &[[u8; 2]], high: &mut [u8], low: &mut [u8]) {
        dispatch!(self, split(elements, high, low));
    }

    /// Undoes [`Codec::split_pairs`].
    pub(super) fn merge_pairs(self, high: &[u8], low: &[u8], elements: &mut [[u8; 2]]) {
        dispatch!(self, merge(high, low, elements));
    }
}
