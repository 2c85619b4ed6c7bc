//! `kvtier gpu info`: the driver and its GPUs.

use std::fmt;

use kv_cuda::driver::{Driver, GpuInfo, OLDEST_DRIVER};
use serde::Serialize;

use super::GpuError;
use crate::ByteSize;
use crate::report::Table;

/// What this process sees of CUDA.
#[derive(Clone, Debug, Serialize)]
pub struct Info {
    schema: &'static str,
    driver: DriverFacts,
    gpus: Vec<Gpu>,
}

/// The driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DriverFacts {
    /// CUDA version that it speaks.
    pub cuda: String,
    /// Release of NVIDIA's kernel module, such as 580.159.04.
    pub release: String,
    /// Whether it takes many copies in one call.
    pub batch_copies: bool,
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// Number of the GPU in this process.
    pub ordinal: u32,
    /// Product name.
    pub name: String,
    /// As nvidia-smi prints it.
    pub uuid: String,
    /// Address on the PCI bus.
    pub pci_bus_id: String,
    /// Compute capability, such as 9.0.
    pub capability: String,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of device memory.
    pub memory: ByteSize,
    /// Copy engines that run beside kernels.
    pub copy_engines: u32,
    /// Whether it has the bulk copies that kvtier uses from compute capability 9.0 on.
    pub bulk_copies: bool,
}

impl DriverFacts {
    pub(super) fn of(driver: &Driver) -> Self {
        // Not to be had from the driver library; a container may hide the file.
        let release = std::fs::read_to_string("/sys/module/nvidia/version");
        Self {
            cuda: cuda_version(driver.version()),
            release: release.map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned()),
            batch_copies: driver.has_batch_copies(),
        }
    }
}

impl Gpu {
    pub(super) fn of(info: &GpuInfo) -> Self {
        let (major, minor) = info.compute_capability;
        Self {
            ordinal: info.ordinal,
            name: info.name.clone(),
            uuid: info.uuid.clone(),
            pci_bus_id: info.pci_bus_id.clone(),
            capability: format!("{major}.{minor}"),
            multiprocessors: info.multiprocessors,
            memory: ByteSize(info.memory),
            copy_engines: info.copy_engines,
            bulk_copies: major >= 9,
        }
    }
}

/// 12040 is 12.4.
fn cuda_version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

impl Info {
    /// Asks the driver.
    ///
    /// # Errors
    /// [`GpuError::Missing`] without a driver or without a GPU.
    pub fn here() -> Result<Self, GpuError> {
        let driver = Driver::load()?;
        let gpus = driver.gpus()?;
        if gpus.is_empty() {
            return Err(GpuError::no_such_gpu(0, 0));
        }
        Ok(Self {
            schema: "kvtier.gpu.info/1",
            driver: DriverFacts::of(driver),
            gpus: gpus.iter().map(Gpu::of).collect(),
        })
    }
}

impl fmt::Display for DriverFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cuda, release, batch_copies } = self;
        let batch =
            if *batch_copies { "copies in batches" } else { "no copies in batches (they come with 12.8)" };
        write!(f, "CUDA {cuda} (kvtier needs {}), driver {release}, {batch}", cuda_version(OLDEST_DRIVER))
    }
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.driver)?;
        let mut table =
            Table::new(&["GPU", "no.", "capability", "SMs", "memory", "copy engines", "PCI", "UUID"]);
        for gpu in &self.gpus {
            table.row([
                gpu.name.clone(),
                gpu.ordinal.to_string(),
                gpu.capability.clone(),
                gpu.multiprocessors.to_string(),
                format!("{:.1} GiB", gpu.memory.0 as f64 / f64::from(1 << 30)),
                gpu.copy_engines.to_string(),
                gpu.pci_bus_id.clone(),
                gpu.uuid.clone(),
            ]);
        }
        write!(f, "{table}")
    }
}
