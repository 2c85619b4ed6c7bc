//! What was opened and closed leaves no device memory behind.

use super::{Case, Check, Done, copies};
use crate::SplitMix64;
use crate::gpu::GpuError;
use crate::gpu::rig::Rig;

/// Devices opened and closed in one trial.
const OPENED: u64 = 4;
/// Trials: other processes use the GPU as well, so memory that goes away once is not a leak of ours.
const TRIALS: usize = 3;
/// What the driver may round to in a trial: it gives memory out in pieces of 2 MiB.
const SLACK: u64 = 2 << 20;

pub(super) fn cases<'a>(check: &Check) -> Vec<Case<'a>> {
    let scale = check.scale;
    vec![Case {
        part: "leaks",
        name: "free memory before and after".to_owned(),
        seed: check.seed,
        run: Box::new(move |rig, rng| {
            // Once before, so that what the driver keeps for the next time is not counted.
            let mut bytes = copies::drawn(rig, rng, scale, None)?.bytes;
            let mut lost = Vec::new();
            for _ in 0..TRIALS {
                let (before, _) = rig.context.memory()?;
                bytes += churn(rig, rng, scale)?;
                let (after, _) = rig.context.memory()?;
                lost.push(before.saturating_sub(after));
            }
            if lost.iter().all(|&lost| lost > SLACK) {
                return Err(GpuError::wrong(format!(
                    "{OPENED} devices opened and closed took {lost:?} bytes of device memory for good"
                )));
            }
            let most = lost.into_iter().min().unwrap_or(0);
            Ok(Done { what: format!("{OPENED} devices opened and closed, {most} bytes lost"), bytes })
        }),
    }]
}

fn churn(rig: &Rig, rng: &mut SplitMix64, scale: super::Scale) -> Result<u64, GpuError> {
    (0..OPENED).map(|_| copies::drawn(rig, rng, scale, None).map(|done| done.bytes)).sum()
}
