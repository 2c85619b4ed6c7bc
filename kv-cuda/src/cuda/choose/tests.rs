//! The chooser against recorded calibrations: what was published about three links.

use proptest::prelude::*;

use super::*;
use crate::cuda::cost::{Cost, Curve, DirectionCosts};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Seconds for a run at so many GB/s.
fn at(bytes: usize, gigabytes_per_second: f64) -> (usize, f64) {
    (bytes, bytes as f64 / (gigabytes_per_second * 1e9))
}

fn kernels(fixed: f64, rates: [f64; 2]) -> Vec<(u32, Cost)> {
    let cost = |rate| Cost { fixed, run: Curve::new([at(512, rate), at(64 * KIB, rate)]) };
    vec![(1, cost(rates[0])), (2, cost(rates[1]))]
}

/// H100 on PCIe 5, host to device: `cuMemcpyBatchAsync` by size of a copy (vLLM pull request 42212, 100,000
/// copies), kernels at the rate of one multiprocessor (SGLang pull request 40278).
fn h100() -> Calibration {
    let engine = |cliff| Cost {
        fixed: 9e-6,
        run: Curve::new([
            at(4 * KIB, 3.8),
            at(8 * KIB, 5.3),
            at(16 * KIB, 6.3),
            at(24 * KIB, cliff),
            at(28 * KIB, 44.1),
            at(64 * KIB, 51.8),
            at(MIB, 54.1),
        ]),
    };
    let costs = DirectionCosts {
        engine_loop: Cost { fixed: 9e-6, run: Curve::new([(4 * KIB, 2.3e-6), (MIB, 2e-5)]) },
        engine_batch: Some(engine(6.9)),
        kernel: kernels(1.5e-5, [43.0, 49.0]),
        bulk: kernels(1.5e-5, [45.0, 50.0]),
        stage: kernels(1e-5, [48.0, 96.0]),
    };
    Calibration { multiprocessors: 132, to_device: costs.clone(), to_host: costs }
}

/// A30 on PCIe 4, 8 KiB copies: from the ratios of copy engine to kernel that vLLM issue 57555 gives for 16
/// (0.68), 64 (1.48) and 4,096 copies (4.17).
fn a30() -> Calibration {
    let cost = |fixed, per_run: f64| Cost { fixed, run: Curve::new([(8 * KIB, per_run)]) };
    let costs = DirectionCosts {
        engine_loop: cost(1.5e-5, 3e-6),
        engine_batch: Some(cost(1.48e-5, 1.4e-6)),
        kernel: vec![(2, cost(4.9e-5, 3.3e-7))],
        ..DirectionCosts::default()
    };
    Calibration { multiprocessors: 56, to_device: costs.clone(), to_host: costs }
}

/// Grace and Blackwell over NVLink: copy engines 210 GB/s, kernels 48 GB/s for each multiprocessor (SGLang
/// pull request 40278).
fn gb300() -> Calibration {
    let costs = DirectionCosts {
        engine_loop: Cost { fixed: 9e-6, run: Curve::new([(4 * KIB, 2.3e-6), at(8 * MIB, 210.0)]) },
        engine_batch: Some(Cost {
            fixed: 9e-6,
            run: Curve::new([(4 * KIB, 5e-7), (64 * KIB, 6e-7), at(MIB, 205.0)]),
        }),
        kernel: kernels(1.5e-5, [48.0, 96.0]),
        bulk: kernels(1.5e-5, [48.0, 96.0]),
        stage: kernels(1e-5, [150.0, 300.0]),
    };
    Calibration { multiprocessors: 152, to_device: costs.clone(), to_host: costs }
}

fn shape(blocks: usize, block_bytes: usize, run_bytes: usize) -> Shape {
    Shape {
        direction: Direction::ToDevice,
        blocks,
        block_bytes,
        run_bytes,
        alignment: 16,
        mapped: true,
        whole_runs: true,
        piece_bytes: 4 * MIB,
    }
}

fn choice(calibration: Calibration, shape: &Shape) -> (Method, f64) {
    Chooser::new(calibration, None).choose(shape)
}

/// Small fragments never reach the copy engine one by one, and come at the speed of large ones.
#[test]
fn on_pcie_5_small_fragments_cost_no_bandwidth() {
    for run in [2 * KIB, 4 * KIB, 8 * KIB, 16 * KIB, 24 * KIB] {
        let shape = shape(100, 2 * MIB, run);
        let (method, seconds) = choice(h100(), &shape);
        assert!(method.ctas() > 0, "{run}: {method}");
        let rate = shape.bytes() as f64 / seconds / 1e9;
        assert!(rate > 0.95 * 54.1, "{run}: {rate} GB/s by {method}");
    }
}

/// Large ones need no multiprocessor. (At 64 KiB staging is 4 % faster for 1.5 % of the GPU.)
#[test]
fn on_pcie_5_large_fragments_take_no_multiprocessor() {
    for run in [256 * KIB, MIB, 2 * MIB] {
        assert_eq!(choice(h100(), &shape(100, 2 * MIB, run)).0, Method::EngineBatch, "{run}");
    }
}

/// Where one method overtakes the other depends on the number of copies: measured between 16 and 64.
#[test]
fn the_crossover_is_where_it_was_measured() {
    let ratio = |copies| {
        let shape = shape(copies, 8 * KIB, 8 * KIB);
        let of = |method| a30().seconds(&shape, method).unwrap();
        of(Method::EngineBatch) / of(Method::Kernel { ctas: 2 })
    };
    for (copies, published) in [(16, 0.68), (64, 1.48), (256, 3.09), (4096, 4.17)] {
        let ratio = ratio(copies);
        assert!((ratio / published - 1.0_f64).abs() < 0.12, "{copies}: {ratio} and not {published}");
    }
    let method = |copies| choice(a30(), &shape(copies, 8 * KIB, 8 * KIB)).0;
    assert_eq!(method(16), Method::EngineBatch);
    assert_eq!(method(64), Method::Kernel { ctas: 2 });
}

/// On a link faster than a few multiprocessors, staging is what keeps it busy.
#[test]
fn on_nvlink_small_fragments_are_staged() {
    let shape = shape(200, 2 * MIB, 4 * KIB);
    let (method, seconds) = choice(gb300(), &shape);
    assert_eq!(method, Method::Staged { ctas: 2 });
    assert!(shape.bytes() as f64 / seconds > 190e9);
}

/// Layouts that a method cannot do are left to those that can.
#[test]
fn what_cannot_be_is_not_chosen() {
    let small = shape(100, 2 * MIB, 4 * KIB);
    let methods = |shape: Shape| h100().methods(&shape).map(Method::kind).collect::<Vec<_>>();
    assert_eq!(methods(small), [0, 1, 2, 2, 3, 3, 4, 4]);
    assert_eq!(methods(Shape { alignment: 8, ..small }), [0, 1, 2, 2, 4, 4]);
    assert_eq!(methods(Shape { mapped: false, ..small }), [0, 1, 4, 4]);
    assert_eq!(methods(Shape { whole_runs: false, ..small }), [0, 1]);
    // Forced, but impossible: the best of the others.
    let mut chooser = Chooser::new(h100(), Some(Method::Bulk { ctas: 2 }));
    assert_eq!(chooser.choose(&small).0, Method::Bulk { ctas: 2 });
    let odd = Shape { alignment: 4, ..small };
    assert_ne!(chooser.choose(&odd).0, Method::Bulk { ctas: 2 });
    assert!(!chooser.explain(&odd).forced);
}

/// Kernels that wait behind a busy GPU are left for the copy engine, and tried again later.
#[test]
fn a_busy_gpu_is_noticed_and_forgotten() {
    let shape = shape(8, 256 * KIB, 16 * KIB);
    let mut chooser = Chooser::new(h100(), None);
    let (idle, seconds) = chooser.choose(&shape);
    assert!(idle.ctas() > 0, "{idle}");
    // A launch waits 1.6 ms behind a prefill (LMCache pull request 5067).
    let mut changed = 0;
    for _ in 0..20 {
        let (method, predicted) = chooser.choose(&shape);
        let waits = if method.ctas() > 0 { 1.6e-3 } else { 0.0 };
        changed += u32::from(method.ctas() == 0);
        chooser.observe(&shape, method, predicted.max(seconds) + waits);
    }
    assert!(changed > 10, "still waits behind the prefill");
    let after = (0..).find(|_| chooser.choose(&shape).0.ctas() > 0).unwrap();
    assert!((50..5000).contains(&after), "tried again after {after} transfers");
}

#[test]
fn an_explanation_says_what_was_chosen_and_why() {
    let chooser = Chooser::new(h100(), None);
    let text = chooser.explain(&shape(100, 2 * MIB, 4 * KIB)).to_string();
    assert!(text.contains("100 blocks of 2097152 bytes, host to device, runs of 4096 bytes"), "{text}");
    assert!(text.contains("-> staged x2") && text.contains("staged x2 has the least time"), "{text}");
    let forced = Chooser::new(h100(), Some(Method::EngineBatch));
    let text = forced.explain(&shape(1, 2 * MIB, 4 * KIB)).to_string();
    assert!(text.contains("-> engine-batch") && text.contains("KVTIER_COPY_METHOD"), "{text}");
}

proptest! {
    /// Whatever was measured, nothing possible is cheaper than what is chosen: never slower than the copy
    /// engine alone, as far as predictions go.
    #[test]
    fn the_choice_is_the_cheapest(
        blocks in 1usize..2000, runs in 1usize..200, run in 1usize..200_000, times in proptest::collection::vec(1e-8f64..1e-3, 12),
        observed in proptest::collection::vec((0usize..5, 1e-6f64..1e-1), 0..20),
    ) {
        let mut times = times.into_iter();
        let mut next = || times.next().unwrap_or(1e-6);
        let mut cost = || Cost { fixed: next(), run: Curve::new([(4 * KIB, next())]) };
        let costs = DirectionCosts {
            engine_loop: cost(),
            engine_batch: Some(cost()),
            kernel: vec![(2, cost())],
            bulk: vec![(2, cost())],
            stage: vec![(2, cost())],
        };
        let calibration = Calibration { multiprocessors: 100, to_device: costs.clone(), to_host: costs };
        let mut chooser = Chooser::new(calibration, None);
        let shape = shape(blocks, runs * run, run);
        let methods: Vec<_> = chooser.calibration().methods(&shape).collect();
        for (kind, seconds) in observed {
            chooser.observe(&shape, methods[kind % methods.len()], seconds);
        }
        let explained = chooser.explain(&shape);
        let chosen = explained.candidates.iter().find(|c| c.method == explained.chosen).unwrap();
        for candidate in &explained.candidates {
            prop_assert!(chosen.price <= candidate.price);
            prop_assert!(candidate.price >= candidate.predicted * candidate.correction);
        }
        prop_assert_eq!(chooser.choose(&shape).0, explained.chosen);
    }
}
