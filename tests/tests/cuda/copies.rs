//! Every way of copying brings every byte to its place and touches no other.

use kv_core::ids::SlotId;
use kv_core::job::Urgency;
use kv_core::layout::{Arrangement, Attention, DType, KvLayout, Placement, Step, Strides};
use kv_core::units::Tokens;
use kv_cuda::Device;
use kv_cuda::Direction::{ToDevice, ToHost};
use kv_cuda::cuda::Method;

use crate::bench::{Bench, METHODS, forced, pattern, pool};

/// Stores blocks, wipes them, loads them into other blocks; guard bands and neighbours stay as they were.
fn round_trip(placement: Placement, method: Method, urgency: Urgency) {
    let blocks = placement.num_blocks();
    let count = (blocks / 2) as usize;
    let mut config = forced(method);
    config.tuning.calibration = Some(crate::bench::flat());
    let bench = Bench::new(placement, config, count);
    let chosen = bench.device.explain(ToHost, urgency, count).chosen;
    let expected: Vec<_> = (0..blocks).map(|block| pattern(bench.block, u64::from(block) + 1)).collect();
    for (block, bytes) in (0..).zip(&expected) {
        bench.device.upload(SlotId(block), bytes).unwrap();
    }
    let guards: Vec<_> = (0..count).map(|host| bench.arena.read(host * bench.pitch, 64)).collect();

    let stores: Vec<_> =
        (0..count).map(|at| bench.copy(at as u64, ToHost, blocks - 1 - at as u32, count - 1 - at)).collect();
    bench.submit(&stores, urgency);
    bench.finish(count);
    for at in 0..count {
        let block = (blocks as usize) - 1 - at;
        assert!(
            bench.host(count - 1 - at) == expected[block],
            "{method} ({chosen}): block {block} was not stored"
        );
    }
    for (host, guard) in guards.iter().enumerate() {
        assert_eq!(&bench.arena.read(host * bench.pitch, 64), guard, "{method}: wrote before a host block");
        let behind = bench.span(host).offset + bench.block;
        assert!(bench.arena.read(behind, bench.pitch - 64 - bench.block).iter().all(|&byte| byte == 0));
    }

    let loads: Vec<_> =
        (0..count).map(|at| bench.copy(at as u64, ToDevice, at as u32, count - 1 - at)).collect();
    bench.submit(&loads, urgency);
    bench.finish(count);
    for at in 0..count {
        let stored = (blocks as usize) - 1 - at;
        assert!(bench.hbm(at as u32) == expected[stored], "{method} ({chosen}): block {at} was not loaded");
    }
    for (block, bytes) in (0..).zip(&expected).skip(count) {
        assert!(&bench.hbm(block) == bytes, "{method}: block {block} was touched");
    }
    bench.close();
}

#[test]
fn every_method_copies_every_arrangement() {
    for arrangement in Arrangement::ALL {
        for method in METHODS {
            round_trip(pool(3, 8, arrangement), method, Urgency::Demand);
        }
    }
}

#[test]
fn write_backs_are_the_same_in_smaller_pieces() {
    for method in METHODS {
        round_trip(pool(3, 40, Arrangement::KvOuter), method, Urgency::WriteBack);
    }
}

/// Blocks larger than a piece are cut; a run larger than a piece is cut too, and then only engines will do.
#[test]
fn blocks_larger_than_a_piece_are_cut() {
    for (arrangement, method) in [
        (Arrangement::BlockOuter, Method::Staged { ctas: 2 }),
        (Arrangement::BlockOuter, Method::EngineBatch),
        (Arrangement::BlockOutermost, Method::EngineLoop),
        (Arrangement::BlockOutermost, Method::Kernel { ctas: 2 }),
        (Arrangement::BlockOutermost, Method::Staged { ctas: 2 }),
    ] {
        round_trip(pool(160, 2, arrangement), method, Urgency::Demand);
    }
}

/// Layouts that allow accesses of 1, 2, 4 and 8 bytes only, and padded ones.
#[test]
fn odd_layouts_are_copied() {
    for (dim, dtype) in
        [(1, DType::Fp8E4M3), (3, DType::Fp8E4M3), (5, DType::Bf16), (3, DType::F32), (6, DType::F32)]
    {
        let layout = KvLayout::new(3, Attention::Latent { dim }, dtype, Tokens(7)).unwrap();
        let row = dim as usize * dtype.bytes();
        let strides = Strides {
            layer: Step::Buffer,
            plane: Step::Bytes(0),
            block: 8 * row + 5 * row,
            token: row,
            head: row,
        };
        let padded = Placement::strided(layout, 6, strides).unwrap();
        for method in METHODS {
            round_trip(padded, method, Urgency::Demand);
        }
    }
}

#[test]
fn zeroing_and_reading_back_are_exact() {
    let bench = Bench::new(pool(2, 6, Arrangement::KvOuter), forced(Method::EngineBatch), 1);
    let bytes: Vec<_> = (0..6).map(|block| pattern(bench.block, block + 7)).collect();
    for (block, bytes) in (0..).zip(&bytes) {
        bench.device.upload(SlotId(block), bytes).unwrap();
    }
    let all: Vec<_> = (0..6).map(SlotId).collect();
    for (found, bytes) in bench.device.digest(&all).unwrap().into_iter().zip(&bytes) {
        assert_eq!(found.checksum, kv_core::payload_checksum(bytes));
        assert_eq!(found.nonzero, bytes.iter().filter(|&&byte| byte != 0).count() as u64);
    }
    bench.device.zero(&[SlotId(4), SlotId(1)]).unwrap();
    let found = bench.device.digest(&all).unwrap();
    for ((block, found), bytes) in (0..).zip(found).zip(bytes) {
        let erased = block == 4 || block == 1;
        assert_eq!(found.nonzero == 0, erased, "block {block}");
        assert!(bench.hbm(block) == if erased { vec![0; bench.block] } else { bytes });
    }
    bench.close();
}

/// The measured choice copies right, whatever it is, and its explanation names what it does.
#[test]
fn the_default_measures_and_chooses() {
    let bench = Bench::new(pool(4, 64, Arrangement::KvOuter), kv_cuda::cuda::CudaConfig::new(0).unwrap(), 32);
    let explained = bench.device.explain(ToDevice, Urgency::Demand, 32);
    assert!(!explained.forced);
    assert_eq!(explained.candidates[0].method, explained.chosen);
    // How many there was time to measure depends on the machine; the engine always is.
    assert!(
        explained.candidates.iter().any(|candidate| candidate.method == Method::EngineLoop),
        "{explained}"
    );
    let expected: Vec<_> = (0..32).map(|host| bench.fill_host(host, host as u64 + 3)).collect();
    let loads: Vec<_> = (0..32).map(|at| bench.copy(at as u64, ToDevice, 63 - at as u32, at)).collect();
    bench.submit(&loads, Urgency::Demand);
    bench.finish(32);
    for (at, bytes) in expected.iter().enumerate() {
        assert!(&bench.hbm(63 - at as u32) == bytes, "block {at}");
    }
    bench.close();
}
