//! The inner loops with AVX2 and with AVX-512. All `unsafe` of the codec is here: two loads and stores whose
//! references have the size, and calls of functions whose instructions were detected.

use std::arch::x86_64::*;

use super::kernels::Planes;
use super::portable;

/// Proof that the processor has AVX2 and POPCNT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx2(());

/// Proof that the processor has AVX-512 with byte compression (VBMI2: Ice Lake, Zen 4 and later).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx512(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt")).then_some(Self(()))
    }
}

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        let bytes = is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512vbmi2");
        (wide && bytes && Avx2::detect().is_some()).then_some(Self(()))
    }
}

macro_rules! detected {
    ($proof:ident, $module:ident) => {
        impl $proof {
            pub(super) fn compact(
                self,
                symbols: &[[u8; 64]],
                values: [u8; 3],
                planes: &mut [Planes],
                rest: &mut [u8],
            ) -> Option<usize> {
                // SAFETY: `self` exists only where the processor has what the function is compiled for.
                unsafe { $module::compact(symbols, values, planes, rest) }
            }

            pub(super) fn expand(
                self,
                planes: &[Planes],
                values: [u8; 3],
                rest: &[u8],
                symbols: &mut [[u8; 64]],
            ) -> Option<()> {
                // SAFETY: as above.
                unsafe { $module::expand(planes, values, rest, symbols) }
            }

            pub(super) fn gather(self, bytes: &[[u8; 64]], bits: u32, planes: &mut [[u8; 8]]) {
                // SAFETY: as above.
                unsafe { $module::gather(bytes, bits, planes) }
            }

            pub(super) fn scatter(self, planes: &[[u8; 8]], bits: u32, bytes: &mut [[u8; 64]]) {
                // SAFETY: as above.
                unsafe { $module::scatter(planes, bits, bytes) }
            }

            pub(super) fn split(self, elements: &[[u8; 2]], high: &mut [u8], low: &mut [u8]) {
                // SAFETY: as above.
                unsafe { $module::split(elements, high, low) }
            }

            pub(super) fn merge(self, high: &[u8], low: &[u8], elements: &mut [[u8; 2]]) {
                // SAFETY: as above.
                unsafe { $module::merge(high, low, elements) }
            }
        }
    };
}
detected!(Avx2, avx2);
detected!(Avx512, avx512);

mod avx512 {
    use super::*;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn load(from: &[u8; 64]) -> __m512i {
        // SAFETY: 64 bytes are readable; the load needs no alignment.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn store(to: &mut [u8; 64], value: __m512i) {
        // SAFETY: 64 bytes are writable; the store needs no alignment.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), value) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt")]
    pub(super) fn compact(
        symbols: &[[u8; 64]],
        values: [u8; 3],
        planes: &mut [Planes],
        rest: &mut [u8],
    ) -> Option<usize> {
        let [a, b, c] = values.map(|value| _mm512_set1_epi8(value as i8));
        let mut at = 0;
        for (group, planes) in symbols.iter().zip(planes) {
            let group = load(group);
            let is_a = _mm512_cmpeq_epi8_mask(group, a);
            let is_b = _mm512_cmpeq_epi8_mask(group, b) & !is_a;
            let is_c = _mm512_cmpeq_epi8_mask(group, c) & !(is_a | is_b);
            let none = !(is_a | is_b | is_c);
            *planes = [(is_b | none).to_le_bytes(), (is_c | none).to_le_bytes()];
            store(rest.get_mut(at..)?.first_chunk_mut()?, _mm512_maskz_compress_epi8(none, group));
            at += none.count_ones() as usize;
        }
        Some(at)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt")]
    pub(super) fn expand(
        planes: &[Planes],
        values: [u8; 3],
        rest: &[u8],
        symbols: &mut [[u8; 64]],
    ) -> Option<()> {
        let [a, b, c] = values.map(|value| _mm512_set1_epi8(value as i8));
        let mut at = 0;
        for ([low, high], group) in planes.iter().zip(symbols) {
            let (low, high) = (u64::from_le_bytes(*low), u64::from_le_bytes(*high));
            let value = _mm512_mask_mov_epi8(_mm512_mask_mov_epi8(a, low, b), high, c);
            let rest = load(rest.get(at..)?.first_chunk()?);
            store(group, _mm512_mask_expand_epi8(value, low & high, rest));
            at += (low & high).count_ones() as usize;
        }
        Some(())
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn gather(bytes: &[[u8; 64]], bits: u32, planes: &mut [[u8; 8]]) {
        for (group, planes) in bytes.iter().zip(planes.chunks_exact_mut(bits as usize)) {
            let group = load(group);
            for (bit, plane) in planes.iter_mut().enumerate() {
                *plane = _mm512_test_epi8_mask(group, _mm512_set1_epi8(1 << bit)).to_le_bytes();
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn scatter(planes: &[[u8; 8]], bits: u32, bytes: &mut [[u8; 64]]) {
        for (group, planes) in bytes.iter_mut().zip(planes.chunks_exact(bits as usize)) {
            let mut value = load(group);
            for (bit, plane) in planes.iter().enumerate() {
                let set = _mm512_maskz_set1_epi8(u64::from_le_bytes(*plane), 1 << bit);
                value = _mm512_xor_si512(value, set);
            }
            store(group, value);
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) fn split(elements: &[[u8; 2]], high: &mut [u8], low: &mut [u8]) {
        portable::split(elements, high, low);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) fn merge(high: &[u8], low: &[u8], elements: &mut [[u8; 2]]) {
        portable::merge(high, low, elements);
    }
}

mod avx2 {
    use super::*;

    /// For every mask of 8: where its n-th set bit is, 0x80 (which a shuffle makes 0) after the last.
    const PLACES: [u64; 256] = table(false);
    /// For every mask of 8: how many bits are set before each set bit, 0x80 at those that are not set.
    const RANKS: [u64; 256] = table(true);

    const fn table(ranks: bool) -> [u64; 256] {
        let mut table = [0x8080_8080_8080_8080; 256];
        let mut mask = 0;
        while mask < 256 {
            let (mut bit, mut n) = (0, 0);
            while bit < 8 {
                if mask >> bit & 1 == 1 {
                    let (at, what) = if ranks { (bit, n) } else { (n, bit) };
                    table[mask] = table[mask] & !(0xFF << (8 * at)) | what << (8 * at);
                    n += 1;
                }
                bit += 1;
            }
            mask += 1;
        }
        table
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(from: &[u8; 32]) -> __m256i {
        // SAFETY: 32 bytes are readable; the load needs no alignment.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn store(to: &mut [u8; 32], value: __m256i) {
        // SAFETY: 32 bytes are writable; the store needs no alignment.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), value) }
    }

    /// The first eight bytes at `at`. The caller has seen that there are as many.
    #[inline]
    fn eight(bytes: &[u8; 64], at: usize) -> Option<i64> {
        bytes.get(at..)?.first_chunk().map(|eight| i64::from_le_bytes(*eight))
    }

    /// 0xFF in each byte whose bit is set.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn spread(bits: u32) -> __m256i {
        let byte = _mm256_setr_epi64x(0, ONES, 2 * ONES, 3 * ONES);
        let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let copies = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), byte);
        _mm256_cmpeq_epi8(_mm256_and_si256(copies, bit), bit)
    }
    const ONES: i64 = 0x0101_0101_0101_0101;

    #[target_feature(enable = "avx2,popcnt")]
    pub(super) fn compact(
        symbols: &[[u8; 64]],
        values: [u8; 3],
        planes: &mut [Planes],
        rest: &mut [u8],
    ) -> Option<usize> {
        let values = values.map(|value| _mm256_set1_epi8(value as i8));
        let mut at = 0;
        for (group, planes) in symbols.iter().zip(planes) {
            let (halves, _) = group.as_chunks::<32>();
            let [first, second] = halves else { return None };
            let (first, second) = (load(first), load(second));
            let [a, b, c] = values.map(|value| {
                let half = |half| _mm256_movemask_epi8(_mm256_cmpeq_epi8(half, value)) as u32;
                u64::from(half(second)) << 32 | u64::from(half(first))
            });
            let (b, c) = (b & !a, c & !(a | b));
            let none = !(a | b | c);
            *planes = [(b | none).to_le_bytes(), (c | none).to_le_bytes()];
            let rest = rest.get_mut(at..)?;
            let (eights, _) = group.as_chunks::<8>();
            let mut n = 0;
            for (eight, mask) in eights.iter().zip(none.to_le_bytes()) {
                let places = _mm_cvtsi64_si128(PLACES[usize::from(mask)] as i64);
                let packed = _mm_shuffle_epi8(_mm_cvtsi64_si128(i64::from_le_bytes(*eight)), places);
                *rest.get_mut(n..)?.first_chunk_mut()? = _mm_cvtsi128_si64(packed).to_le_bytes();
                n += mask.count_ones() as usize;
            }
            at += n;
        }
        Some(at)
    }

    #[target_feature(enable = "avx2,popcnt")]
    pub(super) fn expand(
        planes: &[Planes],
        values: [u8; 3],
        rest: &[u8],
        symbols: &mut [[u8; 64]],
    ) -> Option<()> {
        let [a, b, c] = values.map(|value| _mm256_set1_epi8(value as i8));
        // Ranks of the upper eight of sixteen point behind the lower eight.
        let upper = _mm_set_epi64x(0x0808_0808_0808_0808, 0);
        let mut at = 0;
        for ([low, high], group) in planes.iter().zip(symbols) {
            let (low, high) = (u64::from_le_bytes(*low), u64::from_le_bytes(*high));
            let none = low & high;
            let rest = rest.get(at..)?.first_chunk::<64>()?;
            at += none.count_ones() as usize;
            let mut n = 0;
            let (halves, _) = group.as_chunks_mut::<32>();
            for (i, half) in halves.iter_mut().enumerate() {
                let bits = |plane: u64| spread((plane >> (32 * i)) as u32);
                let (low, high) = (bits(low), bits(high));
                let mut sixteens = [_mm_setzero_si128(); 2];
                for (j, sixteen) in sixteens.iter_mut().enumerate() {
                    let [m, o] = ((none >> (32 * i + 16 * j)) as u16).to_le_bytes();
                    // At most 56 values come before the last eight.
                    let first = eight(rest, n)?;
                    n += m.count_ones() as usize;
                    let second = eight(rest, n)?;
                    n += o.count_ones() as usize;
                    let ranks = _mm_set_epi64x(RANKS[usize::from(o)] as i64, RANKS[usize::from(m)] as i64);
                    *sixteen = _mm_shuffle_epi8(_mm_set_epi64x(second, first), _mm_or_si128(ranks, upper));
                }
                let [first, second] = sixteens;
                let passed = _mm256_set_m128i(second, first);
                let value = _mm256_blendv_epi8(_mm256_blendv_epi8(a, b, low), c, high);
                store(half, _mm256_blendv_epi8(value, passed, _mm256_and_si256(low, high)));
            }
        }
        Some(())
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn gather(bytes: &[[u8; 64]], bits: u32, planes: &mut [[u8; 8]]) {
        for (group, planes) in bytes.iter().zip(planes.chunks_exact_mut(bits as usize)) {
            let (halves, _) = group.as_chunks::<32>();
            let [first, second] = halves else { return };
            let (first, second) = (load(first), load(second));
            for (bit, plane) in planes.iter_mut().enumerate() {
                let up = _mm_cvtsi64_si128(7 - bit as i64);
                let half = |half| _mm256_movemask_epi8(_mm256_sll_epi16(half, up)) as u32;
                *plane = (u64::from(half(second)) << 32 | u64::from(half(first))).to_le_bytes();
            }
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn scatter(planes: &[[u8; 8]], bits: u32, bytes: &mut [[u8; 64]]) {
        for (group, planes) in bytes.iter_mut().zip(planes.chunks_exact(bits as usize)) {
            let (halves, _) = group.as_chunks_mut::<32>();
            for (i, half) in halves.iter_mut().enumerate() {
                let mut value = load(half);
                for (bit, plane) in planes.iter().enumerate() {
                    let set = spread((u64::from_le_bytes(*plane) >> (32 * i)) as u32);
                    value = _mm256_xor_si256(value, _mm256_and_si256(set, _mm256_set1_epi8(1 << bit)));
                }
                store(half, value);
            }
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn split(elements: &[[u8; 2]], high: &mut [u8], low: &mut [u8]) {
        portable::split(elements, high, low);
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn merge(high: &[u8], low: &[u8], elements: &mut [[u8; 2]]) {
        portable::merge(high, low, elements);
    }
}
