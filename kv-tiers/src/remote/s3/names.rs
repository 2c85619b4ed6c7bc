//! What objects are called.

use kv_core::key::NamespaceId;
use kv_core::units::Epoch;
use object_store::path::Path;

use crate::remote::keys::{RemoteKey, epoch_name, epoch_of, hex};

/// Everything of ours begins with it. Another layout would get another number.
const VERSION: &str = "kvtier-1";

/// Parts of every namespace. Amazon gives each part of a bucket 3,500 writes and 5,500 reads a second once it has
/// split there, so these carry 56,000 and 88,000; and a sweep still has few lists to ask for.
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html>
const SHARDS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];

/// The object of a block.
pub(super) fn object(key: &RemoteKey) -> Path {
    let leaf = key.leaf();
    let shard = leaf.get(..1).unwrap_or_default();
    let RemoteKey { namespace, epoch, fingerprint, .. } = key;
    let owner = hex(&namespace.0);
    Path::from(format!("{VERSION}/{shard}/{owner}/{}/{}/{leaf}", epoch_name(*epoch), hex(&fingerprint.0)))
}

/// The folders that hold everything of a namespace.
pub(super) fn folders(namespace: NamespaceId) -> impl Iterator<Item = Path> {
    SHARDS.iter().map(move |shard| Path::from(format!("{VERSION}/{shard}/{}", hex(&namespace.0))))
}

/// The epoch that a folder in one of those belongs to; `None` if it is nothing of ours.
pub(super) fn epoch(folder: &Path) -> Option<Epoch> {
    epoch_of(folder.as_ref().rsplit('/').next()?)
}

#[cfg(test)]
mod tests {
    use kv_core::key::{BlockKey, Fingerprint};

    use super::*;

    #[test]
    fn every_object_lies_in_one_folder_of_its_namespace_and_in_its_epoch() {
        for first in 0..=255 {
            let mut bytes = [7; 16];
            bytes[0] = first;
            let key = RemoteKey {
                namespace: NamespaceId([first; 16]),
                epoch: Epoch(u64::from(first) << 50),
                fingerprint: Fingerprint([9; 16]),
                key: BlockKey::from_bytes(bytes),
            };
            let object = object(&key);
            let inside = |folder: &Path| object.as_ref().starts_with(&format!("{folder}/"));
            let folders: Vec<_> = folders(key.namespace).filter(inside).collect();
            assert_eq!(folders.len(), 1, "{object}");
            let rest = object.as_ref().strip_prefix(&format!("{}/", folders[0])).unwrap();
            let epoch_folder = Path::from(format!("{}/{}", folders[0], rest.split('/').next().unwrap()));
            assert_eq!(epoch(&epoch_folder), Some(key.epoch));
        }
    }
}
