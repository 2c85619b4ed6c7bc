//! Blocks for remote stores: keys and bytes that follow from a number, and calls that check what they get.

use std::time::{Duration, Instant};

use kv_core::ids::JobId;
use kv_core::job::RecordMeta;
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::units::Epoch;
use kv_tiers::remote::{Put, RemoteError, RemoteKey, RemoteStore, Want};
use kvtier_benches::SplitMix64;

/// A deadline for what is not meant to be late.
#[must_use]
pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(600)
}

/// A deadline that a fault runs into.
#[must_use]
pub fn within(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

/// Key `n`, as uniform as real ones.
#[must_use]
pub fn key(namespace: u8, epoch: u64, n: u64) -> RemoteKey {
    let mut rng = SplitMix64::new(n);
    let key = u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64());
    RemoteKey {
        namespace: NamespaceId([namespace; 16]),
        epoch: Epoch(epoch),
        fingerprint: Fingerprint([7; 16]),
        key: BlockKey::from_bytes(key.to_le_bytes()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The string of Redis that holds a chunk.
#[must_use]
pub fn string_name(key: &RemoteKey, chunk: usize) -> String {
    let RemoteKey { namespace, epoch, fingerprint, key } = key;
    let owner = format!("{}:{:016x}:{}", hex(&namespace.0), epoch.0, hex(&fingerprint.0));
    format!("kvtier:1:{owner}:{{{}}}:{chunk}", hex(&key.to_bytes()))
}

/// The file that holds a block, in the shared directory.
#[must_use]
pub fn file_name(key: &RemoteKey) -> String {
    let RemoteKey { namespace, epoch, fingerprint, key } = key;
    let leaf = hex(&key.to_bytes());
    format!("kvtier-1/{}/{:016x}/{}/{}/{leaf}", hex(&namespace.0), epoch.0, hex(&fingerprint.0), &leaf[..3])
}

/// `KVTIER_SOAK` asks for longer runs.
#[must_use]
pub fn soaking() -> bool {
    std::env::var_os("KVTIER_SOAK").is_some()
}

/// Bytes that only this key has.
#[must_use]
pub fn payload(key: &RemoteKey, len: usize) -> Vec<u8> {
    let owner = key.epoch.0 << 8 | u64::from(key.namespace.0[0]);
    let mut rng = SplitMix64::new(key.key.low() ^ owner.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| rng.next_u64().to_le_bytes()).collect();
    bytes.truncate(len);
    bytes
}

/// Stores blocks with one call.
pub fn put(
    store: &dyn RemoteStore,
    keys: &[RemoteKey],
    len: usize,
    deadline: Instant,
) -> Vec<Result<(), RemoteError>> {
    let payloads: Vec<_> = keys.iter().map(|key| payload(key, len)).collect();
    let put = |(key, payload): (&RemoteKey, _)| Put {
        meta: RecordMeta { identity: key.identity(), parent: BlockKey::ROOT, depth: 0 },
        payload,
        elements: None,
    };
    let puts: Vec<_> = keys.iter().zip(payloads.iter().map(Vec::as_slice)).map(put).collect();
    store.put(&puts, deadline).wait()
}

/// Fetches blocks with one call. A block that is served with wrong bytes, or with another's token, ends the test.
pub fn get(
    store: &dyn RemoteStore,
    keys: &[RemoteKey],
    len: usize,
    deadline: Instant,
) -> Vec<Result<(), RemoteError>> {
    let wants: Vec<_> = keys.iter().map(|&key| Want { key, payload_bytes: len }).collect();
    let mut memory = vec![vec![0xEE; len]; keys.len()];
    let mut into: Vec<_> = memory.iter_mut().zip(0..).map(|(m, i)| (JobId(i), &mut m[..])).collect();
    let results = store.get(&wants, deadline).wait_into(&mut into);
    assert_eq!(results.len(), keys.len());
    let check = |(i, result): (usize, Result<kv_core::Verified, RemoteError>)| {
        let verified = result?;
        assert_eq!(verified.job(), JobId(i as u64));
        assert_eq!(memory[i], payload(&keys[i], len), "wrong bytes were accepted");
        Ok(())
    };
    results.into_iter().enumerate().map(check).collect()
}
