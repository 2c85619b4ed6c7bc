//! The header, the library and the Rust source say the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(non_camel_case_types, non_upper_case_globals, dead_code, unreachable_pub, missing_docs)]
#[rustfmt::skip] // as bindgen writes it
#[path = "abi/header.rs"]
mod header;
mod library;

use std::collections::BTreeSet;

/// Every field of a struct: same place, same size, in the header and here; and none is forgotten.
macro_rules! same {
    ($rust:ty, $c:ident { $($field:ident),* }) => {{
        assert_eq!((size_of::<$rust>(), align_of::<$rust>()), (size_of::<header::$c>(), align_of::<header::$c>()));
        let mut end = 0;
        $(
            let (ours, theirs) = (std::mem::offset_of!($rust, $field), std::mem::offset_of!(header::$c, $field));
            assert_eq!(ours, theirs, "{}.{}", stringify!($c), stringify!($field));
            let size = |_: &dyn Fn(&$rust) -> usize| ();
            size(&|value: &$rust| size_of_val(&value.$field));
            // SAFETY: structs of numbers and pointers, for which zeros are a value.
            let (mine, read): ($rust, header::$c) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
            assert_eq!(size_of_val(&mine.$field), size_of_val(&read.$field), "{}", stringify!($field));
            // No padding: bytes that nobody sets would be read as fields one day.
            assert_eq!(ours, end, "{}.{}", stringify!($c), stringify!($field));
            end = ours + size_of_val(&mine.$field);
        )*
        assert_eq!(end, size_of::<$rust>(), "{}", stringify!($c));
        stringify!($c)
    }};
}

#[test]
fn structs_are_the_same_on_both_sides() {
    let compared = [
        same!(kvtier::StoreHandle, kvtier_store { id }),
        same!(kvtier::PoolHandle, kvtier_pool { id }),
        same!(kvtier::QueueHandle, kvtier_queue { id }),
        same!(kvtier::TicketHandle, kvtier_ticket { id }),
        same!(kvtier::RunC, kvtier_run { start, len }),
        same!(kvtier::CompletionC, kvtier_completion { tag, done, keys }),
        same!(kvtier::ResultC, kvtier_result { size, version, keys, done, prefix }),
        same!(
            kvtier::StoreConfigC,
            kvtier_store_config {
                size,
                version,
                block_bytes,
                host_bytes,
                nvme_path,
                nvme_bytes,
                nvme_bytes_per_day,
                tenant,
                model,
                revision,
                layout,
                secret,
                durability,
                reserved
            }
        ),
        same!(
            kvtier::BatchC,
            kvtier_batch {
                size,
                version,
                keys,
                num_keys,
                key_ends,
                key_bytes,
                flags,
                runs,
                num_runs,
                run_counts,
                blocks,
                timeout_ns,
                queue,
                tag
            }
        ),
        same!(
            kvtier::StatsC,
            kvtier_stats {
                size,
                version,
                exists_keys,
                exists_found,
                load_keys,
                load_hits,
                load_failed,
                load_timed_out,
                store_keys,
                stored,
                present,
                no_room,
                cancelled,
                busy,
                under_way,
                host_slots,
                host_used,
                nvme_used,
                nvme_reads,
                nvme_writes,
                refused_loads,
                failed_loads,
                failed_writes,
                lost_to_eviction,
                block_bytes
            }
        ),
        same!(
            kvtier::PoolConfigC,
            kvtier_pool_config {
                size,
                version,
                layers,
                tokens_per_block,
                kv_heads,
                head_dim,
                dtype,
                order,
                fused,
                num_blocks,
                buffers,
                num_buffers,
                layer_stride,
                plane_stride,
                block_stride,
                token_stride,
                head_stride,
                device,
                num_streams,
                streams
            }
        ),
    ];
    let in_header: BTreeSet<_> = include_str!("abi/header.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("pub struct ")?.split([' ', '{']).next())
        .collect();
    assert_eq!(in_header, compared.into_iter().collect());
    assert_eq!(header::KVTIER_ABI_VERSION, kvtier::ABI_VERSION);
    // bindgen takes all ones for -1.
    assert_eq!(i64::from(header::KVTIER_OWN_BUFFER) as u64, kvtier::OWN_BUFFER);
    assert_eq!(header::KVTIER_DEVICE_HOST, kvtier::DEVICE_HOST);
    assert_eq!(header::kvtier_status_KVTIER_TOO_SMALL, kvtier::Status::TooSmall as u32);
}

/// Functions that the header declares.
fn declared() -> BTreeSet<String> {
    let functions = include_str!("abi/header.rs").split("pub fn ").skip(1);
    functions.map(|rest| rest.split('(').next().unwrap().to_owned()).collect()
}

#[test]
fn the_shared_library_shows_the_header_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let shared = library::link_shared(folder.path());
    let listed =
        library::run("nm", ["-D", "--defined-only", "--with-symbol-versions", shared.to_str().unwrap()]);
    let shown: BTreeSet<_> = listed
        .lines()
        .filter_map(|line| line.split_once(" T ").or_else(|| line.split_once(" D ")))
        .map(|(_, name)| name.strip_suffix("@@KVTIER_1").unwrap_or(name).to_owned())
        .collect();
    assert_eq!(shown, declared());
    assert_eq!(listed.matches("@@KVTIER_1").count(), shown.len(), "every symbol has its version:\n{listed}");
    assert!(!listed.contains(" W "), "{listed}");
    let dynamic = library::run("readelf", ["-d", shared.to_str().unwrap()]);
    assert!(dynamic.contains("[libkvtier.so.1]"), "{dynamic}");
}

#[test]
fn one_program_calls_every_function() {
    let program = include_str!("c/everything.c").to_owned() + include_str!("c/check.h");
    let missing: Vec<_> =
        declared().into_iter().filter(|name| !program.contains(&format!("{name}("))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
