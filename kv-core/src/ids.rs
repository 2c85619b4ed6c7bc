//! Identifiers. Plain integers on the wire, distinct types in the code.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}#{}", stringify!($name), self.0)
            }
        }
    };
}

id! {
    /// A block-sized place in one tier. In `Hbm` and `Host` it is an index into the pool or arena; in
    /// `Nvme` it is `segment * records_per_segment + record`.
    SlotId(u32)
}
id! {
    /// One copy that a hand was asked to make; unique for the life of a planner.
    JobId(u64)
}
id! {
    /// One request between `acquire` and its end; unique for the life of a planner.
    RequestId(u64)
}
id! {
    /// One preallocated file of the NVMe log.
    SegmentId(u32)
}
id! {
    /// One remote store: its place in [`SlowSources::remotes`](crate::planner::SlowSources).
    RemoteId(u8)
}
