//! What a policy can know about a block when it is used: the class whose life table applies to it.

/// Uses from which on a block counts as shared by conversations rather than as part of one.
const SHARED: u8 = 21;

/// How a request continues what was seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Return {
    /// It does not, but for prefixes that everybody shares.
    New,
    /// Its last part was used less than one capacity (in block uses) ago.
    Soon,
    /// Less than eight.
    Later,
    /// More.
    Late,
}

impl Return {
    /// From how often the deepest known block had been used before and how long ago, in block uses.
    pub(super) fn of(uses: u8, gap: u32, capacity: usize) -> Self {
        match gap as usize {
            _ if uses == 0 || uses >= SHARED => Self::New,
            gap if gap < capacity => Self::Soon,
            gap if gap / 8 < capacity => Self::Later,
            _ => Self::Late,
        }
    }
}

/// A class of blocks. Classes of one [`Class::group`] share their block's number of uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class(u16);

impl Class {
    /// Number of classes.
    pub(super) const COUNT: usize = Self::GROUPS * Self::PER_GROUP;
    /// Number of groups: seven of uses, and the tails.
    pub(super) const GROUPS: usize = 8;
    /// Six sizes of what is new times four kinds of return.
    const PER_GROUP: usize = 24;

    /// The last block of a request. It is often partly filled, and then never used again.
    pub(super) const TAIL: Self = Self(((Self::GROUPS - 1) * Self::PER_GROUP) as u16);

    /// Of a block that has been used `uses` times, the last time in a request with `fresh` new blocks.
    pub(super) fn of(uses: u8, fresh: usize, back: Return) -> Self {
        let group = match uses {
            0..=1 => 0,
            2 => 1,
            3 => 2,
            4..=5 => 3,
            6..=9 => 4,
            10..SHARED => 5,
            SHARED.. => 6,
        };
        let size = match fresh {
            0 => 0,
            1..=3 => 1,
            4..=7 => 2,
            8..=15 => 3,
            16..=63 => 4,
            64.. => 5,
        };
        Self((group * Self::PER_GROUP + size * 4 + back as usize) as u16)
    }

    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT as u16).map(Self)
    }

    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }

    pub(super) fn group(self) -> usize {
        self.index() / Self::PER_GROUP
    }
}
