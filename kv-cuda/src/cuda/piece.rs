//! Transfers cut into pieces.
//!
//! A copy engine works off what it was given in order. What is handed to it at once is therefore small:
//! a demand load waits for pieces of others, never for their transfers.

use std::ops::Range;

/// A part of a transfer: the same bytes of some of its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Which blocks, by position in the transfer.
    pub(super) blocks: Range<usize>,
    /// Which bytes of each, in page-first order. Whole runs, unless one run is larger than a piece.
    pub(super) bytes: Range<usize>,
}

/// How large pieces may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    /// Bytes.
    pub(super) bytes: usize,
    /// Runs: what the CPU has to describe to the driver before it can look at anything else.
    pub(super) runs: usize,
    /// Blocks.
    pub(super) blocks: usize,
}

/// Cuts the bytes `stage` of `blocks` blocks into pieces.
pub(super) fn cut(
    blocks: usize,
    stage: Range<usize>,
    run_bytes: usize,
    limit: Limit,
) -> impl Iterator<Item = Piece> {
    let run = run_bytes.clamp(1, stage.len().max(1));
    // Of one block in one piece: whole runs, or part of a run that is too large.
    let runs_at_once = (limit.bytes / run).min(limit.runs);
    let slice = if runs_at_once == 0 { limit.bytes.max(1) } else { runs_at_once * run };
    let per_piece = match stage.len() {
        0 => blocks,
        bytes if bytes <= slice => {
            let runs = bytes.div_ceil(run);
            (limit.bytes / bytes).min(limit.runs / runs).min(limit.blocks)
        }
        _ => 1,
    };
    let per_piece = per_piece.max(1);
    (0..blocks).step_by(per_piece).flat_map(move |first| {
        let blocks = first..(first + per_piece).min(blocks);
        let end = stage.end;
        stage.clone().step_by(slice).map(move |start| Piece {
            blocks: blocks.clone(),
            bytes: start..start.saturating_add(slice).min(end),
        })
    })
}

/// Groups of layers that are worth a piece of their own: at least `least` bytes over all blocks, the last
/// group maybe less. Each is the layers and their bytes in page-first order.
pub(super) fn layer_stages(
    layers: u32,
    bytes_per_layer: usize,
    blocks: usize,
    least: usize,
) -> Vec<(Range<u32>, Range<usize>)> {
    let per_layer = (bytes_per_layer * blocks).max(1);
    let at_once = u32::try_from(least.div_ceil(per_layer)).unwrap_or(layers).clamp(1, layers.max(1));
    let group = |first: u32| {
        let end = first.saturating_add(at_once).min(layers);
        (first..end, first as usize * bytes_per_layer..end as usize * bytes_per_layer)
    };
    (0..layers).step_by(at_once as usize).map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// Every byte of every block belongs to exactly one piece, pieces keep their limits, and only a run
        /// that is larger than a piece is cut.
        #[test]
        fn pieces_cover_all_once(
            blocks in 1usize..9, runs in 1usize..9, run in 1usize..40, layered: bool,
            bytes in 1usize..200, most_runs in 1usize..20,
        ) {
            let limit = Limit { bytes, runs: most_runs, blocks: 5 };
            let block = runs * run;
            let each = if layered { run } else { block };
            let stages: Vec<_> = (0..block).step_by(each).map(|start| start..start + each).collect();
            let mut times = vec![0; blocks * block];
            let mut stage = 0;
            for piece in stages.iter().flat_map(|stage| cut(blocks, stage.clone(), run, limit)) {
                let whole_runs = piece.bytes.start % run == 0 && piece.bytes.end % run == 0;
                prop_assert!(whole_runs || run > bytes, "{piece:?} cuts a run");
                prop_assert!(piece.blocks.len() * piece.bytes.len() <= bytes.max(run).max(1), "{piece:?}");
                let pieces_of_runs = piece.blocks.len() * piece.bytes.len().div_ceil(run);
                prop_assert!(pieces_of_runs <= most_runs && piece.blocks.len() <= 5, "{piece:?}");
                let this = stages.iter().position(|stage| stage.contains(&piece.bytes.start)).unwrap();
                prop_assert!(this >= stage, "stages in order");
                stage = this;
                for b in piece.blocks {
                    for byte in piece.bytes.clone() {
                        times[b * block + byte] += 1;
                    }
                }
            }
            prop_assert!(times.iter().all(|&times| times == 1));
        }

        #[test]
        fn layers_are_grouped_and_none_is_lost(layers in 1u32..90, per_layer in 1usize..5000, blocks in 1usize..50, least in 1usize..1 << 20) {
            let stages = layer_stages(layers, per_layer, blocks, least);
            let mut next = (0, 0);
            for (at, (group, bytes)) in stages.iter().enumerate() {
                prop_assert_eq!((group.start, bytes.start), next);
                prop_assert_eq!(bytes.len(), group.len() * per_layer);
                prop_assert!(bytes.len() * blocks >= least || at + 1 == stages.len());
                next = (group.end, bytes.end);
            }
            prop_assert_eq!(next, (layers, layers as usize * per_layer));
        }
    }
}
