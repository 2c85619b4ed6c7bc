//! Calls as requests and answers.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutPayload};
use tokio::task::JoinSet;

use super::request::{LANES, Requests, why};
use super::upload::{self, Upload};
use super::{names, sweep};
use crate::remote::RemoteError;
use crate::remote::backend::{Call, Fetch, Store};
use crate::remote::call::Reply;
use crate::remote::envelope::RawRecord;
use crate::remote::keys::RemoteKey;

/// Bytes of one ranged get. A larger record is fetched by several at once, each on a connection of its own: one
/// connection carries 85 to 90 MB/s of Amazon's, so 8 MiB take 0.1 s, which is as long as a request takes anyway.
/// Amazon's advice is 8 to 16 MB.
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance-guidelines.html>
const RANGE: usize = 8 << 20;

/// Objects that one request may delete.
pub(super) const DELETE_AT_ONCE: usize = 1000;

/// Does a call and answers it.
pub(super) async fn run(requests: Requests, call: Call) {
    match call {
        Call::Exists(blocks) => {
            let exists = |(key, reply): (RemoteKey, Reply<bool>)| {
                let requests = requests.clone();
                async move { reply.answer(exists(&requests, &names::object(&key)).await) }
            };
            each(blocks, exists).await;
        }
        Call::Get(fetches) => {
            let get = |Fetch { key, record_bytes, reply }| {
                let requests = requests.clone();
                async move { reply.answer(get(&requests, &names::object(&key), record_bytes).await) }
            };
            each(fetches, get).await;
        }
        Call::Put(stores) => {
            let put = |store| {
                let requests = requests.clone();
                async move { put(&requests, store).await }
            };
            each(stores, put).await;
        }
        Call::Delete(mut blocks) => {
            let mut batches = Vec::new();
            while !blocks.is_empty() {
                batches.push(blocks.split_off(blocks.len().saturating_sub(DELETE_AT_ONCE)));
            }
            let delete = |blocks: Vec<(RemoteKey, Reply<()>)>| {
                let requests = requests.clone();
                async move {
                    let objects = blocks.iter().map(|(key, _)| names::object(key)).collect();
                    let deleted = delete(&requests, objects).await;
                    blocks.into_iter().zip(deleted).for_each(|((_, reply), deleted)| reply.answer(deleted));
                }
            };
            each(batches, delete).await;
        }
        Call::Sweep(namespace, up_to, reply) => {
            reply.answer(sweep::sweep(&requests, namespace, up_to).await);
        }
    }
}

/// Does the work for each block, as many at a time as there are lanes. Work that breaks down drops its reply, which
/// says so.
async fn each<T, F>(blocks: Vec<T>, work: impl Fn(T) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for block in blocks {
        if tasks.len() == LANES {
            tasks.join_next().await;
        }
        tasks.spawn(work(block));
    }
    while tasks.join_next().await.is_some() {}
}

/// Does all of it at once; the results in that order, or the first error.
pub(super) async fn all<T, F>(work: impl Iterator<Item = F>) -> Result<Vec<T>, RemoteError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, RemoteError>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for (i, one) in work.enumerate() {
        tasks.spawn(async move { (i, one.await) });
    }
    let mut done = Vec::with_capacity(tasks.len());
    while let Some(ended) = tasks.join_next().await {
        let (i, result) = ended.map_err(|_| RemoteError::Closed)?;
        done.push((i, result?));
    }
    done.sort_unstable_by_key(|(i, _)| *i);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

async fn exists(requests: &Requests, object: &Path) -> Result<bool, RemoteError> {
    match requests.ask(|| requests.bucket.store.head(object)).await {
        Ok(_) => Ok(true),
        Err(RemoteError::Absent) => Ok(false),
        Err(why) => Err(why),
    }
}

/// At most one byte more than the right record has.
async fn get(requests: &Requests, object: &Path, record_bytes: usize) -> Result<RawRecord, RemoteError> {
    let starts = (0..record_bytes).step_by(RANGE);
    let ranges = starts.map(|start| {
        let end = if record_bytes - start <= RANGE { record_bytes + 1 } else { start + RANGE };
        let (requests, object) = (requests.clone(), object.clone());
        async move { range(&requests, &object, start as u64..end as u64).await }
    });
    Ok(RawRecord(all(ranges).await?.into_iter().map(Into::into).collect()))
}

/// What an object has there; nothing beyond its end.
async fn range(
    requests: &Requests,
    object: &Path,
    range: std::ops::Range<u64>,
) -> Result<Vec<u8>, RemoteError> {
    let most = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
    let once = || {
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        async move {
            let mut body = requests.bucket.store.get_opts(object, options).await?.into_stream();
            let mut bytes = Vec::with_capacity(most);
            // A server that sends more than was asked for is not listened to.
            while bytes.len() < most
                && let Some(more) = body.next().await
            {
                let more = more?;
                let room = more.len().min(most - bytes.len());
                bytes.extend_from_slice(more.get(..room).unwrap_or_default());
            }
            Ok(bytes)
        }
    };
    match requests.ask(once).await {
        Err(RemoteError::NoRecord) => Ok(Vec::new()),
        other => other,
    }
}

async fn put(requests: &Requests, Store { key, record, writer, reply }: Store) {
    let object = names::object(&key);
    let record = Bytes::from_owner(record);
    let stored = if record.len() > upload::LARGE {
        let upload = Upload { requests, object: &object, writer, flight: reply.flight().map(Arc::clone) };
        upload.run(record).await
    } else {
        let payload = PutPayload::from(record);
        let once = || requests.bucket.store.put(&object, payload.clone());
        let stored = requests.ask(once).await.map(|_| ());
        drop((payload, writer));
        stored
    };
    reply.answer(stored.map_err(nothing_is_absent));
}

/// Deletes objects, at most [`DELETE_AT_ONCE`], and says of each how that went.
pub(super) async fn delete(requests: &Requests, objects: Vec<Path>) -> Vec<Result<(), RemoteError>> {
    let n = objects.len();
    let once = || {
        let objects = stream::iter(objects.clone()).map(Ok).boxed();
        let mut answers = requests.bucket.store.delete_stream(objects);
        async move {
            let mut results: Vec<object_store::Result<Path>> = Vec::with_capacity(n);
            while let Some(result) = answers.next().await {
                results.push(result);
            }
            // A single error is that of the whole request.
            match results.pop() {
                Some(Err(error)) if results.is_empty() => Err(error),
                last => {
                    results.extend(last);
                    Ok(results)
                }
            }
        }
    };
    match requests.ask(once).await {
        Ok(results) if results.len() == n => {
            let answer = |result: object_store::Result<Path>| match result {
                Ok(_) => Ok(()),
                Err(error) => Err(nothing_is_absent(why(&error))),
            };
            results.into_iter().map(answer).collect()
        }
        Ok(_) => vec![Err(RemoteError::Server); n],
        Err(why) => vec![Err(nothing_is_absent(why)); n],
    }
}

/// Who writes or deletes has no plain misses: what is not there is the bucket.
pub(super) fn nothing_is_absent(why: RemoteError) -> RemoteError {
    if why == RemoteError::Absent { RemoteError::Server } else { why }
}
