//! The thread that owns the ring.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use io_uring::types::{Fd, Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use kv_core::Verified;
use kv_core::ids::SegmentId;
use kv_core::job::{Job, TransferError, Urgency};

use super::{Inbox, Stop, make_ring};
use crate::nvme::ops::{Io, Task};
use crate::nvme::queue::Queue;
use crate::nvme::segments::Segments;
use crate::nvme::sink::{CompletionSink, deliver};
use crate::nvme::store::FileStore;

/// A job in the kernel's hands.
struct Flight {
    job: Job,
    task: Task,
}

/// The thread's state.
pub(super) struct Driver {
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
    /// Flights of write-backs that have their checksum and wait for room in the device.
    prepared: VecDeque<usize>,
    /// A poll of the eventfd is in the ring.
    listening: bool,
    /// Bytes in the submission queue that the kernel has not been told of.
    unsubmitted: usize,
}

/// Write-backs that get their checksum while the device is busy with others. One is enough if completions come one
/// by one; they do not.
const AHEAD: u32 = 4;
/// User data of the poll on the eventfd.
const WAKE: u64 = u64::MAX;
/// Tell the kernel as soon as this much can start, so that the device works while the next checksum is made;
/// smaller transfers share one system call.
const EAGER: usize = 256 << 10;

impl Driver {
    pub(super) fn new(
        segments: Arc<Segments>,
        files: Arc<FileStore>,
        depth: u32,
        inbox: Arc<Inbox>,
        sink: Arc<dyn CompletionSink>,
        register: bool,
    ) -> Result<(Self, String), String> {
        let descriptors = files.descriptors(segments.len()).ok_or("a segment is not open")?;
        let ring = make_ring(2 * depth + AHEAD + 1)?;
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
        let places = (2 * depth + AHEAD) as usize;
        let driver = Self {
            ring,
            segments,
            _files: files,
            descriptors,
            fixed_files,
            fixed_buffers,
            inbox,
            sink,
            queue: Queue::new(depth, AHEAD),
            flights: (0..places).map(|_| None).collect(),
            vacant: (0..places).rev().collect(),
            prepared: VecDeque::new(),
            listening: false,
            unsubmitted: 0,
        };
        Ok((driver, how))
    }

    pub(super) fn run(mut self) {
        if let Err(e) = self.serve() {
            return tracing::error!("the ring failed, the NVMe tier is down: {e}");
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
                    // Keep the device busy while the next completion is verified: what costs no checksum.
                    self.collect_mail();
                    self.launch_prepared()?;
                    while let Some(job) = self.queue.pop_demand() {
                        self.start(job)?;
                    }
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
        self.launch_prepared()?;
        while let Some(job) = self.queue.pop() {
            self.start(job)?;
        }
        Ok(())
    }

    fn launch_prepared(&mut self) -> io::Result<()> {
        while self.has_room()
            && let Some(place) = self.prepared.pop_front()
        {
            self.launch(place)?;
        }
        Ok(())
    }

    /// Whether the device may have one more write-back.
    fn has_room(&self) -> bool {
        self.queue.write_backs() - (self.prepared.len() as u32) < self.queue.share()
    }

    fn start(&mut self, job: Job) -> io::Result<()> {
        let task = match Task::start(&self.segments, &job) {
            Ok(task) => task,
            Err(e) => {
                self.finish(&job, Err(e));
                return Ok(());
            }
        };
        let Some(place) = self.vacant.pop() else {
            return Err(io::Error::other("more jobs than places")); // the queue allows no more
        };
        let waits = job.urgency == Urgency::WriteBack;
        self.flights[place] = Some(Flight { job, task });
        if !waits {
            return self.launch(place);
        }
        self.prepared.push_back(place);
        self.launch_prepared()
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
            self.finish(&job, Err(TransferError::InDoubt));
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
