//! What the planner asks the hands to do, and how a hand says that it could not.
//!
//! Plain data: jobs can be sent to another thread or process. Hands know slots, places and job ids and
//! nothing else.

use crate::ids::{JobId, RemoteId, SegmentId, SlotId};
use crate::key::BlockKey;
use crate::units::{Bytes, Generation, Nanos};
use crate::verified::{Mismatch, RecordIdentity, Verified};

/// Where a record lies in the NVMe log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The segment.
    pub segment: SegmentId,
    /// The life of that segment in which the record was, or will be, written.
    pub generation: Generation,
    /// Position in the segment, 0-based; every record of a log has the same size.
    pub index: u32,
}

/// What a record header says beside its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordMeta {
    /// Whose bytes these are.
    pub identity: RecordIdentity,
    /// Key of the preceding block of the chain, so that recovery can rebuild the tree.
    pub parent: BlockKey,
    /// Position in the chain, 0 for the first block.
    pub depth: u32,
}

/// One record found by recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveredRecord {
    /// Where it lies.
    pub place: Place,
    /// What it is.
    pub meta: RecordMeta,
}

/// A segment as recovery found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveredSegment {
    /// Which.
    pub segment: SegmentId,
    /// Its latest generation. The next life gets a higher one.
    pub generation: Generation,
    /// False when it holds nothing that could be served.
    pub occupied: bool,
}

/// One indivisible piece of work for a hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Copy a block from HBM to a host slot.
    Offload {
        /// Source.
        hbm: SlotId,
        /// Destination.
        host: SlotId,
    },
    /// Copy a block from a host slot to HBM.
    Onboard {
        /// Source.
        host: SlotId,
        /// Destination.
        hbm: SlotId,
    },
    /// Write a host slot as a record. Its segment was opened before and is not sealed yet.
    Write {
        /// Source.
        host: SlotId,
        /// Destination.
        place: Place,
        /// What to put in the header.
        record: RecordMeta,
    },
    /// Read a record into a host slot and verify it.
    Read {
        /// Source.
        place: Place,
        /// Destination.
        host: SlotId,
        /// What the header must say.
        expect: RecordIdentity,
    },
    /// Start a new life of a segment: durable before any record of that generation is written.
    OpenSegment {
        /// Which.
        segment: SegmentId,
        /// The new generation.
        generation: Generation,
    },
    /// No more records will come: make the segment durable and write its index.
    SealSegment {
        /// Which.
        segment: SegmentId,
        /// Its current generation.
        generation: Generation,
    },
}

/// Which queue a job may overtake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// A request waits for it.
    Demand,
    /// Nobody waits for it.
    WriteBack,
}

/// An [`Op`] with its name and its place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// Returned with the completion.
    pub id: JobId,
    /// What to do.
    pub op: Op,
    /// How soon.
    pub urgency: Urgency,
}

/// A call to a remote store. About many blocks at once, because every call costs a round trip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteJob {
    /// Returned with the [`RemoteAnswer`].
    pub id: JobId,
    /// Which store.
    pub remote: RemoteId,
    /// What to do.
    pub op: RemoteOp,
    /// When to leave the call, by the planner's clock. What is not there by then is [`TransferError::Late`].
    pub deadline: Nanos,
    /// How soon.
    pub urgency: Urgency,
}

/// What a remote store is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteOp {
    /// How many of these blocks, which follow each other in a chain, does it say to have?
    Exists(Vec<RecordIdentity>),
    /// Read records into host slots and verify them.
    Get {
        /// Which, and where to.
        reads: Vec<RemoteRead>,
        /// Whom else to ask if they are not there in time.
        hedge: Option<HedgePlan>,
    },
    /// Store host slots.
    Put(Vec<RemoteWrite>),
}

/// One block of a [`RemoteOp::Get`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteRead {
    /// Named by the [`Verified`] token.
    pub job: JobId,
    /// What the record must say. No store keeps generations: it is 0.
    pub expect: RecordIdentity,
    /// Destination.
    pub host: SlotId,
}

/// One block of a [`RemoteOp::Put`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteWrite {
    /// Source.
    pub host: SlotId,
    /// What to put in the header.
    pub record: RecordMeta,
}

/// A second store that has the same blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HedgePlan {
    /// Which.
    pub remote: RemoteId,
    /// When to ask it, by the planner's clock.
    pub after: Nanos,
}

/// How a [`RemoteJob`] ended.
#[derive(Debug)]
pub enum RemoteAnswer {
    /// To [`RemoteOp::Exists`]: how many blocks from the first on are said to be there.
    Exists(Result<u32, TransferError>),
    /// To [`RemoteOp::Get`].
    Get {
        /// Each block under its own job.
        blocks: Vec<(JobId, Result<Verified, TransferError>)>,
        /// Bytes that travelled for those that came.
        wire: Bytes,
        /// Time spent decoding them after they had come.
        decode: Nanos,
        /// Who delivered them: the store asked, or the hedge.
        by: RemoteId,
    },
    /// To [`RemoteOp::Put`]: each block in the order given.
    Put(Vec<Result<(), TransferError>>),
}

/// Why a job failed. The block it was for is not readable at its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// The operating system refused; the number is `errno`.
    #[error("input/output error (errno {0})")]
    Io(i32),
    /// Fewer bytes than asked for.
    #[error("short transfer: {done} of {asked} bytes")]
    Short {
        /// Bytes asked for.
        asked: usize,
        /// Bytes transferred.
        done: usize,
    },
    /// The bytes are not the ones that were asked for.
    #[error("refused: {0}")]
    Refused(#[from] Mismatch),
    /// The destination is full.
    #[error("no space left")]
    NoSpace,
    /// The hand broke down while the transfer was under way. Whatever runs it may still write to the
    /// destination, which is therefore never used again.
    #[error("broke down under way: the destination is given up")]
    InDoubt,
    /// The device's driver refused; the number is its own.
    #[error("the device's driver refused (code {0})")]
    Device(i32),
    /// Not there at its deadline.
    #[error("not there at the deadline")]
    Late,
    /// A store that was asked for it does not have it.
    #[error("not there")]
    Absent,
    /// The tier or device is closed or marked down.
    #[error("the tier is down")]
    Down,
}

/// Where hands report what remote stores have answered, under the same rules as a [`CompletionSink`].
pub trait AnswerSink: Send + Sync {
    /// `job` is over, and nothing writes to its slots any more.
    fn answered(&self, job: JobId, answer: RemoteAnswer);
}

/// Where hands report. Told the outcome of every job that a hand took on, exactly once, on a thread of the
/// hand's and without any lock held, so it may submit more jobs. It must not block for long, because other
/// reports wait behind it, and should not panic.
pub trait CompletionSink: Send + Sync {
    /// `job` is over and its slots are free again. With a token, every byte is at its destination; with an
    /// error the destination holds anything. A sink must not drop the hand that calls it.
    fn complete(&self, job: JobId, result: Result<Verified, TransferError>);
}
