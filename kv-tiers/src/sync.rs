//! The locks of this crate: `parking_lot`, or the model checker's when built with `--cfg shuttle`.

#[cfg(not(shuttle))]
mod real {
    pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};
    use std::time::Duration;

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock()
    }
    pub(crate) fn wait<'a, T>(condvar: &Condvar, mut guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        condvar.wait(&mut guard);
        guard
    }
    /// Returns after a notification, after `timeout`, or for no reason at all.
    pub(crate) fn wait_for<'a, T>(
        condvar: &Condvar,
        mut guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> MutexGuard<'a, T> {
        let _woken_or_late = condvar.wait_for(&mut guard, timeout);
        guard
    }
}

#[cfg(shuttle)]
mod model {
    pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard};
    use std::sync::PoisonError;
    use std::time::Duration;

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub(crate) fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        condvar.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }
    /// The model has no time: waits for the notification.
    pub(crate) fn wait_for<'a, T>(
        condvar: &Condvar,
        guard: MutexGuard<'a, T>,
        _timeout: Duration,
    ) -> MutexGuard<'a, T> {
        wait(condvar, guard)
    }
}

#[cfg(shuttle)]
pub(crate) use model::*;
#[cfg(not(shuttle))]
pub(crate) use real::*;
