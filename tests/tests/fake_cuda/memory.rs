//! Device memory, pinned memory, pointers, IPC.

use std::ptr::null_mut;

use cudarc::driver::sys;

use crate::gpu::*;

#[test]
fn memory_that_was_freed_before_a_copy_ran_is_caught() {
    for freed in ["device", "pinned", "registered", "beyond"] {
        let gpu = Gpu::new();
        let (stream, host, device) = (gpu.stream(), gpu.pinned(64), gpu.alloc(64));
        let mut own = vec![0u8; 64];
        ok(cuMemHostRegister_v2(own.as_mut_ptr(), 64, 0));
        let source = if freed == "registered" { own.as_ptr() } else { host.as_ptr() };
        let bytes = 64;
        ok(cuMemcpyHtoDAsync_v2(device + u64::from(freed == "beyond"), source, bytes, stream));
        match freed {
            "device" => ok(cuMemFree_v2(device)),
            "pinned" => ok(cuMemFreeHost(host.as_mut_ptr())),
            "registered" => ok(cuMemHostUnregister(own.as_mut_ptr())),
            _ => {}
        }
        assert_eq!(gpu.fake.violations(), Vec::<String>::new());
        assert_eq!(cuStreamSynchronize(stream), 700, "{freed}");
        assert_eq!(gpu.fake.violations().len(), 1, "{freed}");
        assert_eq!(cuStreamQuery(stream), 700, "sticky");
        let mut address = 0;
        assert_eq!(cuMemAlloc_v2(&raw mut address, 8), 700, "sticky");
    }
}

#[test]
fn host_memory_that_is_gone_ends_the_device_and_not_the_process() {
    let gpu = Gpu::new();
    const PAGE: usize = 4096;
    let (stream, device) = (gpu.stream(), gpu.alloc(3 * PAGE));
    // SAFETY: a new mapping, which nothing but the driver uses. The hole is so small that no other thread's
    // mapping falls into it.
    let holed = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let p = libc::mmap(null_mut(), 3 * PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        assert_ne!(p, libc::MAP_FAILED);
        ok(cuMemHostRegister_v2(p.cast(), 3 * PAGE, 0));
        assert_eq!(libc::munmap(p.byte_add(PAGE), PAGE), 0);
        p.cast::<u8>()
    };
    ok(cuMemcpyDtoHAsync_v2(holed, device, 3 * PAGE, stream));
    assert_eq!(cuStreamSynchronize(stream), 700);
    assert_eq!(gpu.fake.violations().len(), 1);
    drop(gpu);
    let gpu = Gpu::new();
    assert_eq!(cuMemHostRegister_v2(holed, 3 * PAGE, 0), 1, "the hole is a hole again");
    assert_eq!(gpu.fake.live().registrations, 0);
}

#[test]
fn device_addresses_are_not_used_twice() {
    let gpu = Gpu::new();
    let first = gpu.alloc(64);
    ok(cuMemFree_v2(first));
    assert_eq!(cuMemFree_v2(first), 1);
    let second = gpu.alloc(64);
    assert_ne!(first, second);
    assert_eq!(gpu.fake.peek(first, 1), None);
    assert_eq!(gpu.fake.peek(second, 64), Some(vec![POISON; 64]));
    drop(gpu);
    assert!(Gpu::new().alloc(64) > second, "not even after a reset");
}

#[test]
fn pageable_memory_in_a_copy_is_noted() {
    let gpu = Gpu::new();
    let (stream, device) = (gpu.stream(), gpu.alloc(64));
    let mut own = vec![9u8; 64];
    ok(cuMemcpyHtoDAsync_v2(device, own.as_ptr(), 64, stream));
    ok(cuStreamSynchronize(stream));
    assert_eq!(gpu.peek(device), 9, "staged, as the real one does");
    assert_eq!(gpu.fake.violations(), ["cuMemcpyHtoDAsync_v2: the host memory is not pinned"]);

    // A copy may not run over the edge of what is registered.
    ok(cuMemHostRegister_v2(own.as_mut_ptr(), 32, 0));
    assert_eq!(cuMemcpyHtoDAsync_v2(device, own.as_ptr(), 64, stream), 1);
    assert_eq!(cuMemHostRegister_v2(own[31..].as_mut_ptr(), 8, 0), 712);
    assert_eq!(cuMemHostUnregister(own[1..].as_mut_ptr()), 713);
    ok(cuMemHostUnregister(own.as_mut_ptr()));
}

#[test]
fn pointers_tell_where_they_belong() {
    let gpu = Gpu::new();
    let (device, host) = (gpu.alloc(640), gpu.pinned(64));
    let ask = |attribute, address| {
        let mut value = 0u64;
        (cuPointerGetAttribute((&raw mut value).cast(), attribute, address), value)
    };
    assert_eq!(ask(2, device + 100), (0, 2));
    assert_eq!(ask(2, host.as_ptr() as u64), (0, 1));
    assert_eq!(ask(9, device), (0, 0));
    assert_eq!(ask(11, device + 639), (0, device));
    assert_eq!(ask(12, device + 639), (0, 640));
    assert_eq!(ask(2, device + 640).0, 1);
    assert_eq!(ask(2, (&raw const gpu) as u64).0, 1, "the stack is nothing that CUDA knows");
}

#[test]
fn an_imported_allocation_is_the_same_bytes_elsewhere() {
    let gpu = Gpu::new();
    let (stream, device) = (gpu.stream(), gpu.alloc(5000));
    let mut handle = sys::CUipcMemHandle { reserved: [0; 64] };
    assert_eq!(cuIpcGetMemHandle(&raw mut handle, device + 256), 1, "not the base");
    ok(cuIpcGetMemHandle(&raw mut handle, device));
    let (mut import, mut again) = (0, 0);
    ok(cuIpcOpenMemHandle_v2(&raw mut import, handle, 1));
    ok(cuIpcOpenMemHandle_v2(&raw mut again, handle, 1));
    assert!(import != device && import == again);
    ok(cuMemsetD8Async(import + 4999, 3, 1, stream));
    ok(cuStreamSynchronize(stream));
    assert_eq!(gpu.peek(device + 4999), 3);

    ok(cuIpcCloseMemHandle(import));
    assert_eq!(gpu.fake.live().imports, 1);
    ok(cuIpcCloseMemHandle(import));
    assert_eq!((gpu.fake.live().imports, cuIpcCloseMemHandle(import)), (0, 1));

    ok(cuIpcOpenMemHandle_v2(&raw mut import, handle, 1));
    ok(cuMemFree_v2(device));
    assert_eq!(gpu.fake.violations().len(), 1, "freed under the importer");
    assert_eq!(cuIpcOpenMemHandle_v2(&raw mut again, handle, 1), 400);
    ok(cuMemsetD8Async(import, 3, 1, stream));
    assert_eq!(cuStreamSynchronize(stream), 700);
}

#[test]
fn a_device_has_only_so_much_memory() {
    let gpu = Gpu::new();
    gpu.fake.configure(|s| s.device_memory = 1000);
    let device = gpu.alloc(600);
    let mut address = 0;
    assert_eq!(cuMemAlloc_v2(&raw mut address, 401), 2);
    ok(cuMemFree_v2(device));
    gpu.alloc(1000);
}

#[test]
fn copies_between_any_two_places() {
    let gpu = Gpu::new();
    let (stream, host, one, two) = (gpu.stream(), gpu.pinned(16), gpu.alloc(16), gpu.alloc(16));
    let address = host.as_ptr() as u64;
    host[..8].fill(1);
    ok(cuMemcpyAsync(one, address, 8, stream));
    ok(cuMemcpyDtoDAsync_v2(two, one, 8, stream));
    ok(cuMemcpyAsync(address + 8, two, 8, stream));
    ok(cuStreamSynchronize(stream));
    assert_eq!(host, [1; 16]);
    // Host memory where a device address belongs is what it would be on a device.
    ok(cuMemcpyDtoDAsync_v2(two, host.as_ptr() as u64, 8, stream));
    ok(cuStreamSynchronize(stream));
    assert!(gpu.fake.violations().is_empty());
}
