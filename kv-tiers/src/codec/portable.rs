//! The inner loops without anything special. What they write is what every other version must write.

use super::kernels::Planes;

pub(super) fn compact(
    symbols: &[[u8; 64]],
    values: [u8; 3],
    planes: &mut [Planes],
    rest: &mut [u8],
) -> Option<usize> {
    let mut code = [3_u8; 256];
    // Backwards, so that of equal values the first one counts.
    for (i, value) in values.into_iter().enumerate().rev() {
        code[usize::from(value)] = i as u8;
    }
    let mut at = 0;
    for (group, planes) in symbols.iter().zip(planes) {
        let rest = rest.get_mut(at..)?.first_chunk_mut::<64>()?;
        let (mut low, mut high, mut n) = (0_u64, 0_u64, 0_usize);
        for (i, value) in group.iter().enumerate() {
            let code = code[usize::from(*value)];
            low |= u64::from(code & 1) << i;
            high |= u64::from(code >> 1) << i;
            rest[n & 63] = *value;
            n += usize::from(code == 3);
        }
        *planes = [low.to_le_bytes(), high.to_le_bytes()];
        at += n;
    }
    Some(at)
}

pub(super) fn expand(
    planes: &[Planes],
    [a, b, c]: [u8; 3],
    rest: &[u8],
    symbols: &mut [[u8; 64]],
) -> Option<()> {
    let mut at = 0;
    for ([low, high], group) in planes.iter().zip(symbols) {
        let rest = rest.get(at..)?.first_chunk::<64>()?;
        let (low, high, mut n) = (u64::from_le_bytes(*low), u64::from_le_bytes(*high), 0_usize);
        for (i, value) in group.iter_mut().enumerate() {
            let code = (low >> i & 1) | (high >> i & 1) << 1;
            *value = [a, b, c, rest[n & 63]][code as usize];
            n += usize::from(code == 3);
        }
        at += n;
    }
    Some(())
}

/// 1 in each byte.
const ONES: u64 = 0x0101_0101_0101_0101;

pub(super) fn gather(bytes: &[[u8; 64]], bits: u32, planes: &mut [[u8; 8]]) {
    for (group, planes) in bytes.iter().zip(planes.chunks_exact_mut(bits as usize)) {
        let (eights, _) = group.as_chunks::<8>();
        for (bit, plane) in planes.iter_mut().enumerate() {
            for (eight, byte) in eights.iter().zip(plane) {
                // The multiplication moves bit 8*i to bit 56+i.
                let one_each = u64::from_le_bytes(*eight) >> bit & ONES;
                *byte = (one_each.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
            }
        }
    }
}

pub(super) fn scatter(planes: &[[u8; 8]], bits: u32, bytes: &mut [[u8; 64]]) {
    for (group, planes) in bytes.iter_mut().zip(planes.chunks_exact(bits as usize)) {
        let (eights, _) = group.as_chunks_mut::<8>();
        for (bit, plane) in planes.iter().enumerate() {
            for (eight, byte) in eights.iter_mut().zip(plane) {
                // Bit i of byte i, then 1 in each byte where it is set.
                let one_each = u64::from(*byte).wrapping_mul(ONES) & 0x8040_2010_0804_0201;
                let set = (one_each + 0x7F7F_7F7F_7F7F_7F7F) >> 7 & ONES;
                *eight = (u64::from_le_bytes(*eight) ^ set << bit).to_le_bytes();
            }
        }
    }
}

/// Compiled into every version: the compiler vectorises it as far as it may.
#[inline(always)]
pub(super) fn split(elements: &[[u8; 2]], high: &mut [u8], low: &mut [u8]) {
    for ((element, high), low) in elements.iter().zip(high).zip(low) {
        let turned = u16::from_le_bytes(*element).rotate_left(1);
        (*low, *high) = (turned as u8, (turned >> 8) as u8);
    }
}

/// Likewise.
#[inline(always)]
pub(super) fn merge(high: &[u8], low: &[u8], elements: &mut [[u8; 2]]) {
    for ((element, high), low) in elements.iter_mut().zip(high).zip(low) {
        let turned = u16::from(*high) << 8 | u16::from(*low);
        *element = turned.rotate_right(1).to_le_bytes();
    }
}
