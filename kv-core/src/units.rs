//! Newtypes for quantities that must not be mixed up: bytes, tokens, time, epochs, generations.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

quantity! {
    /// A number of bytes.
    Bytes(u64)
}
quantity! {
    /// A number of tokens.
    Tokens(u32)
}
quantity! {
    /// Nanoseconds since an origin that the caller chose. `kv-core` reads no clock: time is an argument.
    Nanos(u64)
}
quantity! {
    /// How often a namespace has been purged. A record of an older epoch is never served.
    Epoch(u64)
}
quantity! {
    /// How often an NVMe segment has been (re)opened for writing. A record whose generation differs from
    /// its segment's is a left-over and is never served.
    Generation(u64)
}

impl Add for Bytes {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}
impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

impl Nanos {
    /// The far future: a deadline that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// `ms` milliseconds.
    #[must_use]
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms.saturating_mul(1_000_000))
    }

    /// As seconds, for rates.
    #[must_use]
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e9
    }
}
impl Add for Nanos {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}
impl Sub for Nanos {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}
