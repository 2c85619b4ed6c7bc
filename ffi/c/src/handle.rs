//! Handles: numbers that are looked up on each call, so that a wrong one is an error and not a crash.

use std::sync::{Arc, OnceLock};

use kvtier_ffi::pool::Pool;
use kvtier_ffi::{Store, TaskQueue, Ticket};
use parking_lot::Mutex;
use slotmap::{DefaultKey, Key, KeyData, SlotMap};

use crate::entry::watch_forks;
use crate::status::{Failure, Status};

/// What a handle can name. A number is used again only with another generation.
#[derive(Clone)]
pub(crate) enum Entry {
    Store(Arc<Store>),
    /// A pool and its store.
    Pool(Arc<Pool>, Arc<Store>),
    Queue(Arc<TaskQueue>),
    Ticket(Arc<Ticket>),
}

static TABLE: OnceLock<Mutex<SlotMap<DefaultKey, Entry>>> = OnceLock::new();

fn table() -> &'static Mutex<SlotMap<DefaultKey, Entry>> {
    TABLE.get_or_init(|| {
        watch_forks();
        Mutex::default()
    })
}

/// Most handles at a time: tables that grow without bound hide leaks.
const MOST: usize = 1 << 20;

pub(crate) fn insert(entry: Entry) -> Result<u64, Failure> {
    let mut table = table().lock();
    if table.len() >= MOST {
        return Err(Failure::new(Status::OutOfResources, format!("{MOST} handles are open: close some")));
    }
    Ok(table.insert(entry).data().as_ffi())
}

/// The key that was given out as this number. Numbers that never were given out would be rounded to one that was.
fn key(handle: u64) -> Option<DefaultKey> {
    let data = KeyData::from_ffi(handle);
    (data.as_ffi() == handle).then(|| data.into())
}

fn get(handle: u64) -> Option<Entry> {
    table().lock().get(key(handle)?).cloned()
}

/// Removes the entry if `is` holds for it. Dropped by the caller, without the lock.
fn remove(handle: u64, is: impl Fn(&Entry) -> bool) -> Option<Entry> {
    let key = key(handle)?;
    let mut table = table().lock();
    if table.get(key).is_some_and(is) { table.remove(key) } else { None }
}

fn wrong(kind: &str, handle: u64) -> Failure {
    Failure::new(Status::InvalidHandle, format!("{handle:#x} is no open {kind}"))
}

macro_rules! kind {
    ($name:literal, $get:ident, $take:ident, $variant:pat => $value:expr, $type:ty) => {
        pub(crate) fn $get(handle: u64) -> Result<$type, Failure> {
            match get(handle) {
                Some($variant) => Ok($value),
                _ => Err(wrong($name, handle)),
            }
        }
        #[allow(unused_variables)] // the pattern serves for looking, too
        pub(crate) fn $take(handle: u64) -> Result<$type, Failure> {
            match remove(handle, |entry| matches!(entry, $variant)) {
                Some($variant) => Ok($value),
                _ => Err(wrong($name, handle)),
            }
        }
    };
}

kind!("store", store, take_store, Entry::Store(store) => store, Arc<Store>);
kind!("pool", pool, take_pool, Entry::Pool(pool, store) => (pool, store), (Arc<Pool>, Arc<Store>));
kind!("queue", queue, take_queue, Entry::Queue(queue) => queue, Arc<TaskQueue>);
kind!("ticket", ticket, take_ticket, Entry::Ticket(ticket) => ticket, Arc<Ticket>);

/// Releases a ticket that is done. One that is not stays: its buffers are in use.
pub(crate) fn release_ticket(handle: u64) -> Result<(), Failure> {
    let ticket = ticket(handle)?;
    if ticket.poll().is_none() {
        return Err(Failure::new(
            Status::Busy,
            "the ticket is not done: cancel it, wait for it, and release it then",
        ));
    }
    take_ticket(handle).map(drop)
}
