//! Deletes what belongs to a namespace and its old epochs.

use futures_util::{StreamExt, TryStreamExt};
use kv_core::key::NamespaceId;
use kv_core::units::Epoch;
use object_store::ObjectStore;
use object_store::path::Path;

use super::names;
use super::ops::{DELETE_AT_ONCE, all, delete, nothing_is_absent};
use super::request::Requests;
use crate::remote::RemoteError;

/// Every shard at once. What was deleted before an error stays deleted, so who repeats it goes on.
pub(super) async fn sweep(
    requests: &Requests,
    namespace: NamespaceId,
    up_to: Epoch,
) -> Result<u64, RemoteError> {
    let shards = names::folders(namespace).map(|folder| {
        let requests = requests.clone();
        async move { shard(&requests, &folder, up_to).await }
    });
    let removed = all(shards).await.map_err(nothing_is_absent)?;
    Ok(removed.into_iter().sum())
}

async fn shard(requests: &Requests, folder: &Path, up_to: Epoch) -> Result<u64, RemoteError> {
    let epochs = requests.ask(|| requests.bucket.store.list_with_delimiter(Some(folder))).await?;
    let mut removed = 0;
    for folder in &epochs.common_prefixes {
        if names::epoch(folder).is_some_and(|epoch| epoch <= up_to) {
            removed += empty(requests, folder).await?;
        }
    }
    Ok(removed)
}

/// Lists and deletes until nothing is listed. A server that goes on listing what it says to have deleted keeps this
/// busy until the deadline, and is not believed.
async fn empty(requests: &Requests, folder: &Path) -> Result<u64, RemoteError> {
    let mut removed = 0;
    loop {
        let list = || {
            let objects = requests.bucket.store.list(Some(folder)).take(DELETE_AT_ONCE);
            objects.map_ok(|object| object.location).try_collect::<Vec<_>>()
        };
        let objects = requests.ask(list).await?;
        if objects.is_empty() {
            return Ok(removed);
        }
        for deleted in delete(requests, objects).await {
            deleted?;
            removed += 1;
        }
    }
}
