//! A client of the library, and the calls to it. Every call blocks for as long as the library likes.

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char, c_void};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::bindings::MooncakeApi;
use super::staging::{Lane, Staging};
use super::{MooncakeConfig, THREADS, library};
use crate::remote::OpenError;
use crate::remote::envelope::HEADER;

/// A client that is set up. Calls may come from any thread; the last owner ends it.
pub(super) struct Session {
    api: &'static MooncakeApi,
    handle: NonNull<c_void>,
    staging: Arc<Staging>,
    /// Dropped last: whoever has the other end knows that the client has ended.
    _alive: Sender<Infallible>,
}

// SAFETY: the handle is a pointer to a client that locks for itself; Mooncake's own callers share it among threads.
unsafe impl Send for Session {}
// SAFETY: as above.
unsafe impl Sync for Session {}

/// The answers of a call that failed as a whole.
fn all(code: i64, n: usize) -> Vec<i64> {
    vec![if code < 0 { code } else { -1 }; n]
}

impl Session {
    /// Loads the library, connects to the master, registers memory.
    ///
    /// # Errors
    /// [`OpenError`].
    pub(super) fn open(config: &MooncakeConfig, alive: Sender<Infallible>) -> Result<Self, OpenError> {
        let text = |text: &str, what| CString::new(text).map_err(|_| OpenError::Configuration(what));
        let hostname = text(&config.hostname, "hostname")?;
        let metadata = text(&config.metadata, "metadata")?;
        let protocol = text(&config.protocol, "protocol")?;
        let devices = text(&config.devices, "devices")?;
        let master = text(&config.master, "master")?;
        let memory = "record_bytes";
        let record_bytes = config.record_bytes.checked_add(HEADER).ok_or(OpenError::Configuration(memory))?;
        let staging = Staging::new(THREADS, record_bytes).ok_or(OpenError::Configuration(memory))?;
        let api = library::load(config.library.as_deref())?;

        // SAFETY: takes nothing.
        let handle = NonNull::new(unsafe { api.mooncake_store_create() })
            .ok_or(OpenError::Setup { call: "mooncake_store_create", code: 0 })?;
        // From here on it ends with the session.
        let session = Self { api, handle, staging, _alive: alive };
        let (start, len) = session.staging.whole();
        // SAFETY: the strings live until the call returns, which is as long as the library uses them.
        let code = unsafe {
            api.mooncake_store_setup(
                handle.as_ptr(),
                hostname.as_ptr(),
                metadata.as_ptr(),
                config.segment_bytes,
                // Through which it loads what lies on a disk.
                len as u64,
                protocol.as_ptr(),
                devices.as_ptr(),
                master.as_ptr(),
            )
        };
        if code != 0 {
            return Err(OpenError::Setup { call: "mooncake_store_setup", code: code.into() });
        }
        // SAFETY: the memory is the staging's, which the session keeps until the client has ended.
        let code = unsafe { api.mooncake_store_register_buffer(handle.as_ptr(), start, len) };
        if code != 0 {
            return Err(OpenError::Setup { call: "mooncake_store_register_buffer", code: code.into() });
        }
        Ok(session)
    }

    pub(super) fn staging(&self) -> &Arc<Staging> {
        &self.staging
    }

    /// For each name 1, 0 or a code.
    pub(super) fn exist(&self, names: &[CString]) -> Vec<i64> {
        let (mut keys, mut answers) = (pointers(names), vec![-1; names.len()]);
        // SAFETY: `keys` and `answers` have as many entries as is said, and live until the call returns.
        let code = unsafe {
            self.api.mooncake_store_batch_is_exist(
                self.handle.as_ptr(),
                keys.as_mut_ptr(),
                names.len(),
                answers.as_mut_ptr(),
            )
        };
        if code == 0 { answers.into_iter().map(i64::from).collect() } else { all(code.into(), names.len()) }
    }

    /// Loads values into rooms of a lane, one for each name; for each its length or a code.
    pub(super) fn get(&self, names: &[CString], lane: &mut Lane, rooms: &[Range<usize>]) -> Vec<i64> {
        debug_assert_eq!(names.len(), rooms.len());
        let (mut keys, mut answers) = (pointers(names), vec![-1; names.len()]);
        let (mut buffers, sizes) = places(lane, rooms);
        // SAFETY: the four arrays have as many entries as is said, each room lies in the lane, which is borrowed and
        // registered, and all of it lives until the call returns.
        let code = unsafe {
            self.api.mooncake_store_batch_get_into(
                self.handle.as_ptr(),
                keys.as_mut_ptr(),
                buffers.as_mut_ptr(),
                sizes.as_ptr(),
                names.len().min(rooms.len()),
                answers.as_mut_ptr(),
            )
        };
        if code == 0 { answers } else { all(code.into(), names.len()) }
    }

    /// Stores what is in rooms of a lane, one for each name; for each 0 or a code.
    pub(super) fn put(&self, names: &[CString], lane: &mut Lane, rooms: &[Range<usize>]) -> Vec<i64> {
        debug_assert_eq!(names.len(), rooms.len());
        let (mut keys, mut answers) = (pointers(names), vec![-1; names.len()]);
        let (mut buffers, sizes) = places(lane, rooms);
        // SAFETY: as in `get`; the library only reads. Null stands for one replica anywhere.
        let code = unsafe {
            self.api.mooncake_store_batch_put_from(
                self.handle.as_ptr(),
                keys.as_mut_ptr(),
                buffers.as_mut_ptr(),
                sizes.as_ptr(),
                names.len().min(rooms.len()),
                std::ptr::null(),
                answers.as_mut_ptr(),
            )
        };
        if code == 0 { answers.into_iter().map(i64::from).collect() } else { all(code.into(), names.len()) }
    }

    /// Length of a value, or a code.
    pub(super) fn size(&self, name: &CStr) -> i64 {
        // SAFETY: the name lives until the call returns.
        unsafe { self.api.mooncake_store_get_size(self.handle.as_ptr(), name.as_ptr()) }
    }

    /// 0 or a code. Leases of readers do not count: what they read is verified.
    pub(super) fn remove(&self, name: &CStr) -> i64 {
        // SAFETY: the name lives until the call returns.
        unsafe { self.api.mooncake_store_remove(self.handle.as_ptr(), name.as_ptr(), 1) }.into()
    }

    /// How many, or a code.
    pub(super) fn remove_by_pattern(&self, pattern: &CStr) -> i64 {
        // SAFETY: the pattern lives until the call returns.
        unsafe { self.api.mooncake_store_remove_by_regex(self.handle.as_ptr(), pattern.as_ptr(), 1) }
    }
}

fn pointers(names: &[CString]) -> Vec<*const c_char> {
    names.iter().map(|name| name.as_ptr()).collect()
}

fn places(lane: &mut Lane, rooms: &[Range<usize>]) -> (Vec<*mut c_void>, Vec<usize>) {
    rooms.iter().map(|room| (lane.address(room), room.len())).unzip()
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: whoever is in a call has the session, so nobody is, and nobody will be. The staging, a field, lives
        // longer. A library that does not know the memory says so, which is no loss.
        unsafe {
            self.api.mooncake_store_unregister_buffer(self.handle.as_ptr(), self.staging.whole().0);
            self.api.mooncake_store_destroy(self.handle.as_ptr());
        }
    }
}
