//! kvtier's log, handed to a callback of the caller.

use std::ffi::{CString, c_char, c_void};
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::RwLock;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::entry::calling_back;
use crate::status::{Failure, Status};

/// Level of a log message.
pub(crate) const OFF: u32 = 0;
const LEVELS: [Level; 5] = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];

/// Receives messages of the log. Called on any thread, maybe on several at once, and must not call kvtier, throw or
/// jump. `message` is valid during the call.
pub type LogCallback = Option<unsafe extern "C" fn(user: *mut c_void, level: u32, message: *const c_char)>;

struct Target {
    callback: unsafe extern "C" fn(*mut c_void, u32, *const c_char),
    user: *mut c_void,
}

// SAFETY: the caller of `set` answers for it that the callback may be called on any thread with `user`.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

static TARGET: RwLock<Option<Target>> = RwLock::new(None);
static MOST: AtomicU32 = AtomicU32::new(OFF);

/// # Safety
/// `callback` may be called with `user` on any thread until it is replaced.
pub(crate) unsafe fn set(callback: LogCallback, user: *mut c_void, level: u32) -> Result<(), Failure> {
    if level as usize > LEVELS.len() {
        return Err(Failure::argument(format!("level is {level}; it must be 0 (off) to 5 (trace)")));
    }
    let target = callback.map(|callback| Target { callback, user });
    if target.is_some() {
        use std::sync::OnceLock;
        // The process has one log. Somebody else's (of a Rust program, say) stays.
        static OURS: OnceLock<bool> = OnceLock::new();
        if !*OURS.get_or_init(|| tracing::subscriber::set_global_default(ToCallback).is_ok()) {
            return Err(Failure::new(
                Status::Busy,
                "this process has a logger of its own, which gets kvtier's messages",
            ));
        }
    }
    MOST.store(if target.is_some() { level } else { OFF }, Ordering::Relaxed);
    // Waits for callbacks that are running: afterwards the old one is called no more.
    *TARGET.write() = target;
    Ok(())
}

struct ToCallback;

fn number(level: &Level) -> u32 {
    LEVELS.iter().position(|other| other == level).map_or(OFF, |at| at as u32 + 1)
}

impl Subscriber for ToCallback {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        // The level may change at any time.
        Interest::sometimes()
    }
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        number(metadata.level()) <= MOST.load(Ordering::Relaxed)
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let text = format!("{}: {}{}", event.metadata().target(), line.message, line.fields);
        let bytes: Vec<u8> = text.bytes().filter(|byte| *byte != 0).collect();
        let text = CString::new(bytes).unwrap_or_default();
        calling_back(|| {
            if let Some(Target { callback, user }) = &*TARGET.read() {
                // SAFETY: promised to `set`; the lock keeps the callback from being replaced meanwhile.
                unsafe { callback(*user, number(event.metadata().level()), text.as_ptr()) };
            }
        });
    }
}

/// The message and its fields as text.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _written = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}
