//! The stand-in against a naive model, and its promises about completions.

use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{OnceLock, Weak, mpsc};

use kv_core::ids::JobId;
use kv_core::layout::{Arrangement, Attention, DType, HeadOrder, KvLayout, KvOrder, Step, Strides};
use kv_core::units::Tokens;
use proptest::prelude::*;

use super::*;
use crate::memory::HostSpan;

/// Host memory of the tests: `blocks` spans of `block_bytes`.
struct Arena {
    bytes: Box<[UnsafeCell<u8>]>,
    block_bytes: usize,
}

// SAFETY: all accesses go through the device under the contract of `submit`, or through `read` and `write`,
// which the tests call only while no copy of that block is outstanding.
unsafe impl Sync for Arena {}

// SAFETY: the box is one allocation that never moves or changes size, and `Arena` hands out no reference.
unsafe impl HostMemory for Arena {
    fn base(&self) -> NonNull<u8> {
        NonNull::from(&*self.bytes).cast()
    }
    fn size(&self) -> usize {
        self.bytes.len()
    }
}

impl Arena {
    fn new(layout: &KvLayout, blocks: usize) -> Arc<Self> {
        let block_bytes = layout.bytes_per_block();
        let bytes = (0..blocks * block_bytes).map(|_| UnsafeCell::new(0)).collect();
        Arc::new(Self { bytes, block_bytes })
    }

    fn span(&self, block: usize) -> HostSpan {
        HostSpan { offset: block * self.block_bytes, len: self.block_bytes }
    }

    fn cells(&self, block: usize) -> &[UnsafeCell<u8>] {
        &self.bytes[block * self.block_bytes..][..self.block_bytes]
    }

    fn read(&self, block: usize) -> Vec<u8> {
        // SAFETY: no copy of the block is outstanding (see `Sync`).
        self.cells(block).iter().map(|cell| unsafe { *cell.get() }).collect()
    }

    fn write(&self, block: usize, bytes: &[u8]) {
        for (cell, &byte) in self.cells(block).iter().zip(bytes) {
            // SAFETY: no copy of the block is outstanding (see `Sync`).
            unsafe { *cell.get() = byte };
        }
    }
}

type Completion = (JobId, Result<Verified, TransferError>);

/// Passes completions on to the test's thread.
struct Channel(mpsc::Sender<Completion>);

impl CompletionSink for Channel {
    fn complete(&self, job: JobId, result: Result<Verified, TransferError>) {
        self.0.send((job, result)).expect("the test keeps the receiver");
    }
}

fn channel() -> (Arc<Channel>, mpsc::Receiver<Completion>) {
    let (sender, receiver) = mpsc::channel();
    (Arc::new(Channel(sender)), receiver)
}

/// A sink that is a closure.
struct Call<F>(F);

impl<F: Fn(JobId, Result<Verified, TransferError>) + Send + Sync> CompletionSink for Call<F> {
    fn complete(&self, job: JobId, result: Result<Verified, TransferError>) {
        (self.0)(job, result);
    }
}

fn small_layout() -> KvLayout {
    let attention = Attention::Heads { kv_heads: 2, head_dim: 8, order: HeadOrder::Nhd, kv: KvOrder::Split };
    KvLayout::new(3, attention, DType::Bf16, Tokens(4)).unwrap()
}

fn small_pool(num_blocks: u32) -> Placement {
    Placement::packed(small_layout(), num_blocks, Arrangement::KvOuter).unwrap()
}

fn copy(job: u64, direction: Direction, device_block: u32, host: HostSpan) -> BlockCopy {
    BlockCopy { job: JobId(job), direction, device_block: SlotId(device_block), host }
}

fn submit(device: &HostDevice, copies: &[BlockCopy], urgency: Urgency) -> Result<(), DeviceError> {
    // SAFETY: each test gives every outstanding copy a span of its own and reads spans after completion.
    unsafe { device.submit(copies, urgency) }
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| ((i + 1).wrapping_mul(seed | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

/// Axes of one layer of a block, outermost first: `k` or v, toke`n`, `h`ead.
fn block_axes(attention: Attention) -> &'static str {
    match attention {
        Attention::Latent { .. } => "n",
        Attention::Heads { order, kv, .. } => match (kv, order) {
            (KvOrder::Split, HeadOrder::Nhd) => "knh",
            (KvOrder::Split, HeadOrder::Hnd) => "khn",
            (KvOrder::Fused, HeadOrder::Nhd) => "nhk",
            (KvOrder::Fused, HeadOrder::Hnd) => "hnk",
        },
    }
}

/// Axes of a pool's tensors, with `l`ayer and `b`lock. Those before the bar choose the tensor.
fn device_axes(attention: Attention, arrangement: Arrangement) -> Option<String> {
    let axes = block_axes(attention);
    match arrangement {
        Arrangement::KvOuter => Some(format!("l|kb{}", axes.strip_prefix('k')?)),
        Arrangement::SeparateKv => Some(format!("lk|b{}", axes.strip_prefix('k')?)),
        Arrangement::BlockOuter => Some(format!("l|b{axes}")),
        Arrangement::BlockOutermost => Some(format!("|bl{axes}")),
    }
}

/// For each vector of `block` in page-first order: its buffer, and its row-major index there.
fn naive(pool: &Placement, device_axes: &str, block: u32) -> Vec<(usize, usize)> {
    let layout = pool.layout();
    let heads = match layout.attention() {
        Attention::Heads { kv_heads, .. } => kv_heads,
        Attention::Latent { .. } => 1,
    };
    let extent = |axis| match axis {
        'l' => layout.layers() as usize,
        'k' => 2,
        'b' => pool.num_blocks() as usize,
        'n' => layout.tokens_per_block().0 as usize,
        'h' => heads as usize,
        other => panic!("axis {other}"),
    };
    let row_major = |axes: &str, at: &HashMap<char, usize>| {
        axes.chars().fold(0, |index, axis| index * extent(axis) + at[&axis])
    };
    let (buffer, place) = device_axes.split_once('|').unwrap();
    let axes = format!("l{}", block_axes(layout.attention()));
    (0..axes.chars().map(extent).product())
        .map(|vector: usize| {
            let (mut at, mut rest) = (HashMap::from([('b', block as usize)]), vector);
            for axis in axes.chars().rev() {
                at.insert(axis, rest % extent(axis));
                rest /= extent(axis);
            }
            (row_major(buffer, &at), row_major(place, &at))
        })
        .collect()
}

fn attention() -> impl Strategy<Value = Attention> {
    let order = prop_oneof![Just(HeadOrder::Nhd), Just(HeadOrder::Hnd)];
    let kv = prop_oneof![Just(KvOrder::Split), Just(KvOrder::Fused)];
    prop_oneof![
        4 => (1u32..4, 1u32..4, order, kv)
            .prop_map(|(kv_heads, head_dim, order, kv)| Attention::Heads { kv_heads, head_dim, order, kv }),
        1 => (1u32..6).prop_map(|dim| Attention::Latent { dim }),
    ]
}

fn pool() -> impl Strategy<Value = (Placement, String)> {
    let arrangement = proptest::sample::select(Arrangement::ALL.as_slice());
    let dtype = prop_oneof![Just(DType::Fp8E4M3), Just(DType::Bf16), Just(DType::F32)];
    (1u32..4, attention(), dtype, 1u32..5, 1u32..5, arrangement).prop_filter_map(
        "separates what the layout joins",
        |(layers, attention, dtype, tokens, num_blocks, arrangement)| {
            let layout = KvLayout::new(layers, attention, dtype, Tokens(tokens)).unwrap();
            let axes = device_axes(attention, arrangement);
            let pool = Placement::packed(layout, num_blocks, arrangement);
            assert_eq!(axes.is_some(), pool.is_ok(), "{pool:?}");
            Some((pool.ok()?, axes?))
        },
    )
}

proptest! {
    /// All blocks to the device, the raw buffers against the shapes, and back into other spans.
    #[test]
    fn bytes_arrive_where_the_shapes_say((pool, axes) in pool(), seed: u64) {
        let layout = *pool.layout();
        let blocks = pool.num_blocks();
        let arena = Arena::new(&layout, 2 * blocks as usize);
        let (sink, completions) = channel();
        let device = HostDevice::new(pool, arena.clone(), sink).unwrap();
        let content = |block: u32| pattern(seed ^ u64::from(block), layout.bytes_per_block());
        let wait = |jobs: u32| {
            for _ in 0..jobs {
                let (job, result) = completions.recv().unwrap();
                assert_eq!(result.unwrap().job(), job);
            }
        };

        let load = |block: u32| copy(block.into(), Direction::ToDevice, block, arena.span(block as usize));
        for block in 0..blocks {
            arena.write(block as usize, &content(block));
        }
        submit(&device, &(0..blocks).map(load).collect::<Vec<_>>(), Urgency::Demand).unwrap();
        wait(blocks);

        let vector_bytes = layout.bytes_per_block() / naive(&pool, &axes, 0).len();
        for block in 0..blocks {
            let hbm = device.shared.hbm.lock();
            for ((buffer, index), expected) in
                naive(&pool, &axes, block).into_iter().zip(content(block).chunks(vector_bytes))
            {
                prop_assert_eq!(hbm.0[buffer].bytes(index * vector_bytes..(index + 1) * vector_bytes), expected);
            }
        }

        let other = |block: u32| (2 * blocks - 1 - block) as usize;
        let store = |block: u32| copy(block.into(), Direction::ToHost, block, arena.span(other(block)));
        submit(&device, &(0..blocks).map(store).collect::<Vec<_>>(), Urgency::WriteBack).unwrap();
        wait(blocks);
        for block in 0..blocks {
            prop_assert_eq!(arena.read(other(block)), content(block));
        }
    }

    /// What `upload` writes a copy to the host reads, what a copy to the device writes `download` reads.
    #[test]
    fn uploads_and_copies_agree((pool, _) in pool(), seed: u64) {
        let layout = *pool.layout();
        let (arena, (sink, completions)) = (Arena::new(&layout, 2), channel());
        let last = pool.num_blocks() - 1;
        let device = HostDevice::new(pool, arena.clone(), sink).unwrap();
        let content = pattern(seed, layout.bytes_per_block());
        device.upload(SlotId(last), &content).unwrap();
        submit(&device, &[copy(1, Direction::ToHost, last, arena.span(1))], Urgency::Demand).unwrap();
        prop_assert_eq!(completions.recv().unwrap().1.unwrap().job(), JobId(1));
        prop_assert_eq!(&arena.read(1), &content);

        arena.write(0, &pattern(!seed, content.len()));
        submit(&device, &[copy(2, Direction::ToDevice, 0, arena.span(0))], Urgency::Demand).unwrap();
        prop_assert_eq!(completions.recv().unwrap().1.unwrap().job(), JobId(2));
        let mut found = vec![0; content.len()];
        device.download(SlotId(0), &mut found).unwrap();
        prop_assert_eq!(found, arena.read(0));
    }
}

#[test]
fn padding_is_left_alone() {
    let layout = small_layout();
    // [2, 2, 4, 2, 8] of bf16 in one buffer, with gaps after every axis.
    let strides =
        Strides { layer: Step::Bytes(1100), plane: Step::Bytes(500), block: 200, token: 48, head: 20 };
    let pool = Placement::strided(layout, 2, strides).unwrap();
    let (sink, _completions) = channel();
    let device = HostDevice::new(pool, Arena::new(&layout, 1), sink).unwrap();
    for block in 0..2 {
        device.upload(SlotId(block), &vec![0xff; layout.bytes_per_block()]).unwrap();
    }
    let written = device.shared.hbm.lock().0[0]
        .bytes(0..device.placement().buffer_bytes())
        .iter()
        .filter(|&&byte| byte == 0xff)
        .count();
    assert_eq!(written, 2 * layout.bytes_per_block());
}

/// The first copy is kept in its completion while the rest is submitted.
#[test]
fn demand_overtakes_write_back() {
    let (sender, completed) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let sink = Arc::new(Call(move |job: JobId, _| {
        sender.send(job.0).unwrap();
        if job.0 == 0 {
            released.lock().recv().unwrap();
        }
    }));
    let arena = Arena::new(&small_layout(), 7);
    let device = HostDevice::new(small_pool(7), arena.clone(), sink).unwrap();
    let start = |jobs: &[u64], urgency| {
        let copy = |&job: &u64| copy(job, Direction::ToHost, job as u32, arena.span(job as usize));
        submit(&device, &jobs.iter().map(copy).collect::<Vec<_>>(), urgency).unwrap();
    };
    start(&[0], Urgency::WriteBack);
    assert_eq!(completed.recv(), Ok(0));
    start(&[1, 2], Urgency::WriteBack);
    start(&[3, 4], Urgency::Demand);
    start(&[5], Urgency::WriteBack);
    start(&[6], Urgency::Demand);
    release.send(()).unwrap();
    assert_eq!(completed.iter().take(6).collect::<Vec<_>>(), [3, 4, 6, 1, 2, 5]);
}

#[test]
fn a_wrong_copy_spoils_the_whole_call() {
    let (arena, (sink, completions)) = (Arena::new(&small_layout(), 2), channel());
    let block = small_layout().bytes_per_block();
    let device = HostDevice::new(small_pool(2), arena.clone(), sink).unwrap();
    let good = copy(1, Direction::ToHost, 0, arena.span(0));
    let refused = |wrong| submit(&device, &[good, wrong], Urgency::Demand).unwrap_err();

    let error = refused(BlockCopy { device_block: SlotId(2), ..good });
    assert!(matches!(error, DeviceError::NoSuchBlock { block: 2, num_blocks: 2 }), "{error}");
    for len in [0, block - 1, block + 1, usize::MAX] {
        let error = refused(BlockCopy { host: HostSpan { offset: 0, len }, ..good });
        assert!(matches!(error, DeviceError::WrongLength { .. }), "{error}");
    }
    for offset in [block + 1, 2 * block, usize::MAX] {
        let error = refused(BlockCopy { host: HostSpan { offset, len: block }, ..good });
        assert!(matches!(error, DeviceError::NotRegistered { .. }), "{error}");
    }
    assert!(matches!(device.upload(SlotId(0), &[0; 3]), Err(DeviceError::WrongLength { len: 3, .. })));
    assert!(matches!(device.download(SlotId(9), &mut vec![0; block]), Err(DeviceError::NoSuchBlock { .. })));

    device.close();
    assert!(completions.try_recv().is_err(), "nothing was started, so nothing is completed");
    assert!(matches!(submit(&device, &[good], Urgency::Demand), Err(DeviceError::Closed)));
    assert!(matches!(device.upload(SlotId(0), &vec![0; block]), Err(DeviceError::Closed)));
    assert!(matches!(device.download(SlotId(0), &mut vec![0; block]), Err(DeviceError::Closed)));
}

#[test]
fn the_kth_copy_fails_and_no_other() {
    let layout = small_layout();
    for direction in [Direction::ToHost, Direction::ToDevice] {
        for k in 0..5 {
            let (arena, (sink, completions)) = (Arena::new(&layout, 5), channel());
            let device = HostDevice::new(small_pool(5), arena.clone(), sink).unwrap();
            let content = |block| pattern(block, layout.bytes_per_block());
            for block in 0..5u32 {
                match direction {
                    Direction::ToHost => device.upload(SlotId(block), &content(block.into())).unwrap(),
                    Direction::ToDevice => arena.write(block as usize, &content(block.into())),
                }
            }
            device.fail_after(k, TransferError::Io(5));
            let copies: Vec<_> =
                (0..5).map(|i| copy(i, direction, i as u32, arena.span(i as usize))).collect();
            submit(&device, &copies, Urgency::Demand).unwrap();
            for (job, result) in completions.iter().take(5) {
                let mut found = arena.read(job.0 as usize);
                if direction == Direction::ToDevice {
                    device.download(SlotId(job.0 as u32), &mut found).unwrap();
                }
                if job.0 == k {
                    assert_eq!(result, Err(TransferError::Io(5)));
                    assert!(found.iter().all(|&byte| byte == GARBAGE));
                } else {
                    assert_eq!(result.unwrap().job(), job);
                    assert_eq!(found, content(job.0));
                }
            }
        }
    }
}

/// Threads submit while the device is closed: what was accepted is completed once, what was not, never.
#[test]
fn closing_completes_everything_once() {
    const THREADS: u64 = 4;
    const EACH: u64 = 200;
    let layout = small_layout();
    for round in 0..30u64 {
        let completed: Arc<Vec<AtomicU64>> =
            Arc::new((0..THREADS * EACH).map(|_| AtomicU64::new(0)).collect());
        let seen = Arc::new(AtomicU64::new(0));
        let sink = {
            let (completed, seen) = (completed.clone(), seen.clone());
            Arc::new(Call(move |job: JobId, _| {
                completed[job.0 as usize].fetch_add(1, Ordering::SeqCst);
                seen.fetch_add(1, Ordering::SeqCst);
            }))
        };
        let arena = Arena::new(&layout, (THREADS * EACH) as usize);
        let device = HostDevice::new(small_pool(8), arena.clone(), sink).unwrap();
        let accepted: Vec<u64> = thread::scope(|scope| {
            let submitters: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let (device, arena) = (&device, &arena);
                    scope.spawn(move || {
                        let urgency = if thread % 2 == 0 { Urgency::Demand } else { Urgency::WriteBack };
                        let mut accepted = Vec::new();
                        for pair in (thread * EACH..(thread + 1) * EACH).collect::<Vec<_>>().chunks(2) {
                            let copies: Vec<_> = pair
                                .iter()
                                .map(|&job| {
                                    copy(job, Direction::ToHost, job as u32 % 8, arena.span(job as usize))
                                })
                                .collect();
                            match submit(device, &copies, urgency) {
                                Ok(()) => accepted.extend_from_slice(pair),
                                Err(DeviceError::Closed) => break,
                                Err(error) => panic!("{error}"),
                            }
                        }
                        accepted
                    })
                })
                .collect();
            // From at once to near the end.
            while seen.load(Ordering::SeqCst) < round * 20 {
                thread::yield_now();
            }
            device.close();
            let outstanding = completed.iter().filter(|count| count.load(Ordering::SeqCst) > 0).count();
            let accepted: Vec<u64> =
                submitters.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
            assert_eq!(outstanding, accepted.len(), "everything was completed when close returned");
            accepted
        });
        let mut expected = vec![0; completed.len()];
        accepted.iter().for_each(|&job| expected[job as usize] = 1);
        let found: Vec<u64> = completed.iter().map(|count| count.load(Ordering::SeqCst)).collect();
        assert_eq!(found, expected);
        drop(device);
        assert_eq!(
            seen.load(Ordering::SeqCst),
            accepted.len() as u64,
            "dropping after closing completes nothing"
        );
    }
}

/// The first copy is kept in its completion until the device is being closed.
#[test]
fn dropping_completes_what_waits_as_down() {
    let (sender, completed) = mpsc::channel();
    let shared: Arc<OnceLock<Weak<Shared>>> = Arc::default();
    let sink = {
        let shared = shared.clone();
        Arc::new(Call(move |job: JobId, result: Result<Verified, TransferError>| {
            sender.send((job.0, result.map(|verified| verified.job().0))).unwrap();
            let shared = shared.wait().upgrade().unwrap();
            while !shared.queue.lock().closed {
                thread::yield_now();
            }
        }))
    };
    let arena = Arena::new(&small_layout(), 3);
    let device = HostDevice::new(small_pool(1), arena.clone(), sink).unwrap();
    shared.set(Arc::downgrade(&device.shared)).unwrap();
    let start = |job: u64, urgency| {
        submit(&device, &[copy(job, Direction::ToHost, 0, arena.span(job as usize))], urgency).unwrap();
    };
    start(0, Urgency::Demand);
    assert_eq!(completed.recv(), Ok((0, Ok(0))));
    start(1, Urgency::WriteBack);
    start(2, Urgency::Demand);
    drop(device);
    let down = Err(TransferError::Down);
    assert_eq!(completed.try_iter().collect::<Vec<_>>(), [(2, down), (1, down)]);
    assert_eq!(Arc::strong_count(&arena), 1, "the host memory is let go");
}

#[test]
fn a_sink_may_drop_the_device_or_submit_more() {
    let layout = small_layout();
    let arena = Arena::new(&layout, 4);
    let slot: Arc<Mutex<Option<HostDevice>>> = Arc::default();
    let (sender, receiver) = mpsc::channel();
    let sink = {
        let (slot, arena) = (slot.clone(), arena.clone());
        Arc::new(Call(move |job: JobId, result: Result<Verified, TransferError>| {
            let ok = result.is_ok();
            match job.0 {
                0 => {
                    let device = slot.lock();
                    let next = copy(3, Direction::ToHost, 3, arena.span(3));
                    submit(device.as_ref().unwrap(), &[next], Urgency::WriteBack).unwrap();
                }
                1 => drop(slot.lock().take()),
                _ => {}
            }
            sender.send((job.0, ok)).unwrap();
        }))
    };
    let mut device = slot.lock();
    let jobs: Vec<_> = (0..3).map(|i| copy(i, Direction::ToHost, i as u32, arena.span(i as usize))).collect();
    submit(
        device.insert(HostDevice::new(small_pool(4), arena.clone(), sink).unwrap()),
        &jobs,
        Urgency::Demand,
    )
    .unwrap();
    drop(device);
    assert_eq!(receiver.iter().take(4).collect::<Vec<_>>(), [(0, true), (1, true), (2, false), (3, false)]);
}

#[test]
fn a_sink_that_panics_takes_no_other_copy_with_it() {
    let (sender, receiver) = mpsc::channel();
    let sink = Arc::new(Call(move |job: JobId, result: Result<Verified, TransferError>| {
        sender.send((job.0, result.is_ok())).unwrap();
        assert!(job.0 != 0, "this panic is part of the test");
    }));
    let arena = Arena::new(&small_layout(), 3);
    let device = HostDevice::new(small_pool(3), arena.clone(), sink).unwrap();
    let jobs: Vec<_> = (0..3).map(|i| copy(i, Direction::ToHost, i as u32, arena.span(i as usize))).collect();
    submit(&device, &jobs, Urgency::Demand).unwrap();
    assert_eq!(receiver.iter().take(3).collect::<Vec<_>>(), [(0, true), (1, false), (2, false)]);
    assert!(matches!(submit(&device, &jobs, Urgency::Demand), Err(DeviceError::Closed)));
}

#[test]
fn a_pool_that_does_not_fit_is_an_error() {
    let layout = KvLayout::new(1, Attention::Latent { dim: 1 << 20 }, DType::F32, Tokens(1024)).unwrap();
    let pool = Placement::packed(layout, 1 << 30, Arrangement::BlockOuter).unwrap();
    let (sink, _completions) = channel();
    let error = HostDevice::new(pool, Arena::new(&small_layout(), 1), sink).err().unwrap();
    assert!(matches!(error, DeviceError::OutOfMemory { buffers: 1, .. }), "{error}");
}

#[test]
fn layers_arrive_in_order_and_a_failed_load_says_so() {
    for arrangement in Arrangement::ALL {
        let placement = Placement::packed(small_layout(), 3, arrangement).unwrap();
        let arena = Arena::new(placement.layout(), 2);
        let (sink, completions) = channel();
        let device = HostDevice::new(placement, arena.clone(), sink).unwrap();
        let block = placement.layout().bytes_per_block();
        let bytes = [pattern(1, block), pattern(2, block)];
        arena.write(0, &bytes[0]);
        arena.write(1, &bytes[1]);
        let load =
            [copy(1, Direction::ToDevice, 2, arena.span(0)), copy(2, Direction::ToDevice, 0, arena.span(1))];
        // SAFETY: as in `submit`.
        let progress = unsafe { device.submit_by_layer(&load, Urgency::Demand) }.unwrap();
        for layer in 0..3 {
            progress.wait(layer).unwrap();
            let mut found = vec![0; block];
            device.download(SlotId(2), &mut found).unwrap();
            let end = (layer as usize + 1) * placement.layout().bytes_per_layer();
            assert_eq!(found[..end], bytes[0][..end], "layer {layer}");
        }
        assert!(completions.iter().take(2).all(|(_, result)| result.is_ok()));

        device.fail_after(1, TransferError::Io(5));
        // SAFETY: as in `submit`.
        let progress = unsafe { device.submit_by_layer(&load, Urgency::Demand) }.unwrap();
        assert_eq!(progress.wait(2), Err(TransferError::Io(5)));
        let results: HashMap<_, _> =
            completions.iter().take(2).map(|(job, result)| (job, result.map(drop))).collect();
        assert_eq!(results, HashMap::from([(JobId(1), Ok(())), (JobId(2), Err(TransferError::Io(5)))]));

        let by_layer = |copies: &[BlockCopy]| {
            // SAFETY: refused, so nothing is copied.
            unsafe { device.submit_by_layer(copies, Urgency::Demand) }
        };
        let store = [copy(3, Direction::ToHost, 0, arena.span(0))];
        assert!(matches!(by_layer(&store), Err(DeviceError::NotALoad)));
        device.close();
        assert!(matches!(by_layer(&load), Err(DeviceError::Closed)));
    }
}

#[test]
fn erased_blocks_are_seen_to_be_empty() {
    let arena = Arena::new(&small_layout(), 1);
    let device = HostDevice::new(small_pool(3), arena, channel().0).unwrap();
    let bytes = pattern(3, small_layout().bytes_per_block());
    for block in 0..3 {
        device.upload(SlotId(block), &bytes).unwrap();
    }
    device.zero(&[SlotId(1)]).unwrap();
    let full = BlockDigest {
        checksum: kv_core::payload_checksum(&bytes),
        nonzero: bytes.iter().filter(|&&byte| byte != 0).count() as u64,
    };
    let empty = BlockDigest { checksum: kv_core::payload_checksum(&vec![0; bytes.len()]), nonzero: 0 };
    let all = [SlotId(0), SlotId(1), SlotId(2)];
    assert_eq!(device.digest(&all).unwrap(), [full, empty, full]);
    assert!(matches!(device.zero(&[SlotId(0), SlotId(3)]), Err(DeviceError::NoSuchBlock { block: 3, .. })));
    assert_eq!(device.digest(&all).unwrap(), [full, empty, full], "nothing was erased by a refused call");
}
