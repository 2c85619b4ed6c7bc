//! Machines on which there is no CUDA, or not enough of it. A process of its own: a driver that was loaded
//! once stays loaded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use kv_cuda::driver::{Context, Driver, DriverError};
use kvtier_tests::fake_cuda::FakeCuda;

#[test]
fn a_driver_that_will_not_do_is_named_and_tried_again() {
    let fake = FakeCuda::load().alone();
    let refused = || Driver::load().err().unwrap();

    fake.configure(|settings| settings.driver_version = 12_020);
    assert_eq!(refused(), DriverError::TooOld { found: 12_020, needed: 12_040 });
    assert!(refused().to_string().contains("CUDA 12.2, kvtier needs 12.4 (driver 550"), "{}", refused());
    fake.configure(|settings| settings.driver_version = 13_000);

    // Driver and kernel module of different versions: what an upgrade without a reboot leaves.
    fake.fail_once("cuInit", 1, 803);
    let DriverError::Init(error) = refused() else { panic!() };
    assert_eq!((error.call, error.code), ("cuInit", 803));

    fake.configure(|settings| settings.devices = 0);
    let DriverError::Init(error) = refused() else { panic!() };
    assert_eq!(error.code, 100);
    fake.configure(|settings| settings.devices = 2);

    let driver = Driver::load().unwrap();
    assert_eq!(driver.version(), 13_000);
    assert!(driver.has_batch_copies());
    let gpus = driver.gpus().unwrap();
    assert_eq!(gpus.iter().map(|gpu| gpu.ordinal).collect::<Vec<_>>(), [0, 1]);
    assert!(gpus[0].uuid.starts_with("GPU-") && gpus[0].uuid.len() == 40, "{}", gpus[0].uuid);
    assert!(gpus[0].multiprocessors > 0 && gpus[0].memory > 0);

    let refused = Context::new(driver, 2).err().unwrap();
    assert_eq!(refused, DriverError::NoSuchDevice { ordinal: 2, count: 2 });
    fake.fail_once("cuDevicePrimaryCtxRetain", 1, 46);
    assert!(matches!(Context::new(driver, 1), Err(DriverError::Gpu { ordinal: 1, .. })));
    let context = Context::new(driver, 1).unwrap();
    let (free, total) = context.memory().unwrap();
    assert!(0 < free && free <= total);
    drop(context);
    assert_eq!((fake.violations(), fake.live()), (Vec::new(), Default::default()));
}
