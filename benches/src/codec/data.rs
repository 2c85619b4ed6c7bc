//! What is encoded: bytes as they lie in caches, or as bad as they can be.

use half::{bf16, f16};
use kv_tiers::codec::Elements;

use crate::SplitMix64;

/// One kind of bytes.
pub struct Data {
    /// For the table.
    pub name: &'static str,
    /// What they consist of.
    pub elements: Elements,
    /// Blocks that are encoded one by one.
    pub block: usize,
    /// Whole blocks.
    pub bytes: Vec<u8>,
}

/// Block of most data: what 16 tokens of Llama-3.1-8B take in bf16.
const BLOCK: usize = 2 << 20;

/// Keys and values of the small model that `benches/data/trained_kv.py` trains.
const TRAINED: &[u8] = include_bytes!("../../data/trained_kv.bf16");

/// Channels of one head.
const DIM: usize = 128;

/// All kinds, each of about so many bytes.
#[must_use]
pub fn all(bytes: usize) -> Vec<Data> {
    let blocks = bytes.div_ceil(BLOCK).max(1);
    let n = blocks * BLOCK;
    let of = |name, elements, bytes| Data { name, elements, block: BLOCK, bytes };
    let floats = normal_kv(n);
    let trained: Vec<f32> =
        TRAINED.as_chunks().0.iter().map(|two| bf16::from_le_bytes(*two).to_f32()).collect();
    let small = |name, elements, bytes: Vec<u8>| {
        // Each block alone, so that nobody finds the last one's bytes again.
        let block = bytes.len();
        Data { name, elements, block, bytes: bytes.repeat(n.div_ceil(block)) }
    };
    let mut noise = vec![0; n];
    SplitMix64::new(3).fill(&mut noise);
    vec![
        of("normal, bf16", Elements::Bf16, encode(Elements::Bf16, &floats[..n / 2])),
        of("normal, f16", Elements::F16, encode(Elements::F16, &floats[..n / 2])),
        of("normal, e4m3", Elements::Fp8E4M3, encode(Elements::Fp8E4M3, &floats)),
        of("normal, e5m2", Elements::Fp8E5M2, encode(Elements::Fp8E5M2, &floats)),
        small("trained, bf16", Elements::Bf16, TRAINED.to_vec()),
        small("trained, e4m3", Elements::Fp8E4M3, encode(Elements::Fp8E4M3, &trained)),
        of("random", Elements::Bf16, noise),
        of("zeros", Elements::Bf16, vec![0; n]),
    ]
}

/// Normal data with a scale for each channel. Half of the heads are keys, of which a few channels are many times
/// larger than the rest, the same ones for every token; values have none (KIVI, Liu et al., ICML 2024, figure 2;
/// KVQuant, Hooper et al., NeurIPS 2024, section 3.1).
fn normal_kv(n: usize) -> Vec<f32> {
    let mut rng = SplitMix64::new(1);
    let heads = 16;
    let mut scales = Vec::with_capacity(heads * DIM);
    for head in 0..heads {
        for _ in 0..DIM {
            let outlier = head < heads / 2 && rng.once_in(32);
            scales.push((0.5 * normal(&mut rng)).exp() * if outlier { 12.0 } else { 1.0 });
        }
    }
    (0..n).map(|i| normal(&mut rng) * scales[i % scales.len()]).collect()
}

/// Sum of twelve uniform numbers: normal as far as exponents can tell.
fn normal(rng: &mut SplitMix64) -> f32 {
    let three = |bits: u64| (0..3).map(|i| (bits >> (21 * i) & 0x1F_FFFF) as f32 / 2_097_152.0).sum::<f32>();
    (0..4).map(|_| three(rng.next_u64())).sum::<f32>() - 6.0
}

/// As runtimes store them: e4m3 with one scale that brings the largest to 448, the others without.
fn encode(elements: Elements, floats: &[f32]) -> Vec<u8> {
    let largest = floats.iter().fold(f32::MIN_POSITIVE, |most, x| most.max(x.abs()));
    match elements {
        Elements::Bf16 => floats.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        Elements::F16 => floats.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        Elements::Fp8E4M3 => floats.iter().map(|x| e4m3(x * (448.0 / largest))).collect(),
        Elements::Fp8E5M2 => floats.iter().map(|x| e5m2(*x)).collect(),
    }
}

/// To the nearest, halves to even. At most 448, which is the largest number of this kind.
fn e4m3(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    // Below 2^-6 steps are of 2^-9; above, of an eighth of the power of two below.
    let magnitude = x.abs().min(448.0);
    let exponent = (magnitude.to_bits() >> 23) as i32 - 127;
    let exponent = exponent.max(-6);
    let steps = (magnitude / 2_f32.powi(exponent - 3)).round_ties_even() as u8;
    // Eight steps are the hidden bit; sixteen are the next power of two: both carry by themselves.
    sign | ((exponent + 6) as u8 * 8 + steps)
}

/// To the nearest, halves to even: the upper byte of binary16.
fn e5m2(x: f32) -> u8 {
    let bits = f16::from_f32(x).to_bits();
    (bits.saturating_add(0x7F + (bits >> 8 & 1)) >> 8) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bit_floats_are_rounded_to_the_nearest() {
        // OCP 8-bit floating point specification 1.0, table 1.
        for (x, byte) in [
            (0.0, 0),
            (448.0, 0x7E),
            (1e9, 0x7E),
            (1.0, 0x38),
            (-1.0, 0xB8),
            (0.015_625, 8),
            (0.001_953_125, 1),
        ] {
            assert_eq!(e4m3(x), byte, "{x}");
        }
        // 15.75 is nearer to 16 than to 15.
        assert_eq!((e4m3(15.75), e4m3(1.0625), e4m3(1.1875)), (0x58, 0x38, 0x3A));
        assert_eq!((e5m2(1.0), e5m2(-57_344.0), e5m2(1.125), e5m2(1.4)), (0x3C, 0xFB, 0x3C, 0x3E));
    }

    #[test]
    fn blocks_are_whole() {
        for data in all(1) {
            assert!(
                data.bytes.len() >= BLOCK && data.bytes.len().is_multiple_of(data.block),
                "{}",
                data.name
            );
        }
    }
}
