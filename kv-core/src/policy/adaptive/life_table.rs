//! How soon blocks are used again, learnt on line by class and age.
//!
//! This is the actuary's life table with "is used again" for "dies". A sample of blocks is watched from each
//! use on. For every class `c` and age band `a` it counts how many were still waiting when they entered the
//! band (`at_risk`) and how many were used again within it (`used`); their ratio is an unbiased hazard even
//! though most watches have not ended yet (Kaplan and Meier, 1958). Watching does not depend on residency,
//! so the table does not inherit the mistakes of the evictions it causes.

use super::class::Class;
use crate::key::BlockKey;

/// Age bands. The first ends at [`FIRST`] capacities (counted in block uses), each further one is
/// [`OCTAVE`] octaves wide, and the last, from eight capacities on, is open.
pub(super) const BANDS: usize = 12;
const FIRST: f64 = 0.25;
const OCTAVE: f64 = 0.5;
/// Capacities after which a watch is given up; the beginning of the last band.
const HORIZON: usize = 8;
/// Tiers below this many blocks watch every block, others a sample of at least half as many.
const SAMPLE: usize = 8192;
/// Watches at least, so that none is lost between two calls of [`LifeTable::advance`].
const RING_AT_LEAST: usize = 4096;
/// Full rings after which old evidence counts half.
const MEMORY: usize = 4;
/// Blocks' worth of evidence at which a class is believed as much as its group. Large because one request
/// is one observation and brings dozens of blocks.
const CLASS_PRIOR: f32 = 100.0;
/// The same for a group against all blocks.
const GROUP_PRIOR: f32 = 10.0;

/// One value per age band.
pub(super) type Bands<T> = [T; BANDS];

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    at_risk: Bands<f32>,
    used: Bands<f32>,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.at_risk.iter_mut().zip(&other.at_risk).for_each(|(sum, count)| *sum += count);
        self.used.iter_mut().zip(&other.used).for_each(|(sum, count)| *sum += count);
    }

    fn halve(&mut self) {
        self.at_risk.iter_mut().chain(&mut self.used).for_each(|count| *count /= 2.0);
    }

    /// Share of those at risk that were used, drawn towards `prior` as if it came from `weight` blocks.
    fn hazards(&self, prior: &Bands<f32>, weight: f32) -> Bands<f32> {
        std::array::from_fn(|band| {
            ((self.used[band] + weight * prior[band]) / (self.at_risk[band] + weight)).min(1.0)
        })
    }
}

/// One watched use of a block. Its class is not known before the whole request is.
#[derive(Clone, Copy)]
struct Watch {
    start: u32,
    waiting: Option<Class>,
}

/// Name of a watch; of no meaning once the ring has gone round. The default names none.
#[derive(Clone, Copy, Default)]
pub(super) struct WatchId(u32);

/// See the module's head. Time is a count of block uses; it may wrap.
pub(super) struct LifeTable {
    /// Ages at which the bands begin.
    begins: Bands<u32>,
    tallies: Vec<Tally>,
    /// Watch `w` is at `w % ring.len()`; the first is 1.
    ring: Vec<Watch>,
    /// The watch that begins next.
    next: u64,
    /// For each band the first watch that has not entered it yet.
    entering: Bands<u64>,
    /// One key in `sampling` is watched; a power of two.
    sampling: u64,
    /// Number of watches at which the tallies are halved next.
    halve_at: u64,
}

impl LifeTable {
    pub(super) fn new(capacity: usize) -> Self {
        let sampling = (capacity / SAMPLE).next_power_of_two();
        let ring = (capacity * HORIZON).div_ceil(sampling).max(RING_AT_LEAST);
        let begins = std::array::from_fn(|band| match band {
            0 => 0,
            // The band's number keeps the ages apart when the capacity is tiny.
            _ => band as u32 + (capacity as f64 * FIRST * (OCTAVE * (band - 1) as f64).exp2()) as u32,
        });
        Self {
            begins,
            tallies: vec![Tally::default(); Class::COUNT],
            ring: vec![Watch { start: 0, waiting: None }; ring],
            next: 1,
            entering: [1; BANDS],
            sampling: sampling as u64,
            halve_at: (MEMORY * ring) as u64,
        }
    }

    /// The age at which `band` begins.
    pub(super) fn begin_of(&self, band: usize) -> u32 {
        self.begins[band]
    }

    /// Begins to watch a use of `key`, if `key` belongs to the sample.
    pub(super) fn watch(&mut self, key: BlockKey, now: u32) -> WatchId {
        if (key.high() >> 32) & (self.sampling - 1) != 0 {
            return WatchId::default();
        }
        let at = self.place(self.next);
        self.ring[at] = Watch { start: now, waiting: None };
        self.next += 1;
        WatchId((self.next - 1) as u32)
    }

    /// The watched use has turned out to be of `class`.
    pub(super) fn classify(&mut self, watch: WatchId, class: Class) {
        if let Some(at) = self.find(watch) {
            self.ring[at].waiting = Some(class);
            self.tallies[class.index()].at_risk[0] += 1.0;
        }
    }

    /// The block of `watch` has been used again.
    pub(super) fn used(&mut self, watch: WatchId, now: u32) {
        let Some(at) = self.find(watch) else { return };
        let age = now.wrapping_sub(self.ring[at].start);
        if let Some(class) = self.ring[at].waiting.take() {
            let band = self.begins.partition_point(|begin| *begin <= age) - 1;
            self.tallies[class.index()].used[band] += 1.0;
        }
    }

    /// Counts the watches that have entered another band since the last call.
    pub(super) fn advance(&mut self, now: u32) {
        let oldest = self.next.saturating_sub(self.ring.len() as u64);
        for band in 1..BANDS {
            let mut entering = self.entering[band].max(oldest);
            while entering < self.next {
                let watch = self.ring[self.place(entering)];
                if now.wrapping_sub(watch.start) < self.begins[band] {
                    break;
                }
                if let Some(class) = watch.waiting {
                    self.tallies[class.index()].at_risk[band] += 1.0;
                }
                entering += 1;
            }
            self.entering[band] = entering;
        }
        if self.next >= self.halve_at {
            self.halve_at = self.next + (MEMORY * self.ring.len()) as u64;
            self.tallies.iter_mut().for_each(Tally::halve);
        }
    }

    /// What keeping a block is worth, by class and band, in hits per block use that it stays.
    pub(super) fn worths(&self) -> Vec<Bands<f32>> {
        let mut all = Tally::default();
        let mut groups = [Tally::default(); Class::GROUPS];
        for (class, tally) in Class::all().zip(&self.tallies) {
            groups[class.group()].add(tally);
            all.add(tally);
        }
        let base = all.hazards(&[0.0; BANDS], 1.0);
        let groups = groups.map(|group| group.hazards(&base, GROUP_PRIOR));
        let unseen = groups.map(|group| self.worth(&group));
        Class::all()
            .zip(&self.tallies)
            .map(|(class, tally)| match tally.at_risk[0] {
                0.0 => unseen[class.group()],
                _ => self.worth(&tally.hazards(&groups[class.group()], CLASS_PRIOR)),
            })
            .collect()
    }

    /// For each band the best ratio, over all times until which one might keep a block that is now at the
    /// band's beginning, of the probability that it is used to the time that it is expected to occupy (the
    /// Gittins index). A block that was used is as good as new, so nothing beyond the first use counts.
    fn worth(&self, hazards: &Bands<f32>) -> Bands<f32> {
        std::array::from_fn(|now| {
            let (mut waiting, mut time, mut best) = (1.0, 0.0, 0.0_f32);
            for (hazard, edges) in hazards[now..].iter().zip(self.begins[now..].windows(2)) {
                let used = waiting * hazard;
                // A block that is used within the band leaves it half-way on average.
                time += (waiting - used / 2.0) * (edges[1] - edges[0]) as f32;
                waiting -= used;
                best = best.max((1.0 - waiting) / time);
            }
            best
        })
    }

    /// Where the watch is, if it is still in the ring.
    fn find(&self, watch: WatchId) -> Option<usize> {
        let ago = u64::from((self.next as u32).wrapping_sub(watch.0));
        (ago > 0 && ago < self.next && ago <= self.ring.len() as u64).then(|| self.place(self.next - ago))
    }

    fn place(&self, watch: u64) -> usize {
        (watch % self.ring.len() as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::super::class::Return;
    use super::*;

    const CAPACITY: usize = 1000;

    fn class(uses: u8) -> Class {
        Class::of(uses, 1, Return::Soon)
    }

    /// Every 10 uses two blocks are used for the first time, one of each class. Those of class 1 are used
    /// again after 600 uses, every fourth of class 2 after 3000; no other one ever is.
    fn learnt(uses: u32) -> LifeTable {
        let mut table = LifeTable::new(CAPACITY);
        let mut waiting = std::collections::BTreeMap::<u32, Vec<WatchId>>::new();
        for (round, now) in (0..uses).step_by(10).enumerate() {
            for watch in waiting.remove(&now).unwrap_or_default() {
                table.used(watch, now);
            }
            for (uses, again) in [(1, Some(600)), (2, (round % 4 == 0).then_some(3000))] {
                let watch = table.watch(BlockKey::ROOT, now);
                table.classify(watch, class(uses));
                if let Some(again) = again {
                    waiting.entry(now + again).or_default().push(watch);
                }
            }
            table.advance(now);
        }
        table
    }

    fn band(table: &LifeTable, age: u32) -> usize {
        table.begins.partition_point(|begin| *begin <= age) - 1
    }

    #[test]
    fn hazards_are_those_of_the_process() {
        let table = learnt(100_000);
        for (uses, again, share) in [(1, 600, 1.0), (2, 3000, 0.25)] {
            let tally = &table.tallies[class(uses).index()];
            for at in 0..band(&table, 3000) {
                let hazard = tally.used[at] / tally.at_risk[at].max(1.0);
                let expected = if at == band(&table, again) { share } else { 0.0 };
                assert!((hazard - expected).abs() < 0.05, "{uses} uses, band {at}: {hazard}, not {expected}");
            }
        }
    }

    #[test]
    fn unfinished_watches_do_not_bias_the_hazard() {
        // Only the first tenth of the watches is older than 3000 uses.
        let table = learnt(3300);
        let tally = &table.tallies[class(2).index()];
        let at = band(&table, 3000);
        assert!((tally.used[at] / tally.at_risk[at] - 0.25).abs() < 0.1, "{tally:?}");
    }

    #[test]
    fn worth_rises_towards_the_expected_use_and_falls_behind_it() {
        let table = learnt(100_000);
        let worths = table.worths();
        let worth = |uses: u8, age: u32| worths[class(uses).index()][band(&table, age)];
        assert!(worth(1, 500) > worth(1, 0), "the use is nearer");
        assert!(worth(1, 2000) < worth(1, 0) / 2.0, "it should have come long ago");
        assert!(worth(1, 0) > 3.0 * worth(2, 0), "soon and certain against late and perhaps");
        assert!(worth(2, 2900) > worth(1, 2900), "and the other way round when one is overdue");
        assert_eq!(worth(1, u32::MAX), 0.0, "nothing is known beyond the horizon");
    }

    #[test]
    fn a_watch_that_the_ring_has_lost_counts_for_nothing() {
        let mut table = LifeTable::new(1);
        let first = table.watch(BlockKey::ROOT, 0);
        table.classify(first, Class::TAIL);
        let end = RING_AT_LEAST as u32 + 1;
        for now in 1..end {
            table.watch(BlockKey::ROOT, now);
        }
        table.used(first, end);
        table.used(WatchId::default(), end);
        assert_eq!(table.tallies[Class::TAIL.index()].used, [0.0; BANDS]);
    }
}
