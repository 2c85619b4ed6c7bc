//! Every way to copy, each to be forced.

use kv_cuda::cuda::{Calibration, Cost, Curve, DirectionCosts, Method};

use super::rig::Rig;

/// Numbers of CTAs that are tried: one, what kvtier takes, twice that.
const CTAS: [u32; 3] = [1, 2, 4];

/// Every method that this GPU and driver have.
pub(crate) fn every(rig: &Rig) -> Vec<Method> {
    let mut methods = vec![Method::EngineLoop];
    if rig.context.driver().has_batch_copies() {
        methods.push(Method::EngineBatch);
    }
    methods.extend(CTAS.map(|ctas| Method::Kernel { ctas }));
    if rig.kernels.has_bulk() {
        methods.extend(CTAS.map(|ctas| Method::Bulk { ctas }));
    }
    methods.extend(CTAS.map(|ctas| Method::Staged { ctas }));
    methods
}

/// A calibration in which every method has a cost, so that none is out of the question. The costs are made
/// up: it is for devices that are told how to copy.
pub(crate) fn all_known(rig: &Rig) -> Calibration {
    let cost = || Cost { fixed: 1e-5, run: Curve::new([(4096, 1e-7), (1 << 20, 2e-5)]) };
    let by_ctas = || CTAS.map(|ctas| (ctas, cost())).to_vec();
    let costs = || DirectionCosts {
        engine_loop: cost(),
        engine_batch: rig.context.driver().has_batch_copies().then(cost),
        kernel: by_ctas(),
        bulk: if rig.kernels.has_bulk() { by_ctas() } else { Vec::new() },
        stage: by_ctas(),
    };
    Calibration { multiprocessors: rig.gpu().multiprocessors, to_device: costs(), to_host: costs() }
}

/// How results name it; without a method the device chooses.
pub(crate) fn label(method: Option<Method>) -> String {
    method.map_or_else(|| "auto".to_owned(), |method| method.to_string())
}
