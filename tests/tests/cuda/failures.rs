//! Every call fails once, the GPU dies at every operation, the GPU hangs.

use std::time::Duration;

use kv_core::ids::SlotId;
use kv_core::job::{TransferError, Urgency};
use kv_core::layout::Arrangement;
use kv_cuda::Direction::{ToDevice, ToHost};
use kv_cuda::cuda::{CudaConfig, Method, OpenError};
use kv_cuda::{Device, DeviceError};
use kvtier_tests::fake_cuda::FakeCuda;

use crate::bench::{Bench, METHODS, Refused, flat, forced, pattern, pool};

const INVALID_VALUE: i32 = 1;
const ILLEGAL_ADDRESS: i32 = 700;

fn config(method: Method) -> CudaConfig {
    let mut config = forced(method);
    config.tuning.calibration = Some(flat());
    config
}

/// Opening fails at its k-th driver call, for every k: a typed error, and nothing is left behind.
#[test]
fn opening_fails_cleanly_at_every_call() {
    let open = |fake| Bench::try_new(pool(2, 4, Arrangement::KvOuter), config(Method::EngineBatch), 2, fake);
    let mut refused = 0;
    for k in 1..2000 {
        let fake = FakeCuda::load().alone();
        fake.fail_once("*", k, INVALID_VALUE);
        match open(fake) {
            Err(Refused { error: error @ (OpenError::Cuda(_) | OpenError::Driver(_)), fake }) => {
                refused += 1;
                // When it is the wait for the GPU that failed, what may still be written is never freed.
                let live = fake.live();
                assert!(live.queued > 0 || live == Default::default(), "call {k}: {error}: {live:?}");
                assert_eq!(fake.violations(), Vec::<String>::new(), "call {k}");
            }
            Err(other) => panic!("call {k}: {other:?}"),
            // The k-th call comes after opening, or its failure does not matter.
            Ok(bench) => {
                assert_eq!(bench.fake.violations(), Vec::<String>::new(), "call {k}");
                bench.fake.reset();
                std::mem::forget(bench.device);
                if refused > 50 {
                    break;
                }
            }
        }
    }
    assert!(refused > 50, "only {refused} calls");
}

#[test]
fn a_pool_that_does_not_fit_is_refused_in_words() {
    let fake = FakeCuda::load().alone();
    fake.configure(|settings| settings.device_memory = 8 << 20);
    let refused = Bench::try_new(pool(8, 100, Arrangement::KvOuter), config(Method::EngineBatch), 1, fake);
    let error = refused.err().unwrap().error;
    assert!(matches!(error, OpenError::PoolTooLarge { buffers: 8, .. }), "{error}");
    assert!(error.to_string().contains("use fewer blocks"));
}

/// While blocks are stored and loaded the k-th driver call fails, for every k. Every copy is reported once;
/// those reported as copied are; the device works on, or says that it is lost.
#[test]
fn copies_fail_one_by_one_at_every_call() {
    for method in METHODS {
        let mut failed_somewhere = 0;
        for k in 1..500 {
            let bench = Bench::new(pool(2, 24, Arrangement::KvOuter), config(method), 12);
            let expected: Vec<_> = (0..12).map(|at| pattern(bench.block, at + 100)).collect();
            for (block, bytes) in (0..).zip(&expected) {
                bench.device.upload(SlotId(block), bytes).unwrap();
            }
            bench.fake.clear_trace();
            bench.fake.fail_once("*", k, INVALID_VALUE);
            let stores: Vec<_> = (0..12).map(|at| bench.copy(at, ToHost, at as u32, at as usize)).collect();
            // SAFETY: disjoint blocks.
            let taken = unsafe { bench.device.submit(&stores, Urgency::WriteBack) };
            let mut seen = [0; 12];
            let mut failed = 0;
            for _ in 0..if taken.is_ok() { 12 } else { 0 } {
                let (job, result) = bench.next();
                seen[job.0 as usize] += 1;
                match result {
                    Ok(()) => assert!(bench.host(job.0 as usize) == expected[job.0 as usize], "{method} {k}"),
                    Err(TransferError::Device(_) | TransferError::InDoubt | TransferError::Down) => {
                        failed += 1
                    }
                    Err(other) => panic!("{method} {k}: {other}"),
                }
            }
            assert!(taken.is_err() || seen == [1; 12], "{method} {k}: {seen:?}");
            let calls: u64 = bench.fake.calls().iter().map(|call| call.times).sum();
            failed_somewhere += usize::from(failed > 0 || taken.is_err());
            bench.device.close();
            assert_eq!(bench.fake.violations(), Vec::<String>::new(), "{method} {k}");
            if calls < k {
                break;
            }
            assert!(k < 499, "{method}: calls without end");
        }
        assert!(failed_somewhere > 3, "{method}: only {failed_somewhere} of the calls matter");
    }
}

/// The GPU dies at its k-th operation. What it had is in doubt, what it had not is refused, and the next
/// submission says why.
#[test]
fn the_gpu_dies_at_every_operation() {
    for method in METHODS {
        for k in 1..=12 {
            let bench = Bench::new(pool(2, 64, Arrangement::KvOuter), config(method), 64);
            bench.fake.die_at_op(k, ILLEGAL_ADDRESS);
            let stores: Vec<_> = (0..64).map(|at| bench.copy(at, ToHost, at as u32, at as usize)).collect();
            bench.submit(&stores, Urgency::WriteBack);
            let results: Vec<_> = (0..64).map(|_| bench.next().1).collect();
            let died = results.iter().any(Result::is_err);
            for result in results {
                assert!(
                    matches!(result, Ok(()) | Err(TransferError::InDoubt | TransferError::Down)),
                    "{method} {k}: {result:?}"
                );
            }
            if died {
                // SAFETY: refused.
                let refused = unsafe { bench.device.submit(&stores, Urgency::Demand) };
                let Err(DeviceError::Lost(error)) = refused else { panic!("{method} {k}: {refused:?}") };
                assert_eq!(error.code, ILLEGAL_ADDRESS);
                assert!(matches!(bench.device.zero(&[SlotId(0)]), Err(DeviceError::Lost(_))));
            } else {
                assert!(k > 1, "{method}: not one operation");
            }
            bench.device.close();
        }
    }
}

/// The GPU hangs. Closing gives up after its patience, loudly, and leaves allocated what the GPU may still
/// write.
#[test]
fn a_hang_is_given_up_and_its_memory_stays() {
    for method in METHODS {
        let mut config = config(method);
        config.patience = Duration::from_millis(100);
        let bench = Bench::new(pool(2, 64, Arrangement::KvOuter), config, 64);
        let expected = bench.fill_host(0, 4);
        bench.fake.stall();
        let stores: Vec<_> = (1..64).map(|at| bench.copy(at, ToHost, at as u32, at as usize)).collect();
        bench.submit(&[bench.copy(0, ToDevice, 0, 0)], Urgency::Demand);
        bench.submit(&stores, Urgency::WriteBack);
        std::thread::sleep(Duration::from_millis(20));
        bench.device.close();
        for _ in 0..64 {
            let (job, result) = bench.next();
            let lost = if job.0 == 0 { TransferError::Down } else { TransferError::InDoubt };
            assert!(
                result == Err(lost) || result == Err(TransferError::Down),
                "{method}: {job:?} {result:?}"
            );
        }
        let Bench { device, arena, fake, .. } = bench;
        drop(device);
        // Now it moves again, into memory that is still there.
        fake.resume();
        let live = fake.live();
        assert!(live.device_allocations > 0 && live.registrations > 0, "{method}: {live:?}");
        assert_eq!(fake.violations(), Vec::<String>::new(), "{method}");
        // The registration keeps the arena; so the test may only let go of its own share of it.
        drop((arena, expected));
    }
}

/// A call with copies both ways that is refused half-way through has started neither.
#[test]
fn a_call_is_taken_whole_or_not_at_all() {
    let mut config = config(Method::EngineBatch);
    // The legacy default stream: an event is recorded for each way.
    config.runtime_streams = vec![kv_cuda::driver::RuntimeStream(0)];
    let bench = Bench::new(pool(2, 4, Arrangement::KvOuter), config, 2);
    let both = [bench.copy(1, ToDevice, 0, 0), bench.copy(2, ToHost, 1, 1)];
    bench.fake.fail_once("cuEventRecord", 2, INVALID_VALUE);
    // SAFETY: disjoint blocks.
    let refused = unsafe { bench.device.submit(&both, Urgency::Demand) };
    assert!(matches!(refused, Err(DeviceError::Cuda(error)) if error.call == "cuEventRecord"));
    bench.submit(&both, Urgency::Demand);
    bench.finish(2);
    // Closing fails if there is one completion more.
    bench.close();
}

#[test]
fn wrong_calls_are_refused_and_nothing_starts() {
    let bench = Bench::new(pool(2, 4, Arrangement::KvOuter), config(Method::EngineBatch), 2);
    let good = bench.copy(1, ToHost, 0, 0);
    let mut short = good;
    short.host.len -= 1;
    let mut outside = good;
    outside.host.offset = 1 << 40;
    let mut behind = good;
    behind.device_block = SlotId(4);
    // SAFETY: refused.
    let submit = |copy| unsafe { bench.device.submit(&[good, copy], Urgency::Demand) };
    assert!(matches!(submit(short), Err(DeviceError::WrongLength { .. })));
    assert!(matches!(submit(outside), Err(DeviceError::NotRegistered { .. })));
    assert!(matches!(submit(behind), Err(DeviceError::NoSuchBlock { block: 4, num_blocks: 4 })));
    assert!(matches!(bench.device.digest(&[SlotId(9)]), Err(DeviceError::NoSuchBlock { .. })));
    bench.device.close();
    assert!(matches!(submit(good), Err(DeviceError::Closed)));
    assert!(matches!(bench.device.upload(SlotId(0), &vec![0; bench.block]), Err(DeviceError::Closed)));
    bench.close();
}
