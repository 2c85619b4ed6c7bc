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

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use io_uring::types::{Fd, Fixed, FsyncFlags};
use io_uring::{IoUring, Probe, opcode, squeue};
use kv_core::Verified;
use kv_core::ids::SegmentId;
use kv_core::job::{Job, TransferError};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use super::ops::{Io, Task};
use super::queue::Queue;
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

/// A job in the kernel's hands.
struct Flight {
    job: Job,
    task: Task,
}

/// The thread's state.
struct Driver {
    ring: IoUring,
    segments: Arc<Segments>,
    /// Keeps the descriptors open.
    _files: Arc<FileStore>,
    descriptors: Vec<RawFd>,
    fixed_files: bool,
    fixed_buffers: bool,
    inbox: Arc<Inbox>,
    sink: Arc<dyn CompletionSink>,
    queue: Queue,
    /// By user data of their submissions. A flight leaves its place only when the kernel has completed it.
    flights: Vec<Option<Flight>>,
    vacant: Vec<usize>,
    /// A poll of the eventfd is in the ring.
    listening: bool,
    /// Bytes in the submission queue that the kernel has not been told of.
    unsubmitted: usize,
}

/// User data of the poll on the eventfd.
const WAKE: u64 = u64::MAX;
/// Tell the kernel as soon as this much can start, so that the device works while the next checksum is made;
/// smaller transfers share one system call.
const EAGER: usize = 256 << 10;

impl Driver {
    fn new(
        segments: Arc<Segments>,
        files: Arc<FileStore>,
        depth: u32,
        inbox: Arc<Inbox>,
        sink: Arc<dyn CompletionSink>,
        register: bool,
    ) -> Result<(Self, String), String> {
        let descriptors = files.descriptors(segments.len()).ok_or("a segment is not open")?;
        let ring = make_ring(2 * depth + 2)?;
        let mut how = Vec::new();
        let fixed_files = register
            && ring
                .submitter()
                .register_files(&descriptors)
                .map_err(|e| how.push(format!("files: {e}")))
                .is_ok();
        let chunks: Vec<libc::iovec> = segments.arena.chunks().iter().map(|c| c.iovec()).collect();
        // SAFETY: the chunks are memory of the arena, which `segments` keeps mapped until after the ring is
        // closed (`ring` is the first field, so it is dropped first).
        let registered = || unsafe { ring.submitter().register_buffers(&chunks) };
        let fixed_buffers =
            register && registered().map_err(|e| how.push(format!("buffers: {e}, raise ulimit -l"))).is_ok();
        let how = match (register, how.is_empty()) {
            (true, true) => format!("{} registered buffers, {} files", chunks.len(), descriptors.len()),
            (true, false) => {
                let how = format!("not registered: {}", how.join("; "));
                tracing::warn!("io_uring {how}");
                how
            }
            (false, _) => "nothing registered".into(),
        };
        let places = 2 * depth as usize;
        let driver = Self {
            ring,
            segments,
            _files: files,
            descriptors,
            fixed_files,
            fixed_buffers,
            inbox,
            sink,
            queue: Queue::new(depth),
            flights: (0..places).map(|_| None).collect(),
            vacant: (0..places).rev().collect(),
            listening: false,
            unsubmitted: 0,
        };
        Ok((driver, how))
    }

    fn run(mut self) {
        if let Err(e) = self.serve() {
            tracing::error!("the ring failed, the NVMe tier is down: {e}");
        }
        // Closing a ring lets go of files and memory some time later; a filesystem that is to be unmounted, or
        // memory that is to be given back, should not have to wait.
        let submitter = self.ring.submitter();
        if self.fixed_files
            && let Err(e) = submitter.unregister_files()
        {
            tracing::debug!("unregistering files: {e}");
        }
        if self.fixed_buffers
            && let Err(e) = submitter.unregister_buffers()
        {
            tracing::debug!("unregistering buffers: {e}");
        }
    }

    /// Until told to stop and nothing is left.
    fn serve(&mut self) -> io::Result<()> {
        loop {
            let stop = self.collect_mail();
            if stop == Some(Stop::Abandon) {
                self.abandon();
            }
            self.start_ready()?;
            if stop.is_some() && self.queue.is_idle() {
                return Ok(());
            }
            if !self.listening {
                let poll = opcode::PollAdd::new(Fd(self.inbox.wake.as_raw_fd()), libc::POLLIN as u32);
                self.push(&poll.build().user_data(WAKE), 0)?;
                self.listening = true;
            }
            match self.ring.submit_and_wait(1) {
                Ok(_) => self.unsubmitted = 0,
                Err(e) if is_transient(&e) => {}
                Err(e) => return Err(e),
            }
            while let Some((flight, outcome)) = self.completion() {
                if flight == WAKE {
                    self.listening = false;
                    // Empties the counter.
                    if let Err(e) = rustix::io::read(&self.inbox.wake, &mut [0; 8]) {
                        tracing::debug!("eventfd: {e}");
                    }
                } else {
                    self.landed(flight as usize, outcome)?;
                    // Keep the device busy while the next completion is verified.
                    self.collect_mail();
                    self.start_ready()?;
                }
            }
        }
    }

    fn collect_mail(&mut self) -> Option<Stop> {
        let mut mail = self.inbox.mail.lock();
        mail.jobs.drain(..).for_each(|job| self.queue.push(job));
        mail.stop
    }

    fn completion(&mut self) -> Option<(u64, i32)> {
        self.ring.completion().next().map(|c| (c.user_data(), c.result()))
    }

    fn start_ready(&mut self) -> io::Result<()> {
        while !self.vacant.is_empty()
            && let Some(job) = self.queue.pop()
        {
            match Task::start(&self.segments, &job) {
                Ok(task) => {
                    let Some(place) = self.vacant.pop() else { return Ok(()) };
                    self.flights[place] = Some(Flight { job, task });
                    self.launch(place)?;
                }
                Err(e) => self.finish(&job, Err(e)),
            }
        }
        Ok(())
    }

    /// Gives the next I/O of a flight to the kernel.
    fn launch(&mut self, place: usize) -> io::Result<()> {
        let Some(flight) = &mut self.flights[place] else { return Ok(()) };
        let io = flight.task.io(&self.segments);
        let (buffer, chunk) = flight.task.raw_buffer();
        let chunk = chunk.filter(|_| self.fixed_buffers).map(|c| c as u16);
        let len = buffer.len as u32; // a slot is at most 1 GiB, a footer less than 4
        let (Io::Read { segment, .. } | Io::Write { segment, .. } | Io::Sync { segment }) = io;
        let file = self.file(segment)?;
        macro_rules! on_file {
            ($file:ident => $build:expr) => {
                match file {
                    File::Registered($file) => $build.build(),
                    File::Plain($file) => $build.build(),
                }
            };
        }
        let (entry, bytes) = match (io, chunk) {
            (Io::Read { offset, .. }, Some(chunk)) => (
                on_file!(f => opcode::ReadFixed::new(f, buffer.start, len, chunk).offset(offset)),
                buffer.len,
            ),
            (Io::Read { offset, .. }, None) => {
                (on_file!(f => opcode::Read::new(f, buffer.start, len).offset(offset)), buffer.len)
            }
            (Io::Write { offset, .. }, Some(chunk)) => (
                on_file!(f => opcode::WriteFixed::new(f, buffer.start, len, chunk).offset(offset)),
                buffer.len,
            ),
            (Io::Write { offset, .. }, None) => {
                (on_file!(f => opcode::Write::new(f, buffer.start, len).offset(offset)), buffer.len)
            }
            (Io::Sync { .. }, _) => (on_file!(f => opcode::Fsync::new(f).flags(FsyncFlags::DATASYNC)), 0),
        };
        self.push(&entry.user_data(place as u64), bytes)
    }

    fn file(&self, segment: SegmentId) -> io::Result<File> {
        match self.descriptors.get(segment.0 as usize) {
            Some(_) if self.fixed_files => Ok(File::Registered(Fixed(segment.0))),
            Some(fd) => Ok(File::Plain(Fd(*fd))),
            None => Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
    }

    fn push(&mut self, entry: &squeue::Entry, bytes: usize) -> io::Result<()> {
        // SAFETY: the entry's buffer belongs to a task that stays in `flights` until its completion was reaped,
        // or for ever; its file is held open by `_files`.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.submit()?;
        }
        self.unsubmitted += bytes;
        if self.unsubmitted >= EAGER { self.submit() } else { Ok(()) }
    }

    fn submit(&mut self) -> io::Result<()> {
        match self.ring.submit() {
            Ok(_) => self.unsubmitted = 0,
            Err(e) if is_transient(&e) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// The kernel is done with a flight's buffer.
    fn landed(&mut self, place: usize, outcome: i32) -> io::Result<()> {
        let Some(flight) = self.flights.get_mut(place).and_then(Option::as_mut) else {
            return Err(io::Error::other("a completion of nothing"));
        };
        if outcome == -libc::EINTR {
            return self.launch(place);
        }
        let outcome = usize::try_from(outcome).map_err(|_| io::Error::from_raw_os_error(-outcome));
        let result = match flight.task.step(&self.segments, outcome) {
            Ok(None) => return self.launch(place),
            Ok(Some(verified)) => Ok(verified),
            Err(e) => Err(e),
        };
        if let Some(Flight { job, task }) = self.flights[place].take() {
            drop(task); // gives the slot back before anybody hears of it
            self.vacant.push(place);
            self.finish(&job, result);
        }
        Ok(())
    }

    fn finish(&mut self, job: &Job, result: Result<Verified, TransferError>) {
        self.queue.done(job);
        deliver(&*self.sink, job.id, result);
    }

    fn abandon(&mut self) {
        for job in self.queue.abandon() {
            deliver(&*self.sink, job.id, Err(TransferError::Down));
        }
    }
}

/// Answers whatever is left; after an orderly end nothing is.
impl Drop for Driver {
    fn drop(&mut self) {
        let late = {
            let mut mail = self.inbox.mail.lock();
            mail.dead = true;
            std::mem::take(&mut mail.jobs)
        };
        late.into_iter().for_each(|job| self.queue.push(job));
        for flight in std::mem::take(&mut self.flights).into_iter().flatten() {
            let Flight { job, task } = flight;
            // The ring failed, so the kernel may use the buffer for ever: never free it.
            std::mem::forget(task);
            self.finish(&job, Err(TransferError::Down));
        }
        self.abandon();
    }
}

/// A segment's file for the ring.
#[derive(Clone, Copy)]
enum File {
    Registered(Fixed),
    Plain(Fd),
}

/// Worth another try after completions were reaped.
fn is_transient(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
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

    use kv_core::ids::{JobId, SlotId};
    use kv_core::job::{Op, Place, RecordMeta, Urgency};
    use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
    use kv_core::units::{Epoch, Generation};
    use kv_core::{Mismatch, RecordIdentity};

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
