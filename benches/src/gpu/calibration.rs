//! `kvtier gpu calibrate`: what a device measured when it was opened, as JSON and back.

use std::fmt;

use kv_cuda::cuda::{Calibration, Cost, Curve, DirectionCosts};
use serde::{Deserialize, Serialize};

use super::GpuError;
use super::host::HostBlocks;
use super::info::{DriverFacts, Gpu};
use super::rig::{Rig, timed};
use crate::completions::Completions;
use crate::report::Table;
use crate::{ByteSize, SplitMix64};

use kv_core::layout::{Arrangement, Attention, DType, KvLayout, Placement};
use kv_core::units::Tokens;
use kv_cuda::cuda::{CopyTuning, PoolMemory};

/// The one form of the record that this version reads.
const SCHEMA: &str = "kvtier.gpu.calibration/1";

/// A calibration with the device that it is of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    schema: String,
    /// Product name of the GPU.
    pub device: String,
    /// CUDA version of the driver.
    pub cuda: String,
    /// Multiprocessors of the GPU.
    pub multiprocessors: u32,
    /// Seconds that it took to open the device, measurement included.
    pub open_seconds: f64,
    to_device: Costs,
    to_host: Costs,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Costs {
    engine_loop: CostRecord,
    engine_batch: Option<CostRecord>,
    kernel: Vec<WithCtas>,
    bulk: Vec<WithCtas>,
    stage: Vec<WithCtas>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct CostRecord {
    fixed_seconds: f64,
    run: Vec<Point>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Point {
    bytes: usize,
    seconds: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct WithCtas {
    ctas: u32,
    #[serde(flatten)]
    cost: CostRecord,
}

impl CostRecord {
    fn of(cost: &Cost) -> Self {
        let point = |&(bytes, seconds): &(f64, f64)| Point { bytes: bytes as usize, seconds };
        Self { fixed_seconds: cost.fixed, run: cost.run.points().iter().map(point).collect() }
    }

    fn cost(&self) -> Cost {
        let points = self.run.iter().map(|&Point { bytes, seconds }| (bytes, seconds));
        Cost { fixed: self.fixed_seconds, run: Curve::new(points) }
    }
}

impl Costs {
    fn of(costs: &DirectionCosts) -> Self {
        let list = |costs: &[(u32, Cost)]| {
            costs.iter().map(|(ctas, cost)| WithCtas { ctas: *ctas, cost: CostRecord::of(cost) }).collect()
        };
        Self {
            engine_loop: CostRecord::of(&costs.engine_loop),
            engine_batch: costs.engine_batch.as_ref().map(CostRecord::of),
            kernel: list(&costs.kernel),
            bulk: list(&costs.bulk),
            stage: list(&costs.stage),
        }
    }

    fn costs(&self) -> DirectionCosts {
        let list = |costs: &[WithCtas]| costs.iter().map(|with| (with.ctas, with.cost.cost())).collect();
        DirectionCosts {
            engine_loop: self.engine_loop.cost(),
            engine_batch: self.engine_batch.as_ref().map(CostRecord::cost),
            kernel: list(&self.kernel),
            bulk: list(&self.bulk),
            stage: list(&self.stage),
        }
    }
}

/// Text that is no calibration.
#[derive(Debug, thiserror::Error)]
pub enum BadRecord {
    /// Not of this form.
    #[error("not a calibration; `kvtier gpu calibrate --json` prints one")]
    Form(#[from] serde_json::Error),
    /// Of a form that this version does not read.
    #[error("a calibration of the form {0}; this version reads {SCHEMA}")]
    Schema(String),
}

impl Record {
    /// Measures a GPU, by opening a device on it as a runtime would.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn measure(ordinal: u32) -> Result<Self, GpuError> {
        let rig = Rig::open(ordinal)?;
        let layout = KvLayout::new(2, Attention::Latent { dim: 4096 }, DType::Fp8E4M3, Tokens(1))?;
        let pool = Placement::packed(layout, 1, Arrangement::BlockOuter)?;
        let host = HostBlocks::new(1, layout.bytes_per_block(), 0, 0, &mut SplitMix64::new(1))?;
        let (sink, _completions) = Completions::channel();
        let open =
            || rig.tuned_device(pool, PoolMemory::Allocate, host.memory(), sink, CopyTuning::default());
        let (device, open_seconds) = timed(open)?;
        let calibration = device.calibration();
        Ok(Self {
            schema: SCHEMA.to_owned(),
            device: Gpu::of(rig.gpu()).name,
            cuda: DriverFacts::of(rig.context.driver()).cuda,
            multiprocessors: calibration.multiprocessors,
            open_seconds,
            to_device: Costs::of(&calibration.to_device),
            to_host: Costs::of(&calibration.to_host),
        })
    }

    /// Reads what `--json` printed.
    ///
    /// # Errors
    /// [`BadRecord`].
    pub fn parse(text: &str) -> Result<Self, BadRecord> {
        #[derive(Deserialize)]
        struct Head {
            schema: String,
        }
        let Head { schema } = serde_json::from_str(text)?;
        if schema != SCHEMA {
            return Err(BadRecord::Schema(schema));
        }
        Ok(serde_json::from_str(text)?)
    }

    /// What a device is opened with.
    #[must_use]
    pub fn calibration(&self) -> Calibration {
        Calibration {
            multiprocessors: self.multiprocessors,
            to_device: self.to_device.costs(),
            to_host: self.to_host.costs(),
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, cuda, multiprocessors, open_seconds, to_device, to_host, .. } = self;
        writeln!(
            f,
            "{device}, {multiprocessors} SMs, CUDA {cuda}; opened and measured in {:.0} ms\n",
            open_seconds * 1e3
        )?;
        let mut table =
            Table::new(&["method", "direction", "run", "us per run", "GB/s", "us to begin and end"]);
        for (direction, costs) in [("to device", to_device), ("to host", to_host)] {
            let mut rows = |method: String, cost: &CostRecord| {
                for &Point { bytes, seconds } in &cost.run {
                    table.row([
                        method.clone(),
                        direction.to_owned(),
                        ByteSize(bytes as u64).to_string(),
                        format!("{:.3}", seconds * 1e6),
                        format!("{:.1}", bytes as f64 / seconds / 1e9),
                        format!("{:.1}", cost.fixed_seconds * 1e6),
                    ]);
                }
            };
            rows("engine-loop".to_owned(), &costs.engine_loop);
            if let Some(batch) = &costs.engine_batch {
                rows("engine-batch".to_owned(), batch);
            }
            for (name, list) in
                [("kernel", &costs.kernel), ("bulk", &costs.bulk), ("stage in HBM", &costs.stage)]
            {
                for with in list {
                    rows(format!("{name} x{}", with.ctas), &with.cost);
                }
            }
        }
        write!(f, "{table}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let cost = |fixed| Cost { fixed, run: Curve::new([(4096, 1e-6), (65536, 2e-6)]) };
        let costs = |batch: Option<Cost>| DirectionCosts {
            engine_loop: cost(1e-5),
            engine_batch: batch,
            kernel: vec![(1, cost(2e-5)), (2, cost(3e-5))],
            bulk: Vec::new(),
            stage: vec![(2, cost(4e-5))],
        };
        let calibration =
            Calibration { multiprocessors: 132, to_device: costs(Some(cost(5e-5))), to_host: costs(None) };
        let record = Record {
            schema: SCHEMA.to_owned(),
            device: "a GPU".to_owned(),
            cuda: "12.8".to_owned(),
            multiprocessors: 132,
            open_seconds: 0.25,
            to_device: Costs::of(&calibration.to_device),
            to_host: Costs::of(&calibration.to_host),
        };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(Record::parse(&text).unwrap().calibration(), calibration);
        let newer = text.replace("calibration/1", "calibration/2");
        assert!(matches!(Record::parse(&newer), Err(BadRecord::Schema(_))));
        assert!(matches!(Record::parse("{}"), Err(BadRecord::Form(_))));
    }
}
