//! Status codes.

use kvtier_ffi::pool::PoolError;
use kvtier_ffi::store::{ClearError, CloseError};
use kvtier_ffi::task::LayerError;
use kvtier_ffi::{BatchError, OpenError, SubmitError};

/// What every function returns. 0 is success, everything else left the world as it was unless its name says more.
/// `kvtier_last_error` has the sentence that goes with it. New codes may be added: treat those that you do not
/// know as failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// An argument that cannot be: a null pointer, a size of zero, runs that are not one block.
    InvalidArgument = 1,
    /// No such handle: never made, closed or released already, or of another kind.
    InvalidHandle = 2,
    /// A struct whose `size` or `version` this library does not know.
    Unsupported = 3,
    /// Too much is under way, or the thing is in use: try again later. Nothing was started.
    Busy = 4,
    /// The time was over. What was waited for goes on.
    TimedOut = 5,
    /// The ticket is not done yet.
    Pending = 6,
    /// The store or pool is closed.
    Closed = 7,
    /// A file or device said no.
    Io = 8,
    /// Not enough memory, or no thread.
    OutOfResources = 9,
    /// The layer will not arrive; the ticket's statuses say which keys failed.
    LoadFailed = 10,
    /// This process was forked from one that used kvtier: only the parent may go on using it. A new program
    /// (after `exec`) may start anew.
    Forked = 11,
    /// A bug in kvtier. The process goes on; what the call was about should be closed.
    Panic = 12,
    /// Called from a logging callback.
    Reentered = 13,
    /// The caller's buffer is too small; the needed size was written.
    TooSmall = 14,
}

impl Status {
    /// Its name, with a terminating zero.
    pub(crate) const fn name(code: u32) -> &'static std::ffi::CStr {
        match code {
            0 => c"KVTIER_OK",
            1 => c"KVTIER_INVALID_ARGUMENT",
            2 => c"KVTIER_INVALID_HANDLE",
            3 => c"KVTIER_UNSUPPORTED",
            4 => c"KVTIER_BUSY",
            5 => c"KVTIER_TIMED_OUT",
            6 => c"KVTIER_PENDING",
            7 => c"KVTIER_CLOSED",
            8 => c"KVTIER_IO",
            9 => c"KVTIER_OUT_OF_RESOURCES",
            10 => c"KVTIER_LOAD_FAILED",
            11 => c"KVTIER_FORKED",
            12 => c"KVTIER_PANIC",
            13 => c"KVTIER_REENTERED",
            14 => c"KVTIER_TOO_SMALL",
            _ => c"KVTIER_UNKNOWN",
        }
    }
}

/// A status other than [`Status::Ok`], and the sentence for `kvtier_last_error`.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self::new(Status::InvalidArgument, message)
    }

    /// An error and what caused it.
    fn of(status: Status, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Transparent errors repeat their cause.
            if !message.ends_with(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            cause = error.source();
        }
        Self { status, message }
    }
}

impl From<BatchError> for Failure {
    fn from(error: BatchError) -> Self {
        Self::of(Status::InvalidArgument, &error)
    }
}

impl From<SubmitError> for Failure {
    fn from(error: SubmitError) -> Self {
        let status = match error {
            SubmitError::Busy => Status::Busy,
            SubmitError::Closed => Status::Closed,
            SubmitError::NoLog => Status::Unsupported,
            SubmitError::Batch(_) | SubmitError::NoSuchBlock { .. } | SubmitError::OtherPool => {
                Status::InvalidArgument
            }
        };
        Self::of(status, &error)
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        use kv_tiers::arena::ArenaError;
        use kv_tiers::engine::OpenError as Engine;
        use kv_tiers::nvme::NvmeError;
        let status = match &error {
            OpenError::BlockBytes(_) | OpenError::HostBytes { .. } | OpenError::TooManyBlocks(_) => {
                Status::InvalidArgument
            }
            OpenError::Engine(Engine::Arena(ArenaError::Memory { .. }) | Engine::Thread(_)) => {
                Status::OutOfResources
            }
            OpenError::Engine(Engine::Config(_) | Engine::BlockBytes { .. } | Engine::Arena(_)) => {
                Status::InvalidArgument
            }
            OpenError::Engine(Engine::Nvme(NvmeError::Locked(_))) => Status::Busy,
            OpenError::Engine(Engine::Nvme(
                NvmeError::Shape { .. }
                | NvmeError::Geometry { .. }
                | NvmeError::Capacity { .. }
                | NvmeError::Shrunk { .. },
            )) => Status::InvalidArgument,
            _ => Status::Io,
        };
        Self::of(status, &error)
    }
}

impl From<PoolError> for Failure {
    fn from(error: PoolError) -> Self {
        let status = match &error {
            PoolError::BlockBytes { .. } => Status::InvalidArgument,
            PoolError::Taken => Status::Busy,
            PoolError::Closed => Status::Closed,
            PoolError::Host(kv_cuda::DeviceError::WrongBuffers { .. }) => Status::InvalidArgument,
            PoolError::Host(_) | PoolError::Cuda(_) => Status::Io,
        };
        Self::of(status, &error)
    }
}

impl From<ClearError> for Failure {
    fn from(error: ClearError) -> Self {
        let status = match &error {
            ClearError::Closed => Status::Closed,
            ClearError::Io(_) => Status::Io,
            ClearError::Engine(_) => Status::OutOfResources,
        };
        Self::of(status, &error)
    }
}

impl From<CloseError> for Failure {
    fn from(error: CloseError) -> Self {
        use kv_tiers::engine::EngineError;
        let status = match &error {
            CloseError::Closed => Status::Closed,
            CloseError::Engine(EngineError::StillBusy { .. }) => Status::TimedOut,
            CloseError::Engine(_) => Status::Io,
        };
        Self::of(status, &error)
    }
}

impl From<LayerError> for Failure {
    fn from(error: LayerError) -> Self {
        let status = match error {
            LayerError::TimedOut => Status::TimedOut,
            LayerError::Failed(_) => Status::LoadFailed,
            LayerError::NotALoad => Status::InvalidArgument,
        };
        Self::of(status, &error)
    }
}
