//! kvtier's log for Python's `logging`.
//!
//! Messages come from kvtier's own threads, which never take the interpreter: they wait here, a bounded number, until
//! a thread of Python collects them.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use pyo3::prelude::*;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::fork;

/// Messages that wait. Later ones are counted, not kept.
const MOST: usize = 1024;

/// Higher than any of `logging`: nothing is collected.
const OFF: u32 = u32::MAX;

static LEAST: AtomicU32 = AtomicU32::new(OFF);
static WAITING: Mutex<Waiting> = Mutex::new(Waiting { lines: VecDeque::new(), lost: 0, stopped: false });
static CHANGED: Condvar = Condvar::new();

struct Waiting {
    lines: VecDeque<Line>,
    lost: u64,
    stopped: bool,
}

/// The number of `logging`, the module that speaks, and what it says.
type Line = (u32, &'static str, String);

/// As in `logging`; it has nothing below DEBUG.
fn number(level: Level) -> u32 {
    match level {
        Level::ERROR => 40,
        Level::WARN => 30,
        Level::INFO => 20,
        _ => 10,
    }
}

struct Collector;

impl Subscriber for Collector {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        // The level may change at any time.
        Interest::sometimes()
    }
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // In a forked process the lock below may be held for ever.
        number(*metadata.level()) >= LEAST.load(Ordering::Relaxed) && fork::is_theirs()
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let line =
            (number(*event.metadata().level()), event.metadata().target(), text.message + &text.fields);
        let mut waiting = WAITING.lock();
        if waiting.lines.len() < MOST {
            waiting.lines.push_back(line);
        } else {
            waiting.lost += 1;
        }
        drop(waiting);
        CHANGED.notify_one();
    }
}

/// The message and its fields.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _written = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}

/// Collects messages from this level of ``logging`` on. False when the process has another collector of Rust's.
#[pyfunction]
pub(crate) fn log_level(level: u32) -> PyResult<bool> {
    fork::may_have_threads()?;
    static OURS: OnceLock<bool> = OnceLock::new();
    let ours = *OURS.get_or_init(|| tracing::subscriber::set_global_default(Collector).is_ok());
    LEAST.store(level, Ordering::Relaxed);
    WAITING.lock().stopped = false;
    Ok(ours)
}

/// Waits at most ``timeout`` seconds for messages: ``(level, module, text)``. ``None`` once it was stopped.
#[pyfunction]
pub(crate) fn next_logs(py: Python<'_>, timeout: f64) -> PyResult<Option<Vec<Line>>> {
    let limit = crate::ticket::limit(Some(timeout))?.unwrap_or(Duration::ZERO);
    if !fork::is_theirs() {
        return Ok(None);
    }
    Ok(py.detach(|| {
        let mut waiting = WAITING.lock();
        if waiting.lines.is_empty() && !waiting.stopped {
            CHANGED.wait_for(&mut waiting, limit);
        }
        let mut lines: Vec<_> = waiting.lines.drain(..).collect();
        let lost = std::mem::take(&mut waiting.lost);
        if lost > 0 {
            lines.push((30, "kvtier", format!("{lost} messages were lost: too many at once")));
        }
        (!lines.is_empty() || !waiting.stopped).then_some(lines)
    }))
}

/// Ends the collection: ``next_logs`` gives what is left, and then ``None``.
#[pyfunction]
pub(crate) fn stop_logs() {
    LEAST.store(OFF, Ordering::Relaxed);
    if fork::is_theirs() {
        WAITING.lock().stopped = true;
        CHANGED.notify_all();
    }
}
