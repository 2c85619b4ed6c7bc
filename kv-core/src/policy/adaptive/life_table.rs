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
/// Full rings after which old evidence counts half.
const MEMORY: usize = 4;
/// Blocks' worth of evidence at which a class is believed as much as its group. Large because one request
/// is one observation and brings dozens of blocks.
const CLASS_PRIOR: f32 = 100.0;
/// The same for a group against all blocks.
const GROUP_PRIOR: f32 = 10.0;

/// One value per age band.
pub(super) type Bands<T> = [T; BANDS];

#[derive(Clone, Copy, Default)]
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

/// Name of a watch; of no meaning once the ring has gone round.
#[derive(Clone, Copy, Default)]
pub(super) struct WatchId(u32);

/// See the module's head. Time is a count of block uses; it may wrap.
pub(super) struct LifeTable {
    /// Ages at which the bands begin.
    begins: Bands<u32>,
    tallies: Vec<Tally>,
    /// Watch `w` is at `w % ring.len()`.
    ring: Vec<Watch>,
    /// Watches begun so far.
    begun: u64,
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
        let ring = (capacity * HORIZON).div_ceil(sampling).max(1);
        let begins = std::array::from_fn(|band| match band {
            0 => 0,
            // The band's number keeps the ages apart when the capacity is tiny.
            _ => band as u32 + (capacity as f64 * FIRST * (OCTAVE * (band - 1) as f64).exp2()) as u32,
        });
        Self {
            begins,
            tallies: vec![Tally::default(); Class::COUNT],
            ring: vec![Watch { start: 0, waiting: None }; ring],
            begun: 0,
            entering: [0; BANDS],
            sampling: sampling as u64,
            halve_at: (MEMORY * ring) as u64,
        }
    }

    /// The age at which `band` begins.
    pub(super) fn begin_of(&self, band: usize) -> u32 {
        self.begins[band]
    }

    /// Begins to watch a use of `key`, if `key` belongs to the sample.
    pub(super) fn watch(&mut self, key: BlockKey, now: u32) -> Option<WatchId> {
        if key.high() >> 32 & (self.sampling - 1) != 0 {
            return None;
        }
        let at = self.place(self.begun);
        self.ring[at] = Watch { start: now, waiting: None };
        self.begun += 1;
        Some(WatchId((self.begun - 1) as u32))
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
        let oldest = self.begun.saturating_sub(self.ring.len() as u64);
        for band in 1..BANDS {
            let mut entering = self.entering[band].max(oldest);
            while entering < self.begun {
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
        if self.begun >= self.halve_at {
            self.halve_at = self.begun + (MEMORY * self.ring.len()) as u64;
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

    fn find(&self, watch: WatchId) -> Option<usize> {
        let ago = (self.begun as u32).wrapping_sub(watch.0);
        let known = ago > 0 && u64::from(ago) <= self.begun && ago as usize <= self.ring.len();
        known.then(|| self.place(self.begun - u64::from(ago)))
    }

    fn place(&self, watch: u64) -> usize {
        (watch % self.ring.len() as u64) as usize
    }
}
