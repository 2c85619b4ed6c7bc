//! Loads that arrive layer by layer.

use std::sync::Arc;

use kv_core::job::{TransferError, Urgency};
use kv_core::layout::Arrangement;
use kv_cuda::Direction::{ToDevice, ToHost};
use kv_cuda::cuda::{CudaConfig, Method};
use kv_cuda::{BlockCopy, Device, DeviceError, LayerProgress};

use crate::bench::{Bench, METHODS, flat, forced, pool};

const LAYERS: u32 = 12;
const BLOCKS: u32 = 30;

fn config(method: Method) -> CudaConfig {
    let mut config = forced(method);
    config.tuning.calibration = Some(flat());
    config
}

fn submit(bench: &Bench, copies: &[BlockCopy]) -> Arc<LayerProgress> {
    // SAFETY: disjoint blocks that nobody else uses.
    unsafe { bench.device.submit_by_layer(copies, Urgency::Demand) }.unwrap()
}

#[test]
fn layers_arrive_in_order_and_whole() {
    for arrangement in [Arrangement::KvOuter, Arrangement::BlockOutermost] {
        for method in METHODS {
            let bench = Bench::new(pool(LAYERS, BLOCKS, arrangement), config(method), BLOCKS as usize);
            let expected: Vec<_> =
                (0..BLOCKS).map(|at| bench.fill_host(at as usize, u64::from(at) + 11)).collect();
            let copies: Vec<_> =
                (0..BLOCKS).map(|at| bench.copy(u64::from(at), ToDevice, at, at as usize)).collect();
            let progress = submit(&bench, &copies);
            for layer in 0..LAYERS {
                progress.wait(layer).unwrap();
                assert!(progress.layers_arrived() > layer);
                // All blocks have this layer, and all before it.
                let per_layer = bench.block / LAYERS as usize;
                let end = (layer as usize + 1) * per_layer;
                for at in [0, BLOCKS / 2, BLOCKS - 1] {
                    let found = bench.hbm(at);
                    assert!(
                        found[..end] == expected[at as usize][..end],
                        "{method}: layer {layer} of block {at}"
                    );
                }
            }
            assert_eq!(progress.wait(LAYERS), Err(TransferError::Down), "there is no such layer");
            bench.finish(BLOCKS as usize);
            drop(progress);
            bench.close();
        }
    }
}

/// A stream that is held for a layer does not run ahead of it, though the thread that holds it goes on.
#[test]
fn a_stream_is_held_until_its_layer_is_there() {
    use kv_cuda::HostMemory;
    use kv_cuda::driver::{Context, CopyList, Driver, PinnedBuffer, Stream, StreamPriority, Submission};

    for method in METHODS {
        let bench = Bench::new(pool(LAYERS, 4, Arrangement::BlockOutermost), config(method), 4);
        let context = Context::new(Driver::load().unwrap(), 0).unwrap();
        let current = context.enter().unwrap();
        let stream = Stream::new(&current, StreamPriority::High).unwrap();
        let seen = PinnedBuffer::new(&current, bench.block).unwrap();
        let expected = bench.fill_host(0, 77);
        let copies = [bench.copy(1, ToDevice, 0, 0)];
        let progress = submit(&bench, &copies);
        // SAFETY: the stream lives.
        unsafe { progress.hold(LAYERS - 1, stream.handle()) }.unwrap();
        let from = bench.device.buffer(0).unwrap();
        let mut list = CopyList::default();
        list.push(from, seen.base().addr().get() as u64, bench.block);
        // SAFETY: both live until the stream is synchronised.
        unsafe { stream.copy(&current, ToHost, &mut list, Submission::Loop) }.unwrap();
        stream.synchronize().unwrap();
        // SAFETY: nothing that writes it is queued.
        let found = unsafe { std::slice::from_raw_parts(seen.base().as_ptr(), bench.block) };
        assert!(found == expected, "{method}: the stream ran ahead");
        bench.finish(1);
        drop((progress, seen, stream, current, context));
        bench.close();
    }
}

#[test]
fn a_load_that_fails_says_so_to_everyone_who_waits() {
    let bench =
        Bench::new(pool(LAYERS, BLOCKS, Arrangement::KvOuter), config(Method::EngineBatch), BLOCKS as usize);
    let copies: Vec<_> = (0..BLOCKS).map(|at| bench.copy(u64::from(at), ToDevice, at, at as usize)).collect();
    // One call of several fails; what it was about is not there, the rest may be.
    bench.fake.fail_once("cuMemcpyBatchAsync", 3, 1);
    let progress = submit(&bench, &copies);
    let failed = (0..BLOCKS).map(|_| bench.next()).filter(|(_, result)| result.is_err()).count();
    assert!(failed > 0);
    assert_eq!(progress.wait(LAYERS - 1), Err(TransferError::Device(1)));
    // SAFETY: no stream is held: the load has failed.
    assert!(unsafe { progress.hold(LAYERS - 1, Default::default()) }.is_err());
    drop(progress);
    bench.close();
}

#[test]
fn only_loads_arrive_by_layers() {
    let bench = Bench::new(pool(LAYERS, 2, Arrangement::KvOuter), config(Method::EngineBatch), 2);
    // SAFETY: refused, so nothing is copied.
    let refused = unsafe { bench.device.submit_by_layer(&[bench.copy(1, ToHost, 0, 0)], Urgency::Demand) };
    assert!(matches!(refused, Err(DeviceError::NotALoad)));
    let nothing = submit(&bench, &[]);
    assert_eq!(nothing.layers_arrived(), LAYERS);
    bench.close();
}
