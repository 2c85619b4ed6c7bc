//! The CUDA driver, loaded at run time: a thin layer in which every status is checked.
//!
//! ```text
//! Driver     the library and its functions; may be missing
//!   Context    one GPU's primary context, the one that runtimes use
//!     Current    proof that the context is the calling thread's: copies and launches ask for it
//!     Stream, Event, DeviceBuffer, PinnedBuffer, Registration, Module
//! ```
//!
//! Everything owned keeps its context alive and gives itself back on drop. What the driver's functions do
//! asynchronously is the caller's to order: those functions are `unsafe` and say what must stay alive.

mod context;
mod copies;
mod error;
mod memory;
mod module;
mod register;
mod stream;
mod table;

use std::ffi::{CStr, c_char, c_int};
use std::fmt;

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute, CUuuid};
use parking_lot::Mutex;

pub use context::{Context, Current};
pub use copies::{CopyList, Submission};
pub(crate) use error::{ALREADY_REGISTERED, INVALID_VALUE, NOT_READY, OUT_OF_MEMORY};
pub use error::{CudaError, DriverError};
pub(crate) use memory::is_device_memory;
pub use memory::{DeviceBuffer, DevicePtr, IpcBuffer, IpcHandle, PinnedBuffer};
pub use module::{Function, Grid, Module};
pub use register::Registration;
pub use stream::{Event, RuntimeStream, Stream, StreamPriority};
use table::{Status, Table};

/// Oldest driver that works: CUDA 12.4, that is driver 550. The kernels' PTX is written for it.
pub const OLDEST_DRIVER: i32 = 12_040;

/// Makes a driver call and checks its status: `call!(driver, cuInit(0))?`. The call itself is unsafe.
macro_rules! call {
    ($driver:expr, $name:ident($($arg:expr),* $(,)?)) => {
        $driver.check(stringify!($name), ($driver.table.$name)($($arg),*))
    };
}
pub(crate) use call;

/// A loaded and started driver.
pub struct Driver {
    table: Table,
    version: i32,
}

/// What the driver says about a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInfo {
    /// Number of the GPU in this process.
    pub ordinal: u32,
    /// Product name.
    pub name: String,
    /// `GPU-…` as nvidia-smi prints it.
    pub uuid: String,
    /// Address on the PCI bus.
    pub pci_bus_id: String,
    /// Major and minor, for example (9, 0).
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of device memory.
    pub memory: u64,
    /// Copy engines that can run beside kernels.
    pub copy_engines: u32,
    /// Shared memory that one block of threads may have at most, in bytes.
    pub max_shared_memory: u32,
}

impl Driver {
    /// The driver of this machine, loaded and started once.
    ///
    /// # Errors
    /// [`DriverError`]. A failure is not remembered: the next call tries again.
    pub fn load() -> Result<&'static Self, DriverError> {
        static LOADED: Mutex<Option<&'static Driver>> = Mutex::new(None);
        let mut loaded = LOADED.lock();
        if let Some(driver) = *loaded {
            return Ok(driver);
        }
        let driver: &'static Self = Box::leak(Box::new(Self::open()?));
        *loaded = Some(driver);
        Ok(driver)
    }

    fn open() -> Result<Self, DriverError> {
        // SAFETY: runs the initialisers of a library of that name, as linking against it would.
        if !unsafe { sys::is_culib_present() } {
            return Err(DriverError::NotFound);
        }
        // SAFETY: it is present.
        let table = unsafe { Table::load() }.map_err(DriverError::MissingSymbol)?;
        let mut driver = Self { table, version: 0 };
        // SAFETY: takes no pointer.
        unsafe { call!(driver, cuInit(0)) }.map_err(DriverError::Init)?;
        let mut version = 0;
        // SAFETY: writes one int.
        unsafe { call!(driver, cuDriverGetVersion(&raw mut version)) }.map_err(DriverError::Init)?;
        if version < OLDEST_DRIVER {
            return Err(DriverError::TooOld { found: version, needed: OLDEST_DRIVER });
        }
        driver.version = version;
        Ok(driver)
    }

    /// CUDA version that the driver speaks: 13000 is 13.0.
    #[must_use]
    pub const fn version(&self) -> i32 {
        self.version
    }

    /// Whether it takes many copies in one call (`cuMemcpyBatchAsync`, CUDA 12.8).
    #[must_use]
    pub const fn has_batch_copies(&self) -> bool {
        self.table.cuMemcpyBatchAsync.is_some()
    }

    /// The GPUs that this process sees.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn gpus(&self) -> Result<Vec<GpuInfo>, CudaError> {
        (0..self.gpu_count()?).map(|ordinal| self.gpu(ordinal)).collect()
    }

    fn gpu_count(&self) -> Result<u32, CudaError> {
        let mut count = 0;
        // SAFETY: writes one int.
        unsafe { call!(self, cuDeviceGetCount(&raw mut count)) }?;
        Ok(count.try_into().unwrap_or(0))
    }

    fn gpu(&self, ordinal: u32) -> Result<GpuInfo, CudaError> {
        let mut device = 0;
        // SAFETY: writes one device handle.
        unsafe { call!(self, cuDeviceGet(&raw mut device, ordinal.cast_signed())) }?;
        let attribute = |attribute: Attribute| {
            let mut value: c_int = 0;
            // SAFETY: writes one int.
            unsafe { call!(self, cuDeviceGetAttribute(&raw mut value, attribute as c_int, device)) }?;
            Ok(value.try_into().unwrap_or(0))
        };
        let text = |fill: &dyn Fn(*mut c_char, c_int) -> Result<(), CudaError>| {
            let mut bytes = [0u8; 256];
            fill(bytes.as_mut_ptr().cast(), 255)?;
            let text = CStr::from_bytes_until_nul(&bytes).map(|text| text.to_string_lossy().into_owned());
            Ok(text.unwrap_or_default())
        };
        let mut uuid = CUuuid { bytes: [0; 16] };
        let mut memory = 0usize;
        // SAFETY: writes 16 bytes.
        unsafe { call!(self, cuDeviceGetUuid_v2(&raw mut uuid, device)) }?;
        // SAFETY: writes one size.
        unsafe { call!(self, cuDeviceTotalMem_v2(&raw mut memory, device)) }?;
        Ok(GpuInfo {
            ordinal,
            // SAFETY: writes at most that many bytes, ending in zero.
            name: text(&|to, len| unsafe { call!(self, cuDeviceGetName(to, len, device)) })?,
            uuid: uuid_text(uuid.bytes.map(|byte| byte.cast_unsigned())),
            // SAFETY: as above.
            pci_bus_id: text(&|to, len| unsafe { call!(self, cuDeviceGetPCIBusId(to, len, device)) })?,
            compute_capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            memory: memory as u64,
            copy_engines: attribute(Attribute::CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT)?,
            max_shared_memory: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        })
    }

    /// Turns a status into a result.
    fn check(&self, call: &'static str, code: Status) -> Result<(), CudaError> {
        if code == 0 { Ok(()) } else { Err(self.error(call, code)) }
    }

    fn error(&self, call: &'static str, code: Status) -> CudaError {
        let mut name: *const c_char = std::ptr::null();
        // SAFETY: writes a pointer to a string of the driver's, or null for a code that it does not know.
        let known = unsafe { (self.table.cuGetErrorName)(code, &raw mut name) } == 0 && !name.is_null();
        let name = if known {
            // SAFETY: a static string that ends in zero.
            unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
        } else {
            String::new()
        };
        CudaError { call, code, name }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("version", &self.version).finish_non_exhaustive()
    }
}

/// `GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
fn uuid_text(bytes: [u8; 16]) -> String {
    let mut text = String::from("GPU-");
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
