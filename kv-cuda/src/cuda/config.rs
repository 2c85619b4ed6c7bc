//! What a CUDA device is made of.

use std::any::Any;
use std::env;
use std::sync::Arc;
use std::time::Duration;

use super::cost::Calibration;
use super::method::Method;
use crate::driver::{DevicePtr, IpcHandle, RuntimeStream};

/// Where the pool's buffers are.
pub enum PoolMemory {
    /// kvtier allocates them.
    Allocate,
    /// They are tensors of the runtime in this process.
    Borrow {
        /// First byte of each buffer: `data_ptr()` of the runtime's tensors, in the order of the
        /// [`Placement`](kv_core::layout::Placement).
        buffers: Vec<DevicePtr>,
        /// Kept until the last copy is over. What keeps the tensors allocated goes in here.
        owner: Arc<dyn Any + Send + Sync>,
    },
    /// They are tensors of another process of this machine, which must keep them until this device has
    /// closed.
    Shared {
        /// The allocation that holds each buffer, and the buffer's offset in it.
        buffers: Vec<(IpcHandle, usize)>,
    },
}

/// A CUDA device: which GPU, whose memory, whose streams.
pub struct CudaConfig {
    /// Number of the GPU in this process.
    pub ordinal: u32,
    /// The pool's buffers.
    pub pool: PoolMemory,
    /// The streams on which the runtime reads and writes the pool. Every copy waits for what is queued in
    /// them when it is submitted.
    pub runtime_streams: Vec<RuntimeStream>,
    /// How copies are made.
    pub tuning: CopyTuning,
    /// How long closing waits for copies under way before it gives them up, and with them the memory that
    /// they may still touch.
    pub patience: Duration,
}

impl CudaConfig {
    /// A pool of kvtier's own on one GPU, tuned by the environment.
    ///
    /// # Errors
    /// [`BadTuning`] if the environment says something that cannot be.
    pub fn new(ordinal: u32) -> Result<Self, BadTuning> {
        Ok(Self {
            ordinal,
            pool: PoolMemory::Allocate,
            runtime_streams: Vec::new(),
            tuning: CopyTuning::from_env()?,
            patience: Duration::from_secs(30),
        })
    }
}

/// How copies are made. The default measures the device when it is opened, and uses at most two CTAs.
#[derive(Clone, Debug, PartialEq)]
pub struct CopyTuning {
    /// Always this method, where a layout allows it.
    pub method: Option<Method>,
    /// Most CTAs that copies may take from the GPU's other work.
    pub max_ctas: u32,
    /// Use this instead of measuring.
    pub calibration: Option<Calibration>,
}

impl Default for CopyTuning {
    fn default() -> Self {
        Self { method: None, max_ctas: 2, calibration: None }
    }
}

/// The environment asks for something that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTuning {
    /// `KVTIER_COPY_METHOD`.
    #[error("KVTIER_COPY_METHOD={0:?}; use auto, engine-loop, engine-batch, kernel, bulk or staged")]
    Method(String),
    /// `KVTIER_COPY_CTAS`.
    #[error("KVTIER_COPY_CTAS={0:?}; use a number from 1 to 64")]
    Ctas(String),
}

impl CopyTuning {
    /// The default, changed by `KVTIER_COPY_METHOD` (`auto`, `engine-loop`, `engine-batch`, `kernel`,
    /// `bulk`, `staged`) and `KVTIER_COPY_CTAS`.
    ///
    /// # Errors
    /// [`BadTuning`].
    pub fn from_env() -> Result<Self, BadTuning> {
        Self::parse(env::var("KVTIER_COPY_METHOD").ok(), env::var("KVTIER_COPY_CTAS").ok())
    }

    fn parse(method: Option<String>, ctas: Option<String>) -> Result<Self, BadTuning> {
        let mut tuning = Self::default();
        if let Some(text) = ctas {
            let number = text.parse().ok().filter(|ctas| (1..=64).contains(ctas));
            tuning.max_ctas = number.ok_or(BadTuning::Ctas(text))?;
        }
        match method.as_deref() {
            None | Some("" | "auto") => {}
            Some(name) => {
                let method = Method::named(name, tuning.max_ctas);
                tuning.method = Some(method.ok_or_else(|| BadTuning::Method(name.to_owned()))?);
            }
        }
        Ok(tuning)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_read_or_refused() {
        let parse = |method: &str, ctas: &str| {
            CopyTuning::parse(Some(method.to_owned()), Some(ctas.to_owned())).map(|t| (t.method, t.max_ctas))
        };
        assert_eq!(parse("auto", "4"), Ok((None, 4)));
        assert_eq!(parse("staged", "1"), Ok((Some(Method::Staged { ctas: 1 }), 1)));
        assert_eq!(parse("fast", "1"), Err(BadTuning::Method("fast".to_owned())));
        assert_eq!(parse("auto", "0"), Err(BadTuning::Ctas("0".to_owned())));
        assert_eq!(CopyTuning::parse(None, None), Ok(CopyTuning::default()));
    }
}
