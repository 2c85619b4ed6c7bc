//! Resident blocks, sorted into cells of equal worth: one per class and age band.

use super::class::Class;
use super::life_table::{BANDS, Bands, LifeTable};
use crate::ids::SlotId;
use crate::policy::list::{Links, List};

const ABSENT: u16 = u16::MAX;
const CELLS: usize = Class::COUNT * BANDS;

#[derive(Clone, Copy)]
struct Place {
    cell: u16,
    /// Last use.
    born: u32,
}

/// The cell in an entry of [`Cells::order`].
fn cell_of(key: u64) -> usize {
    (key & 0xffff) as usize
}

/// The ranks whose bits are set in the given word of [`Cells::occupied`].
fn ranks(word: usize, mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let rank = (bits != 0).then(|| word * 64 + bits.trailing_zeros() as usize)?;
        bits &= bits - 1;
        Some(rank)
    })
}

/// See the module's head.
pub(super) struct Cells {
    links: Links,
    places: Vec<Place>,
    lists: Vec<List>,
    /// Cells by ascending worth, as `worth bits << 32 | younger << 16 | cell`, and where each cell is in
    /// that order.
    order: Vec<u64>,
    rank: Vec<u16>,
    /// One bit per rank: the cell is not empty.
    occupied: Vec<u64>,
}

impl Cells {
    pub(super) fn new(capacity: usize) -> Self {
        let mut cells = Self {
            links: Links::new(capacity),
            places: vec![Place { cell: ABSENT, born: 0 }; capacity],
            lists: vec![List::EMPTY; CELLS],
            order: vec![0; CELLS],
            rank: vec![0; CELLS],
            occupied: vec![0; CELLS.div_ceil(64)],
        };
        cells.reorder(&vec![[0.0; BANDS]; Class::COUNT]);
        cells
    }

    pub(super) fn capacity(&self) -> usize {
        self.places.len()
    }

    /// Puts `slot`, last used at `now`, among the youngest of its class.
    pub(super) fn put(&mut self, slot: SlotId, class: Class, now: u32) {
        self.remove(slot);
        self.places[slot.0 as usize].born = now;
        self.push(slot, class.index() * BANDS);
    }

    /// The class of which a new block is worth more; `a` among equals.
    pub(super) fn better(&self, a: Class, b: Class) -> Class {
        let rank = |class: Class| self.rank[class.index() * BANDS];
        if rank(b) > rank(a) { b } else { a }
    }

    /// Takes `slot` out if it is there.
    pub(super) fn remove(&mut self, slot: SlotId) {
        let cell = self.places.get(slot.0 as usize).map_or(ABSENT, |place| place.cell);
        if cell == ABSENT {
            return;
        }
        self.places[slot.0 as usize].cell = ABSENT;
        let list = &mut self.lists[usize::from(cell)];
        list.unlink(&mut self.links, slot);
        if list.len() == 0 {
            let rank = self.rank[usize::from(cell)];
            self.occupied[usize::from(rank / 64)] &= !(1 << (rank % 64));
        }
    }

    /// Moves the blocks that have grown too old for their band to the next one.
    pub(super) fn advance(&mut self, now: u32, table: &LifeTable) {
        for word in 0..self.occupied.len() {
            for rank in ranks(word, self.occupied[word]) {
                let cell = cell_of(self.order[rank]);
                let next_band = cell % BANDS + 1;
                if next_band == BANDS {
                    continue;
                }
                let leaves_at = table.begin_of(next_band);
                while let Some(slot) = self.lists[cell].front() {
                    if now.wrapping_sub(self.places[slot.0 as usize].born) < leaves_at {
                        break;
                    }
                    self.remove(slot);
                    self.push(slot, cell + 1);
                }
            }
        }
    }

    /// Sorts the cells by new worths; among equals the older band comes first.
    pub(super) fn reorder(&mut self, worths: &[Bands<f32>]) {
        for (cell, key) in self.order.iter_mut().enumerate() {
            let (class, band) = (cell / BANDS, cell % BANDS);
            // The bits of floats that are not negative are in the order of the floats.
            let worth = u64::from(worths[class][band].to_bits());
            *key = (worth << 32) | ((BANDS - band) << 16) as u64 | cell as u64;
        }
        self.order.sort_unstable();
        self.occupied.fill(0);
        for (rank, key) in self.order.iter().enumerate() {
            let cell = cell_of(*key);
            self.rank[cell] = rank as u16;
            if self.lists[cell].len() > 0 {
                self.occupied[rank / 64] |= 1 << (rank % 64);
            }
        }
    }

    /// A block of the least worth among those that `wanted` accepts; approximately, if the cell has others.
    pub(super) fn find(&mut self, wanted: &mut dyn FnMut(SlotId) -> bool) -> Option<SlotId> {
        self.find_in_front(wanted).or_else(|| self.ascending().find(|slot| wanted(*slot)))
    }

    /// Takes out up to `many` blocks that `take` accepts and returns how many: as [`Cells::find`] for each, but
    /// once the fronts are all refused goes over the rest a single time for all.
    pub(super) fn evict(&mut self, many: usize, take: &mut dyn FnMut(SlotId) -> bool) -> usize {
        let mut taken = 0;
        while taken < many
            && let Some(slot) = self.find_in_front(take)
        {
            self.remove(slot);
            taken += 1;
        }
        // A second pass only if to take some has made others acceptable.
        let mut before = usize::MAX;
        while taken < many && taken != before {
            before = taken;
            for rank in 0..CELLS {
                let mut at = self.lists[cell_of(self.order[rank])].front();
                while taken < many
                    && let Some(slot) = at
                {
                    at = List::after(&self.links, slot);
                    if take(slot) {
                        self.remove(slot);
                        taken += 1;
                    }
                }
            }
        }
        taken
    }

    /// Asks one block per cell. Most refused blocks have a descendant in a better cell; they go to the back of
    /// their own, where they do not stand in the way of the next search.
    fn find_in_front(&mut self, wanted: &mut dyn FnMut(SlotId) -> bool) -> Option<SlotId> {
        for word in 0..self.occupied.len() {
            for rank in ranks(word, self.occupied[word]) {
                let list = &mut self.lists[cell_of(self.order[rank])];
                let slot = list.front()?;
                if wanted(slot) {
                    return Some(slot);
                }
                list.unlink(&mut self.links, slot);
                list.push_back(&mut self.links, slot);
            }
        }
        None
    }

    /// Every block, least worth first.
    pub(super) fn ascending(&self) -> impl Iterator<Item = SlotId> {
        let lists = self.order.iter().map(|key| &self.lists[cell_of(*key)]);
        lists.flat_map(|list| list.iter(&self.links))
    }

    fn push(&mut self, slot: SlotId, cell: usize) {
        self.places[slot.0 as usize].cell = cell as u16;
        self.lists[cell].push_back(&mut self.links, slot);
        let rank = self.rank[cell];
        self.occupied[usize::from(rank / 64)] |= 1 << (rank % 64);
    }
}

#[cfg(test)]
mod tests {
    use super::super::class::Return;
    use super::*;

    const OLD: Class = Class::TAIL;

    fn worths(of: impl Fn(Class, usize) -> f32) -> Vec<Bands<f32>> {
        Class::all().map(|class| std::array::from_fn(|band| of(class, band))).collect()
    }

    #[test]
    fn the_least_worth_leaves_first_and_age_changes_the_worth() {
        let young = Class::of(1, 1, Return::New);
        let table = LifeTable::new(1000);
        let mut cells = Cells::new(8);
        // A `young` block is worth less than an `OLD` one until both have aged by a band.
        cells.reorder(&worths(|class, band| match (class == young, band) {
            (true, 0) => 1.0,
            (false, 0) => 2.0,
            (true, _) => 4.0,
            (false, _) => 3.0,
        }));
        cells.put(SlotId(0), OLD, 0);
        cells.put(SlotId(1), young, 0);
        assert_eq!(cells.better(young, OLD), OLD);
        assert_eq!(cells.find(&mut |_| true), Some(SlotId(1)));
        cells.advance(table.begin_of(1) - 1, &table);
        assert_eq!(cells.find(&mut |_| true), Some(SlotId(1)));
        cells.advance(table.begin_of(1), &table);
        assert_eq!(cells.find(&mut |_| true), Some(SlotId(0)));
        cells.remove(SlotId(0));
        cells.remove(SlotId(0));
        assert_eq!(cells.find(&mut |_| true), Some(SlotId(1)));
        assert_eq!(cells.find(&mut |_| false), None);
    }

    #[test]
    fn a_block_that_is_refused_hides_none() {
        let mut cells = Cells::new(100);
        (0..100).for_each(|slot| cells.put(SlotId(slot), OLD, slot));
        for wanted in [0, 50, 99, 3] {
            assert_eq!(cells.find(&mut |slot| slot.0 == wanted), Some(SlotId(wanted)));
        }
        assert_eq!(cells.ascending().count(), 100);
    }
}
