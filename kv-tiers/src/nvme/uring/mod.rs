//! The io_uring backend: one ring, and one thread that owns it.
//!
//! ```text
//!   submit() ──► inbox ──eventfd──► thread: queue ► task ► SQE ──► kernel
//!   sink     ◄──────────────────── thread: verify ◄────── CQE ◄──┘
//! ```
//!
//! Buffers are the chunks of the arena and files are the segments, both registered once, so that a transfer
//! costs no page pinning and no reference counting. A sync is a ring operation too, which the kernel runs on
//! a thread of its own; reads never wait behind it. The ring is neither SQPOLL nor IOPOLL: the one burns a
//! core, the other is refused by most filesystems.

mod driver;

use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use io_uring::{IoUring, Probe, opcode};
use kv_core::job::{Job, TransferError};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use driver::Driver;

use super::segments::Segments;
use super::sink::{CompletionSink, deliver};
use super::store::FileStore;

/// A running ring.
pub(crate) struct Uring {
    inbox: Arc<Inbox>,
    sink: Arc<dyn CompletionSink>,
    thread: Option<JoinHandle<()>>,
    how: String,
}

/// How other threads reach the one that owns the ring.
struct Inbox {
    mail: Mutex<Mail>,
    /// Eventfd that the ring polls.
    wake: OwnedFd,
}

#[derive(Default)]
struct Mail {
    jobs: Vec<Job>,
    stop: Option<Stop>,
    /// The thread takes no more mail.
    dead: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    Drain,
    Abandon,
}

impl Inbox {
    fn wake(&self) {
        // Fails only if the counter is at its maximum, and then the ring is awake.
        if let Err(e) = rustix::io::write(&self.wake, &1u64.to_ne_bytes()) {
            tracing::debug!("eventfd: {e}");
        }
    }
}

impl Uring {
    /// Makes a ring, or says why there is none. `register` is whether to try registered buffers and files.
    pub(crate) fn start(
        segments: Arc<Segments>,
        files: Arc<FileStore>,
        depth: u32,
        sink: Arc<dyn CompletionSink>,
        register: bool,
    ) -> Result<Self, String> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| format!("no eventfd: {e}"))?;
        let inbox = Arc::new(Inbox { mail: Mutex::default(), wake });
        let (told, hear) = mpsc::channel();
        let thread = std::thread::Builder::new().name("kvtier-nvme".into()).spawn({
            let (inbox, sink) = (Arc::clone(&inbox), Arc::clone(&sink));
            // A ring with one issuer belongs to the thread that makes it.
            move || match Driver::new(segments, files, depth, inbox, sink, register) {
                Ok((driver, how)) => {
                    drop(told.send(Ok(how)));
                    driver.run();
                }
                Err(why) => drop(told.send(Err(why))),
            }
        });
        let thread = thread.map_err(|e| format!("no thread: {e}"))?;
        let how = hear.recv().unwrap_or_else(|_| Err("the ring's thread panicked".into()))?;
        Ok(Self { inbox, sink, thread: Some(thread), how })
    }

    /// What the kernel granted.
    pub(crate) fn how(&self) -> &str {
        &self.how
    }

    pub(crate) fn submit(&self, jobs: &[Job]) {
        let mut mail = self.inbox.mail.lock();
        let dead = mail.dead;
        if !dead {
            mail.jobs.extend_from_slice(jobs);
        }
        drop(mail);
        if dead {
            jobs.iter().for_each(|job| deliver(&*self.sink, job.id, Err(TransferError::Down)));
        } else {
            self.inbox.wake();
        }
    }

    /// Ends the thread, after everything submitted if `drain`.
    pub(crate) fn stop(&mut self, drain: bool) {
        let Some(thread) = self.thread.take() else { return };
        self.inbox.mail.lock().stop = Some(if drain { Stop::Drain } else { Stop::Abandon });
        self.inbox.wake();
        if thread.join().is_err() {
            tracing::error!("the ring's thread panicked");
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.stop(false);
    }
}

/// A ring with what the kernel has of: one issuer, completions only when asked for.
fn make_ring(entries: u32) -> Result<IoUring, String> {
    let entries = entries.next_power_of_two();
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(entries)
        // Before Linux 6.1.
        .or_else(|_| IoUring::builder().build(entries))
        .map_err(|e| format!("no ring: {e}; check /proc/sys/kernel/io_uring_disabled and seccomp"))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|e| format!("no probe: {e}"))?;
    let needed = [
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::ReadFixed::CODE,
        opcode::WriteFixed::CODE,
        opcode::Fsync::CODE,
        opcode::PollAdd::CODE,
    ];
    match needed.into_iter().find(|&code| !probe.is_supported(code)) {
        Some(code) => Err(format!("the kernel lacks operation {code}")),
        None => Ok(ring),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use kv_core::ids::{JobId, SegmentId, SlotId};
    use kv_core::job::{Op, Place, RecordMeta, Urgency};
    use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
    use kv_core::units::{Epoch, Generation};
    use kv_core::{Mismatch, RecordIdentity, Verified};

    use super::*;
    use crate::arena::{Arena, ArenaConfig};
    use crate::nvme::{LogConfig, OpenMode};

    struct Channel(mpsc::Sender<(JobId, Result<(), TransferError>)>);
    impl CompletionSink for Channel {
        fn complete(&self, job: JobId, result: Result<Verified, TransferError>) {
            self.0.send((job, result.map(drop))).unwrap();
        }
    }

    /// What a user without the right to lock memory gets.
    #[test]
    fn a_ring_without_registrations_does_the_same() {
        for register in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let files = Arc::new(FileStore::open(dir.path()).unwrap());
            let arena = Arena::new(ArenaConfig::new(4, 9000)).unwrap();
            let config = LogConfig { segments: 2, records_per_segment: 4, mode: OpenMode::Recover };
            let (segments, _) = Segments::open(Arc::clone(&files) as _, Arc::clone(&arena), config).unwrap();
            let (told, heard) = mpsc::channel();
            let sink = Arc::new(Channel(told));
            let ring = match Uring::start(Arc::new(segments), files, 4, sink, register) {
                Ok(ring) => ring,
                Err(why) => {
                    eprintln!("\n*** io_uring IS NOT TESTED on this machine: {why} ***\n");
                    return;
                }
            };
            assert_eq!(ring.how() == "nothing registered", !register);
            let run = |op| {
                ring.submit(&[Job { id: JobId(1), op, urgency: Urgency::Demand }]);
                heard.recv().unwrap().1
            };
            let generation = Generation(1);
            let place = Place { segment: SegmentId(1), generation, index: 3 };
            let (namespace, fingerprint) = (NamespaceId([1; 16]), Fingerprint([2; 16]));
            let key = BlockKey::from_bytes([3; 16]);
            let identity = RecordIdentity { namespace, epoch: Epoch(0), fingerprint, key, generation };
            let record = RecordMeta { identity, parent: BlockKey::ROOT, depth: 0 };
            // SAFETY: no job is in flight.
            unsafe { arena.payload_mut(SlotId(0)) }.fill(0x5A);
            run(Op::OpenSegment { segment: place.segment, generation }).unwrap();
            run(Op::Write { host: SlotId(0), place, record }).unwrap();
            run(Op::Read { host: SlotId(3), place, expect: identity }).unwrap();
            // SAFETY: no job is in flight.
            assert!(unsafe { arena.payload(SlotId(3)) }.iter().all(|&b| b == 0x5A));
            let other = RecordIdentity { epoch: Epoch(1), ..identity };
            let refused = run(Op::Read { host: SlotId(3), place, expect: other });
            assert_eq!(refused, Err(Mismatch::Identity.into()));
            run(Op::SealSegment { segment: place.segment, generation }).unwrap();
        }
    }
}
