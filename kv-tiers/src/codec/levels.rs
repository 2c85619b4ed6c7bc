//! Which values each level has, and what that costs.

/// Levels of a piece. What is left after 24 values is stored as it is.
pub(super) const MOST: usize = 8;

/// One in so many groups is counted to find the frequent values. Any choice of values decodes, so a sample will do.
const COUNTED: usize = 4;

/// The values of each level, most frequent first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Levels {
    values: [[u8; 3]; MOST],
    count: usize,
    /// Bits of each value, on average over those that were counted.
    pub(super) bits: f64,
}

impl Levels {
    /// Chosen for these symbols.
    pub(super) fn of(symbols: &[[u8; 64]]) -> Self {
        // Four tables, so that equal neighbours do not wait for each other.
        let mut counts = [[0_u32; 256]; 4];
        let [a, b, c, d] = &mut counts;
        for group in symbols.iter().step_by(COUNTED) {
            let (quads, _) = group.as_chunks::<4>();
            for [w, x, y, z] in quads {
                a[usize::from(*w)] += 1;
                b[usize::from(*x)] += 1;
                c[usize::from(*y)] += 1;
                d[usize::from(*z)] += 1;
            }
        }
        let sum = |value: u8| counts.iter().map(|table| table[usize::from(value)]).sum::<u32>();
        let mut ranked: Vec<(u32, u8)> =
            (0..=255).map(|value| (sum(value), value)).filter(|(n, _)| *n > 0).collect();
        // By value where equal: the same payload has one encoding.
        ranked.sort_unstable_by_key(|&(n, value)| (u32::MAX - n, value));
        Self::ranked(&ranked)
    }

    /// Adds levels while what one holds saves more than its two bits for each value that reaches it cost.
    fn ranked(ranked: &[(u32, u8)]) -> Self {
        let all: u32 = ranked.iter().map(|(n, _)| n).sum();
        let (mut left, mut bits) = (all, 0);
        let mut levels = Self { values: [[0; 3]; MOST], count: 0, bits: 0.0 };
        for (values, three) in levels.values.iter_mut().zip(ranked.chunks(3)) {
            let held: u32 = three.iter().map(|(n, _)| n).sum();
            if levels.count > 0 && 4 * held <= left {
                break;
            }
            bits += 2 * u64::from(left);
            left -= held;
            levels.count += 1;
            *values = three_of(three);
        }
        levels.bits = (bits + 8 * u64::from(left)) as f64 / f64::from(all.max(1));
        levels
    }

    pub(super) fn values(&self) -> &[[u8; 3]] {
        self.values.get(..self.count).unwrap_or_default()
    }
}

/// Three different values: what is missing is made up, of bits that every kind of element codes.
fn three_of(ranked: &[(u32, u8)]) -> [u8; 3] {
    let given = ranked.iter().map(|(_, value)| *value);
    let first = ranked.first().map_or(0, |(_, value)| *value);
    let made_up = [0x80, 0x40, 0xC0].map(|bits| first ^ bits);
    let made_up = made_up.into_iter().filter(|value| ranked.iter().all(|(_, given)| given != value));
    let mut three = [0; 3];
    three.iter_mut().zip(given.chain(made_up)).for_each(|(room, value)| *room = value);
    three
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequent_values_come_first_and_rare_ones_have_no_level() {
        let levels = Levels::ranked(&[(50, 9), (20, 7), (10, 8), (10, 3), (5, 4), (3, 5), (2, 6)]);
        // 100 values at two bits, 20 at two more, 2 at two more.
        assert_eq!(levels.values(), [[9, 7, 8], [3, 4, 5], [6, 0x86, 0x46]]);
        assert!((levels.bits - 2.44).abs() < 1e-9);
        assert_eq!(three_of(&[(9, 1), (1, 0x81)]), [1, 0x81, 0x41]);
        let even: Vec<_> = (0..=255).map(|value| (1, value)).collect();
        let levels = Levels::ranked(&even);
        assert_eq!((levels.values().len(), levels.values()[0]), (1, [0, 1, 2]));
        assert!(levels.bits > 8.0);
    }
}
