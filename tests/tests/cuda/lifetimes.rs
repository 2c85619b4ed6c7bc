//! Memory is there as long as a copy names it, and not longer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak, mpsc};
use std::thread;
use std::time::Duration;

use kv_core::Verified;
use kv_core::ids::{JobId, SlotId};
use kv_core::job::{CompletionSink, TransferError, Urgency};
use kv_core::layout::Arrangement;
use kv_cuda::Direction::{ToDevice, ToHost};
use kv_cuda::cuda::{CudaConfig, CudaDevice, Method, OpenError, PoolMemory};
use kv_cuda::driver::{Context, DeviceBuffer, DevicePtr, Driver};
use kv_cuda::{BlockCopy, Device, HostMemory, HostSpan};
use kvtier_tests::fake_cuda::FakeCuda;

use crate::bench::{Arena, Bench, METHODS, flat, forced, pattern, pool};

fn config(method: Method) -> CudaConfig {
    let mut config = forced(method);
    config.tuning.calibration = Some(flat());
    config
}

/// A tensor of the runtime's whose end is seen.
struct Tensor {
    _memory: DeviceBuffer,
    freed: Arc<AtomicBool>,
}

impl Drop for Tensor {
    fn drop(&mut self) {
        self.freed.store(true, Ordering::SeqCst);
    }
}

#[test]
fn borrowed_tensors_are_kept_until_the_last_copy() {
    let fake = FakeCuda::load().alone();
    let placement = pool(2, 40, Arrangement::BlockOutermost);
    let context = Context::new(Driver::load().unwrap(), 0).unwrap();
    let memory = DeviceBuffer::new(&context.enter().unwrap(), placement.buffer_bytes()).unwrap();
    drop(context);
    let (at, freed) = (memory.at(), Arc::new(AtomicBool::new(false)));
    let mut config = config(Method::EngineBatch);
    let owner = Arc::new(Tensor { _memory: memory, freed: Arc::clone(&freed) });
    config.pool = PoolMemory::Borrow { buffers: vec![at], owner };
    let bench = Bench::try_new(placement, config, 40, fake).unwrap();
    bench.fake.stall();
    let stores: Vec<_> = (0..40).map(|at| bench.copy(at, ToHost, at as u32, at as usize)).collect();
    bench.submit(&stores, Urgency::Demand);
    thread::sleep(Duration::from_millis(20));
    let Bench { device, fake, completions, .. } = bench;
    let dropping = thread::spawn(move || drop(device));
    thread::sleep(Duration::from_millis(50));
    assert!(!freed.load(Ordering::SeqCst), "freed under a copy");
    assert!(!dropping.is_finished(), "dropped before the copies were over");
    fake.resume();
    dropping.join().unwrap();
    assert!(freed.load(Ordering::SeqCst), "kept for ever");
    assert_eq!(completions.try_iter().filter(|(_, result)| result.is_ok()).count(), 40);
    assert_eq!((fake.violations(), fake.live()), (Vec::new(), Default::default()));
}

#[test]
fn memory_that_is_not_the_gpus_is_refused() {
    let placement = pool(2, 4, Arrangement::BlockOutermost);
    let open = |buffers: Vec<DevicePtr>| {
        let mut config = config(Method::EngineBatch);
        config.pool = PoolMemory::Borrow { buffers, owner: Arc::new(()) };
        Bench::try_new(placement, config, 1, FakeCuda::load().alone()).err().unwrap().error
    };
    let local = Box::new([0u8; 64]);
    let host = DevicePtr(local.as_ptr().addr() as u64);
    assert!(matches!(open(vec![host]), OpenError::NotDeviceMemory { buffer: 0, .. }));
    assert!(matches!(open(vec![]), OpenError::WrongBuffers { found: 0, expected: 1 }));
    let fake = FakeCuda::load().alone();
    let context = Context::new(Driver::load().unwrap(), 0).unwrap();
    let short = DeviceBuffer::new(&context.enter().unwrap(), placement.buffer_bytes() - 1).unwrap();
    let mut config = config(Method::EngineBatch);
    config.pool = PoolMemory::Borrow { buffers: vec![short.at()], owner: Arc::new(()) };
    let refused = Bench::try_new(placement, config, 1, fake).err().unwrap();
    assert!(matches!(refused.error, OpenError::NotDeviceMemory { buffer: 0, .. }));
    // Given back while the driver is this test's.
    drop((short, context));
    drop(refused);
}

/// A tensor of another process: in this test of the same, which the fake driver allows.
#[test]
fn a_pool_of_another_process_is_opened_by_its_handle() {
    let fake = FakeCuda::load().alone();
    let placement = pool(2, 6, Arrangement::BlockOuter);
    let context = Context::new(Driver::load().unwrap(), 0).unwrap();
    let bytes = placement.buffer_bytes();
    let both = DeviceBuffer::new(&context.enter().unwrap(), 2 * bytes).unwrap();
    let mut config = config(Method::EngineBatch);
    let handle = both.share().unwrap();
    config.pool = PoolMemory::Shared { buffers: vec![(handle, 0), (handle, bytes)] };
    let bench = Bench::try_new(placement, config, 6, fake).unwrap();
    let expected = bench.fill_host(3, 8);
    bench.submit(&[bench.copy(1, ToDevice, 5, 3)], Urgency::Demand);
    bench.finish(1);
    assert!(bench.hbm(5) == expected);
    let half = bench.block / 2;
    let there = bench.fake.peek(both.at().0 + (bytes + 5 * half) as u64, half).unwrap();
    assert!(there == expected[half..], "not in the owner's memory");
    let Bench { device, fake, .. } = bench;
    // The owner may free it only after the one who opened it has closed.
    drop(device);
    drop((both, context));
    assert_eq!((fake.violations(), fake.live()), (Vec::new(), Default::default()));
}

/// Two devices of one process share an arena: registered once, given back by the last.
#[test]
fn an_arena_is_registered_once() {
    let bench = Bench::new(pool(2, 4, Arrangement::KvOuter), config(Method::EngineBatch), 4);
    struct Nobody;
    impl CompletionSink for Nobody {
        fn complete(&self, _: JobId, _: Result<Verified, TransferError>) {}
    }
    let open = || {
        let placement = pool(2, 4, Arrangement::KvOuter);
        CudaDevice::open(placement, config(Method::EngineBatch), bench.arena.clone(), Arc::new(Nobody))
            .unwrap()
    };
    let other = open();
    assert_eq!(bench.fake.live().registrations, 1);
    drop(other);
    assert_eq!(bench.fake.live().registrations, 1, "taken away from the one that still uses it");
    bench.submit(&[bench.copy(1, ToHost, 0, 0)], Urgency::Demand);
    bench.finish(1);
    bench.close();
}

/// A block over the border of two registrations is copied, by engines in two parts.
#[test]
fn blocks_may_lie_across_registrations() {
    for method in METHODS {
        let fake = FakeCuda::load().alone();
        let placement = pool(2, 4, Arrangement::KvOuter);
        let block = placement.layout().bytes_per_block();
        let arena = Arena::new((1 << 30) + 2 * block);
        let (sender, completions) = mpsc::channel();
        struct Send(mpsc::Sender<bool>);
        impl CompletionSink for Send {
            fn complete(&self, _: JobId, result: Result<Verified, TransferError>) {
                self.0.send(result.is_ok()).ok();
            }
        }
        let device =
            CudaDevice::open(placement, config(method), arena.clone(), Arc::new(Send(sender))).unwrap();
        assert_eq!(fake.live().registrations, 2);
        let expected = pattern(block, 21);
        device.upload(SlotId(3), &expected).unwrap();
        let host = HostSpan { offset: (1 << 30) - block / 2 - 16, len: block };
        let copy = |direction, slot| BlockCopy { job: JobId(1), direction, device_block: SlotId(slot), host };
        for (direction, slot) in [(ToHost, 3), (ToDevice, 1)] {
            // SAFETY: one at a time.
            unsafe { device.submit(&[copy(direction, slot)], Urgency::Demand) }.unwrap();
            let copied = completions.recv_timeout(Duration::from_secs(30)).unwrap();
            assert!(copied, "{method}: {:?}", fake.violations());
        }
        assert!(arena.read(host.offset, block) == expected, "{method}");
        let mut found = vec![0; block];
        device.download(SlotId(1), &mut found).unwrap();
        assert!(found == expected, "{method}");
        drop(device);
        assert_eq!((fake.violations(), fake.live()), (Vec::new(), Default::default()));
    }
}

/// A sink may submit, may close, may even panic.
#[test]
fn sinks_may_do_as_they_please() {
    struct Busy {
        /// Not its owner: the device owns the sink.
        device: OnceLock<Weak<CudaDevice>>,
        again: Mutex<Vec<BlockCopy>>,
        seen: mpsc::Sender<u64>,
    }
    impl CompletionSink for Busy {
        fn complete(&self, job: JobId, result: Result<Verified, TransferError>) {
            result.map(drop).unwrap();
            self.seen.send(job.0).unwrap();
            let device = self.device.get().unwrap().upgrade().unwrap();
            let next = self.again.lock().unwrap().pop();
            match next {
                // SAFETY: the block of the copy that is over.
                Some(copy) => unsafe { device.submit(&[copy], Urgency::Demand) }.unwrap(),
                None if job.0 == 0 => device.close(),
                None => {}
            }
            assert!(job.0 != 5, "a sink that panics");
        }
    }
    let fake = FakeCuda::load().alone();
    let placement = pool(2, 4, Arrangement::KvOuter);
    let block = placement.layout().bytes_per_block();
    let arena = Arena::new(block);
    let host = HostSpan { offset: 0, len: arena.size() };
    let copy = |job| BlockCopy { job: JobId(job), direction: ToHost, device_block: SlotId(0), host };
    let (seen, jobs) = mpsc::channel();
    let again = Mutex::new((0..9).map(copy).collect());
    let sink = Arc::new(Busy { device: OnceLock::new(), again, seen });
    let device = CudaDevice::open(placement, config(Method::EngineBatch), arena, sink.clone()).unwrap();
    let device = Arc::new(device);
    assert!(sink.device.set(Arc::downgrade(&device)).is_ok());
    // SAFETY: one copy at a time.
    unsafe { device.submit(&[copy(9)], Urgency::Demand) }.unwrap();
    let order: Vec<_> = (0..10).map(|_| jobs.recv_timeout(Duration::from_secs(30)).unwrap()).collect();
    assert_eq!(order, (0..10).rev().collect::<Vec<_>>());
    device.close();
    drop((device, sink));
    assert_eq!((fake.violations(), fake.live()), (Vec::new(), Default::default()));
}
