//! Modules, functions and launches: kvtier's own PTX, and its kernels as the host compiler made them.

use std::ffi::{CString, c_void};
use std::ptr::null_mut;

use kv_cuda::kernels::args::{kv_block, kv_copy_args, kv_view};
use kv_cuda::kernels::{Loops, MODULES};

use crate::gpu::*;

pub fn load(image: &str) -> Result<Handle, i32> {
    let image = CString::new(image).unwrap();
    let mut module = 0;
    match cuModuleLoadData(&raw mut module, image.as_ptr().cast()) {
        0 => Ok(module),
        code => Err(code),
    }
}

fn function(module: Handle, name: &str) -> Result<Handle, i32> {
    let name = CString::new(name).unwrap();
    let mut function = 0;
    match cuModuleGetFunction(&raw mut function, module, name.as_ptr()) {
        0 => Ok(function),
        code => Err(code),
    }
}

fn kv_copy() -> Handle {
    let module = MODULES.iter().find(|module| module.name == "copy").unwrap();
    function(load(module.ptx).unwrap(), "kv_copy").unwrap()
}

const BLOCK: usize = 256;

/// A copy of whole blocks of one run of 256 bytes, from address to address.
fn copy_args(blocks: &[kv_block]) -> kv_copy_args {
    let here = kv_view { buffers: 0, step: [0; 4], buffer_step: [0; 4] };
    kv_copy_args {
        src: here,
        dst: here,
        nest: Loops::whole([1; 4], BLOCK, 16).unwrap().nest().unwrap(),
        blocks: blocks.as_ptr() as u64,
        num_blocks: u32::try_from(blocks.len()).unwrap(),
        reserved: 0,
    }
}

fn launch(function: Handle, threads: u32, args: &mut kv_copy_args, stream: Handle) -> i32 {
    let mut params = [(&raw mut *args).cast::<c_void>()];
    cuLaunchKernel(function, 1, 1, 1, threads, 1, 1, 0, stream, params.as_mut_ptr(), null_mut())
}

/// Blocks in pinned memory.
fn pinned_blocks(gpu: &Gpu, blocks: &[kv_block]) -> &'static [kv_block] {
    let bytes = gpu.pinned(size_of_val(blocks));
    // SAFETY: pinned memory starts at a page, has room for so many blocks, and lasts as long as the test.
    unsafe {
        let to = bytes.as_mut_ptr().cast::<kv_block>();
        to.copy_from_nonoverlapping(blocks.as_ptr(), blocks.len());
        std::slice::from_raw_parts(to, blocks.len())
    }
}

#[test]
fn a_launch_takes_its_argument_at_once_and_runs_later() {
    let gpu = Gpu::new();
    let (stream, device, host) = (gpu.stream(), gpu.alloc(4 * BLOCK), gpu.pinned(2 * BLOCK));
    host[..BLOCK].fill(1);
    host[BLOCK..].fill(2);
    let src = host.as_ptr() as u64;
    let blocks =
        [kv_block { src, dst: device + 2 * BLOCK as u64 }, kv_block { src: src + BLOCK as u64, dst: device }];
    let mut args = copy_args(pinned_blocks(&gpu, &blocks));
    ok(launch(kv_copy(), 128, &mut args, stream));
    args.num_blocks = 0;
    assert_eq!((gpu.peek(device), args.num_blocks), (POISON, 0));
    ok(cuStreamSynchronize(stream));
    assert_eq!(gpu.fake.violations(), Vec::<String>::new());
    let bytes = gpu.fake.peek(device, 4 * BLOCK).unwrap();
    let expected: Vec<u8> = [2, POISON, 1, POISON].into_iter().flat_map(|byte| [byte; BLOCK]).collect();
    assert_eq!(bytes, expected);

    let op = &gpu.fake.ops()[0];
    let settings = gpu.fake.settings();
    assert_eq!((op.name.as_str(), op.bytes), ("kv_copy", 512));
    // One CTA moves it over the link.
    assert_eq!(op.end_ns - op.start_ns, settings.launch_ns + 512 * 1000 / settings.cta_rate);
}

#[test]
fn what_a_launch_may_not_touch_ends_the_device() {
    let mut own = vec![0u8; BLOCK + 16];
    let own = (own.as_mut_ptr() as u64).next_multiple_of(16);
    for case in ["freed", "beyond", "pageable", "table", "null"] {
        let gpu = Gpu::new();
        let (stream, device, host) = (gpu.stream(), gpu.alloc(BLOCK), gpu.pinned(BLOCK));
        let good = kv_block { src: host.as_ptr() as u64, dst: device };
        let bad = match case {
            "beyond" => kv_block { dst: device + 16, ..good },
            "pageable" => kv_block { src: own, ..good },
            "null" => kv_block { src: 0, ..good },
            _ => good,
        };
        let blocks = [good, bad];
        let blocks = if case == "table" { &blocks } else { pinned_blocks(&gpu, &blocks) };
        ok(launch(kv_copy(), 32, &mut copy_args(blocks), stream));
        if case == "freed" {
            ok(cuMemFree_v2(device));
        }
        assert_eq!(gpu.fake.violations(), Vec::<String>::new());
        assert_eq!(cuStreamSynchronize(stream), 700, "{case}");
        assert_eq!(gpu.fake.violations().len(), 1, "{case}");
    }
}

#[test]
fn every_module_of_kvtier_loads_and_has_a_kernel_for_the_host() {
    let gpu = Gpu::new();
    for module in MODULES {
        let loaded = load(module.ptx).unwrap();
        for kernel in module.kernels {
            assert!(function(loaded, kernel.name).is_ok(), "{}", kernel.name);
        }
    }
    assert_eq!(gpu.fake.live().modules, MODULES.len() as u64);
    assert_eq!(gpu.fake.violations(), Vec::<String>::new());
}

const BY_HAND: &str = "// .version 9.0
.version 8.4
.target sm_80
.address_size 64
.visible .entry kv_copy(
\t.param .align 8 .b8 kv_copy_param_0[8]
)
.maxntid 64, 1, 1
{ ret; }
.visible .entry kv_not_compiled_for_the_host() { ret; }
// .visible .entry commented_out() { ret; }
";

#[test]
fn modules_are_checked() {
    let gpu = Gpu::new();
    assert_eq!(load("\u{7f}ELF"), Err(200));
    assert_eq!(load("int main() {}"), Err(218));
    gpu.fake.configure(|s| s.driver_version = 12030);
    assert_eq!(load(BY_HAND), Err(222));
    gpu.fake.configure(|s| (s.driver_version, s.compute_capability) = (12040, 75));
    assert_eq!(load(BY_HAND), Err(209));
    gpu.fake.configure(|s| s.compute_capability = 80);
    assert!(load(BY_HAND).is_ok());
    assert_eq!(load(".version 8.0\n.target sm_90a\n"), Err(209));
    gpu.fake.configure(|s| s.compute_capability = 90);
    assert!(load(".version 8.0\n.target sm_90a\n").is_ok());
    gpu.fake.configure(|s| s.compute_capability = 100);
    assert_eq!(load(".version 8.0\n.target sm_90a\n"), Err(209), "for 9.0 and nothing else");
}

#[test]
fn functions_are_checked() {
    let gpu = Gpu::new();
    let module = load(BY_HAND).unwrap();
    assert_eq!(function(module, "kv_copy_of_nothing"), Err(500));
    assert_eq!(function(module, "commented_out"), Err(500));
    assert_eq!(gpu.fake.violations().len(), 0);
    assert_eq!(function(module, "kv_not_compiled_for_the_host"), Err(500));
    assert_eq!(gpu.fake.violations().len(), 1);
    let kernel = function(module, "kv_copy").unwrap();
    assert_eq!(gpu.fake.violations().len(), 2, "its argument has not 8 bytes");

    let (stream, mut nothing) = (gpu.stream(), copy_args(&[]));
    ok(launch(kernel, 64, &mut nothing, stream));
    assert_eq!(launch(kernel, 65, &mut nothing, stream), 1, "more threads than it was compiled for");
    ok(cuModuleUnload(module));
    assert_eq!(launch(kernel, 64, &mut nothing, stream), 400);
}
