//! A load that arrives layer by layer, so that a forward pass can start before it is complete.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use kv_core::job::TransferError;
use parking_lot::{Condvar, Mutex};

use crate::driver::{Event, RuntimeStream};

/// How far a layered load has come. Layers arrive in order, in groups.
pub struct LayerProgress {
    groups: Vec<Range<u32>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The event after each group that was queued, in order. Empty on a device without streams.
    queued: Vec<Arc<Event>>,
    /// Layers that have arrived.
    arrived: u32,
    failed: Option<TransferError>,
}

impl LayerProgress {
    pub(crate) fn new(groups: Vec<Range<u32>>) -> Arc<Self> {
        Arc::new(Self { groups, state: Mutex::default(), changed: Condvar::new() })
    }

    /// Layers whose bytes are in the device blocks: `0..layers_arrived()`.
    #[must_use]
    pub fn layers_arrived(&self) -> u32 {
        self.state.lock().arrived
    }

    /// Blocks the calling thread until a layer has arrived.
    ///
    /// # Errors
    /// Why it never will. [`TransferError::Down`] also for a layer that the load does not have.
    pub fn wait(&self, layer: u32) -> Result<(), TransferError> {
        self.group_of(layer)?;
        self.until(layer, None, |_| None::<()>).map_or(Ok(()), |arrived| arrived.map(drop))
    }

    /// [`LayerProgress::wait`] until `end` at the latest; `None` if the layer had not arrived by then.
    pub fn wait_until(&self, layer: u32, end: Instant) -> Option<Result<(), TransferError>> {
        match self.group_of(layer) {
            Ok(_) => self.until(layer, Some(end), |_| None::<()>).map(|arrived| arrived.map(drop)),
            Err(error) => Some(Err(error)),
        }
    }

    /// Lets work that is queued in `stream` from now on wait for a layer, on the GPU. Blocks the calling
    /// thread only until the copy of that layer is queued, which takes microseconds. On a device without
    /// streams it waits for the layer itself.
    ///
    /// # Safety
    /// The stream exists, in the context of the device.
    ///
    /// # Errors
    /// Why the layer will not arrive, as far as it is known by now. A load can also fail after this; its
    /// completions say so, and the blocks then hold anything.
    pub unsafe fn hold(&self, layer: u32, stream: RuntimeStream) -> Result<(), TransferError> {
        // SAFETY: the caller's word.
        unsafe { self.hold_by(layer, stream, None) }.unwrap_or(Ok(()))
    }

    /// [`LayerProgress::hold`], blocking the calling thread until `end` at the latest; `None` if the copy of the
    /// layer had not been queued by then.
    ///
    /// # Safety
    /// As for [`LayerProgress::hold`].
    pub unsafe fn hold_until(
        &self,
        layer: u32,
        stream: RuntimeStream,
        end: Instant,
    ) -> Option<Result<(), TransferError>> {
        // SAFETY: the caller's word.
        unsafe { self.hold_by(layer, stream, Some(end)) }
    }

    /// # Safety
    /// As for [`LayerProgress::hold`].
    unsafe fn hold_by(
        &self,
        layer: u32,
        stream: RuntimeStream,
        end: Option<Instant>,
    ) -> Option<Result<(), TransferError>> {
        let group = match self.group_of(layer) {
            Ok(group) => group,
            Err(error) => return Some(Err(error)),
        };
        let queued = self.until(layer, end, |state| state.queued.get(group).cloned())?;
        Some(queued.and_then(|event| match event {
            // SAFETY: the caller answers for the stream.
            Some(event) => unsafe { event.hold_runtime(stream) }.map_err(|_| TransferError::Down),
            None => Ok(()),
        }))
    }

    /// Blocks until a layer has arrived (`Ok(None)`), `found` finds something, the load has failed, or `end` has
    /// come (`None`).
    fn until<T>(
        &self,
        layer: u32,
        end: Option<Instant>,
        found: impl Fn(&State) -> Option<T>,
    ) -> Option<Result<Option<T>, TransferError>> {
        let mut state = self.state.lock();
        loop {
            if state.arrived > layer {
                return Some(Ok(None));
            }
            if let Some(error) = state.failed {
                return Some(Err(error));
            }
            if let Some(found) = found(&state) {
                return Some(Ok(Some(found)));
            }
            match end {
                None => self.changed.wait(&mut state),
                Some(end) if Instant::now() >= end => return None,
                Some(end) => drop(self.changed.wait_until(&mut state, end)),
            }
        }
    }

    fn group_of(&self, layer: u32) -> Result<usize, TransferError> {
        self.groups.iter().position(|group| group.contains(&layer)).ok_or(TransferError::Down)
    }

    /// The next group's copies are queued, and `event` follows them.
    pub(crate) fn group_queued(&self, event: Arc<Event>) {
        self.state.lock().queued.push(event);
        self.changed.notify_all();
    }

    /// All layers before `layer` have arrived, unless the load has failed: then no more will.
    pub(crate) fn arrived(&self, layer: u32) {
        let mut state = self.state.lock();
        if state.failed.is_none() {
            state.arrived = state.arrived.max(layer);
        }
        self.changed.notify_all();
    }

    /// The rest will not arrive.
    pub(crate) fn fail(&self, error: TransferError) {
        self.state.lock().failed.get_or_insert(error);
        self.changed.notify_all();
    }
}
