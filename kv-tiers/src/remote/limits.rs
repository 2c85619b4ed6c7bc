//! How much one remote store may have under way.

use std::sync::Arc;

use parking_lot::Mutex;

use super::RemoteError;

/// What may be in flight at once. A call that would exceed it is refused at once and not queued: a queue in
/// front of a slow store only makes it slower, and the caller can recompute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls that have not really ended, those included whose caller has left at the deadline.
    pub calls: u32,
    /// Bytes of the records that they carry.
    pub bytes: u64,
}

/// 64 calls and 1 GiB: several times what a 25 Gbit/s link moves in 100 ms.
impl Default for Limits {
    fn default() -> Self {
        Self { calls: 64, bytes: 1 << 30 }
    }
}

/// What is in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    /// Calls.
    pub calls: u32,
    /// Bytes.
    pub bytes: u64,
}

/// Hands out permits.
#[derive(Debug)]
pub(crate) struct Gate {
    limits: Limits,
    now: Mutex<InFlight>,
}

impl Gate {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, now: Mutex::default() })
    }

    /// For one call that carries so many bytes.
    pub(crate) fn enter(self: &Arc<Self>, bytes: u64) -> Result<Permit, RemoteError> {
        if bytes > self.limits.bytes {
            return Err(RemoteError::TooLarge);
        }
        let mut now = self.now.lock();
        if now.calls >= self.limits.calls || now.bytes + bytes > self.limits.bytes {
            return Err(RemoteError::Busy);
        }
        now.calls += 1;
        now.bytes += bytes;
        drop(now);
        Ok(Permit { gate: Arc::clone(self), bytes })
    }

    pub(crate) fn in_flight(&self) -> InFlight {
        *self.now.lock()
    }
}

/// One call's share of the limits. Dropping it gives the share back.
#[derive(Debug)]
pub(crate) struct Permit {
    gate: Arc<Gate>,
    bytes: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut now = self.gate.now.lock();
        now.calls -= 1;
        now.bytes -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_bounded_and_come_back() {
        let gate = Gate::new(Limits { calls: 2, bytes: 100 });
        let first = gate.enter(60).unwrap();
        assert_eq!(gate.enter(41).unwrap_err(), RemoteError::Busy);
        assert_eq!(gate.enter(101).unwrap_err(), RemoteError::TooLarge);
        let second = gate.enter(40).unwrap();
        assert_eq!(gate.enter(0).unwrap_err(), RemoteError::Busy);
        assert_eq!(gate.in_flight(), InFlight { calls: 2, bytes: 100 });
        drop(first);
        assert_eq!(gate.enter(61).unwrap_err(), RemoteError::Busy);
        drop((gate.enter(60).unwrap(), second));
        assert_eq!(gate.in_flight(), InFlight::default());
    }
}
