//! The account behind "never worse than recomputing", in whole nanoseconds.
//!
//! ```text
//!   A   time that requests have spent: passes of prefill, and waiting for loads
//!   B   time that they would have spent by recomputing everything
//!   invariant:  A + reserved <= B + B/50 + K        at every moment, whatever a source does
//! ```
//!
//! *Why it holds.* A pass of prefill adds the same to both sides. A load is admitted only if the account has room for
//! the whole time that its request may wait in vain, and that time stays reserved until the outcome is told, however
//! late, so that loads which run at once cannot spend the same room twice. In vain costs at most what was reserved;
//! a load that arrives adds its wait to `A`, and to `B` what recomputing would *surely* have taken, so room is lost by at
//! most what was reserved again. The recompute that follows a load in vain is a pass like any other: however much
//! slower than predicted it is, it is on both sides.
//!
//! What is left to the caller is to stop waiting at the deadline. Whoever does it late is charged for it, and from
//! then on that much more is reserved.

use super::snapshot::{Damaged, Reader, Writer};
use crate::units::Nanos;

/// Of the time that recomputing takes, one part in this many may be lost: epsilon is 2 %.
const EPSILON_PART: u64 = 50;
/// K: what may be lost before anything was gained.
pub const CREDIT: Nanos = Nanos::from_millis(1_000);
/// After an outcome without it, the lateness that is reserved for shrinks by this part.
const LATENESS_FORGET: u64 = 16;

/// Totals of the ledger at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// A: time spent.
    pub actual: Nanos,
    /// B: time that recomputing would have taken.
    pub recompute_only: Nanos,
    /// What loads under way may still cost.
    pub reserved: Nanos,
}

impl Balance {
    /// The most that may have been spent by now.
    #[must_use]
    pub fn limit(&self) -> Nanos {
        self.recompute_only + Nanos(self.recompute_only.0 / EPSILON_PART) + CREDIT
    }

    /// What another load may cost.
    #[must_use]
    pub fn room(&self) -> Nanos {
        self.limit() - self.actual - self.reserved
    }
}

/// Time set aside for one load. Consumed when the load is settled.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "what is reserved stays so until the load is settled"]
pub(super) struct Reservation {
    amount: Nanos,
    deadline: Nanos,
}

/// See the module's head.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ledger {
    balance: Balance,
    /// By how much deadlines have been missed lately.
    lateness: Nanos,
}

impl Ledger {
    pub(super) const fn balance(&self) -> Balance {
        self.balance
    }

    /// The longest wait that can be admitted now.
    pub(super) fn room(&self) -> Nanos {
        self.balance.room() - self.lateness
    }

    /// Reserves for a request that waits until `deadline` at most. `None` if there is no room.
    pub(super) fn reserve(&mut self, deadline: Nanos) -> Option<Reservation> {
        let amount = deadline + self.lateness;
        if amount > self.balance.room() {
            return None;
        }
        self.balance.reserved = self.balance.reserved + amount;
        Some(Reservation { amount, deadline })
    }

    /// A pass of prefill.
    pub(super) fn pass(&mut self, took: Nanos) {
        self.balance.actual = self.balance.actual + took;
        self.balance.recompute_only = self.balance.recompute_only + took;
    }

    /// The request waited `waited` and did not have to recompute, which would have taken at least `saved`.
    pub(super) fn gained(&mut self, reservation: Reservation, waited: Nanos, saved: Nanos) {
        self.spent(reservation, waited);
        self.balance.recompute_only = self.balance.recompute_only + saved;
    }

    /// The request waited in vain.
    pub(super) fn lost(&mut self, reservation: Reservation, waited: Nanos) {
        let late = waited - reservation.deadline;
        let calmer = Nanos(self.lateness.0 - self.lateness.0.div_ceil(LATENESS_FORGET));
        self.lateness = late.max(calmer);
        self.spent(reservation, waited);
    }

    fn spent(&mut self, reservation: Reservation, waited: Nanos) {
        self.balance.reserved = self.balance.reserved - reservation.amount;
        self.balance.actual = self.balance.actual + waited;
    }

    pub(super) fn save(&self, out: &mut Writer) {
        // Loads under way will not be settled in the next process: they count as lost.
        out.u64((self.balance.actual + self.balance.reserved).0);
        out.u64(self.balance.recompute_only.0);
        out.u64(self.lateness.0);
    }

    pub(super) fn load(&mut self, from: &mut Reader<'_>) -> Result<(), Damaged> {
        let (actual, recompute_only) = (Nanos(from.u64()?), Nanos(from.u64()?));
        self.balance = Balance { actual, recompute_only, reserved: Nanos(0) };
        self.lateness = Nanos(from.u64()?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the adversary does next. Sizes are shares, so that it can aim at the very edge of the room.
    #[derive(Clone, Debug)]
    enum Move {
        Pass(u64),
        Admit {
            share_of_room: f64,
        },
        /// Settle one of the loads under way: waited as a share of its deadline, and whether it came.
        Settle {
            which: usize,
            waited: f64,
            saved: Option<u64>,
        },
    }

    fn moves() -> impl Strategy<Value = Move> {
        let share = || prop_oneof![Just(0.0), Just(1.0), 0.0..1.0f64];
        prop_oneof![
            (0..20_000_000_000u64).prop_map(Move::Pass),
            (prop_oneof![share(), 1.0..3.0f64]).prop_map(|share_of_room| Move::Admit { share_of_room }),
            (any::<usize>(), share(), prop::option::of(0..5_000_000_000u64))
                .prop_map(|(which, waited, saved)| Move::Settle { which, waited, saved }),
        ]
    }

    proptest! {
        /// The adversary sees the room, chooses deadlines and outcomes, and settles in any order or never.
        #[test]
        fn no_adversary_breaks_the_invariant(moves in prop::collection::vec(moves(), 1..300)) {
            let mut ledger = Ledger::default();
            let mut open = Vec::new();
            for step in moves {
                match step {
                    Move::Pass(took) => ledger.pass(Nanos(took)),
                    Move::Admit { share_of_room } => {
                        let room = ledger.room();
                        let deadline = Nanos((room.0 as f64 * share_of_room) as u64);
                        let reservation = ledger.reserve(deadline);
                        prop_assert_eq!(reservation.is_some(), deadline <= room);
                        open.extend(reservation);
                    }
                    Move::Settle { which, waited, saved } if !open.is_empty() => {
                        let reservation = open.swap_remove(which % open.len());
                        let waited = Nanos((reservation.deadline.0 as f64 * waited) as u64);
                        match saved {
                            Some(saved) => ledger.gained(reservation, waited, Nanos(saved)),
                            None => ledger.lost(reservation, waited),
                        }
                    }
                    Move::Settle { .. } => {}
                }
                let balance = ledger.balance();
                let held: u64 = open.iter().map(|r| r.amount.0).sum();
                prop_assert_eq!(balance.reserved.0, held);
                prop_assert!(balance.actual.0 + held <= balance.limit().0, "{:?}", balance);
            }
        }

        /// A caller that looks at its clock late breaks the promise by its lateness and by no more.
        #[test]
        fn lateness_is_charged_and_then_reserved_for(late in prop::collection::vec(0..50_000_000u64, 1..100)) {
            let mut ledger = Ledger::default();
            let mut total = 0;
            for late in late {
                ledger.pass(Nanos::from_millis(2_000));
                if let Some(reservation) = ledger.reserve(Nanos::from_millis(20)) {
                    let covered = reservation.amount - reservation.deadline;
                    ledger.lost(reservation, Nanos::from_millis(20) + Nanos(late));
                    total += late.saturating_sub(covered.0);
                    prop_assert!(ledger.lateness.0 >= late);
                }
                prop_assert!(ledger.balance().actual.0 <= ledger.balance().limit().0 + total);
            }
        }
    }

    #[test]
    fn at_the_end_of_time_nothing_is_admitted() {
        let mut ledger = Ledger::default();
        ledger.pass(Nanos::NEVER);
        ledger.pass(Nanos::NEVER);
        assert!(ledger.reserve(Nanos(1)).is_none());
    }
}
