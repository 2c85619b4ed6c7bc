//! Resident blocks, sorted into cells of equal worth: one per class and age band.

use super::class::Class;
use super::life_table::{BANDS, Bands, LifeTable};
use crate::ids::SlotId;
use crate::policy::list::{Links, List};

const ABSENT: u16 = u16::MAX;
const CELLS: usize = Class::COUNT * BANDS;
/// Blocks of one cell that a search refuses before it goes on to the next better cell.
const PATIENCE: usize = 1;

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
        for cell in 0..CELLS {
            let band = cell % BANDS;
            if band + 1 == BANDS {
                continue;
            }
            while let Some(slot) = self.lists[cell].front() {
                if now.wrapping_sub(self.places[slot.0 as usize].born) < table.begin_of(band + 1) {
                    break;
                }
                self.remove(slot);
                self.push(slot, cell + 1);
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

    /// A block of the least worth among those that `wanted` accepts.
    ///
    /// Most refused blocks have a descendant in a better cell. They go to the back of their own cell, where
    /// they do not stand in the way of the next search.
    pub(super) fn find(&mut self, wanted: &mut dyn FnMut(SlotId) -> bool) -> Option<SlotId> {
        for word in 0..self.occupied.len() {
            let mut ranks = self.occupied[word];
            while ranks != 0 {
                let rank = word * 64 + ranks.trailing_zeros() as usize;
                ranks &= ranks - 1;
                let list = &mut self.lists[cell_of(self.order[rank])];
                for _ in 0..list.len().min(PATIENCE) {
                    let slot = list.front()?;
                    if wanted(slot) {
                        return Some(slot);
                    }
                    list.unlink(&mut self.links, slot);
                    list.push_back(&mut self.links, slot);
                }
            }
        }
        self.ascending().find(|slot| wanted(*slot))
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
