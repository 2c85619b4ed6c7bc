//! Calls as commands and answers.

use std::collections::VecDeque;
use std::time::Duration;

use kv_core::key::NamespaceId;
use kv_core::units::Epoch;
use redis::{Pipeline, Value};
use tokio::task::JoinSet;

use super::lanes::{Lane, Lanes};
use super::link::{Link, leaves_link_good, remote_error};
use crate::remote::RemoteError;
use crate::remote::backend::{Call, Fetch, Store};
use crate::remote::call::Reply;
use crate::remote::envelope::{self, RawRecord};
use crate::remote::keys::{RemoteKey, epoch_name, epoch_of, hex};

/// Bytes of one string. Far below the server's limit (`proto-max-bulk-len`, 512 MiB), so that one value never keeps
/// the server or the connection busy for long.
const CHUNK: usize = 4 << 20;

/// Bytes of one pipeline. What a pipeline costs in memory beside the records is a few times this for each lane.
const PIPELINE_BYTES: usize = 8 << 20;

/// Commands of one pipeline.
const PIPELINE_COMMANDS: usize = 256;

/// Blocks of one call that a cluster is asked about at a time.
const AT_A_TIME: usize = 16;

fn name(key: &RemoteKey, chunk: usize) -> String {
    let RemoteKey { namespace, epoch, fingerprint, .. } = key;
    let prefix = format!("kvtier:1:{}:{}:{}", hex(&namespace.0), epoch_name(*epoch), hex(&fingerprint.0));
    format!("{prefix}:{{{}}}:{chunk}", key.leaf())
}

/// What is to be done about one block. Everything can be done twice.
enum Block {
    Exists(RemoteKey, Reply<bool>),
    Get(Fetch),
    Put(Store),
    /// Chunks are found by trying: their number is not known.
    Delete(RemoteKey, Reply<()>),
}

/// No block has more: it must fit a slot of the arena, which is at most 1 GiB.
const MOST_CHUNKS: usize = crate::arena::MAX_SLOT / CHUNK + 1;

/// Does a call and answers it.
pub(super) async fn run(lanes: &Lanes, call: Call, ttl: Duration) {
    let blocks: VecDeque<Block> = match call {
        Call::Exists(keys) => keys.into_iter().map(|(key, reply)| Block::Exists(key, reply)).collect(),
        Call::Get(fetches) => fetches.into_iter().map(Block::Get).collect(),
        Call::Put(stores) => stores.into_iter().map(Block::Put).collect(),
        Call::Delete(keys) => keys.into_iter().map(|(key, reply)| Block::Delete(key, reply)).collect(),
        Call::Sweep(namespace, up_to, reply) => {
            let swept = sweep(lanes, namespace, up_to).await;
            return reply.answer(swept);
        }
    };
    let mut lane = match lanes.enter().await {
        Ok(lane) => lane,
        Err(why) => return blocks.into_iter().for_each(|block| block.fail(why)),
    };
    let good = match lane.link() {
        Ok(link) if !link.mixes_blocks() => {
            let link = link.clone();
            one_by_one(link, blocks, ttl).await
        }
        _ => in_pipelines(&mut lane, blocks, ttl).await,
    };
    if good {
        lane.leave();
    }
}

/// Blocks of one server, in as few pipelines as their size allows. False if the connection is of no use any more.
async fn in_pipelines(lane: &mut Lane<'_>, mut blocks: VecDeque<Block>, ttl: Duration) -> bool {
    let mut good = true;
    while !blocks.is_empty() {
        let (mut group, mut bytes, mut commands) = (Vec::new(), 0, 0);
        while let Some(block) = blocks.pop_front() {
            bytes += block.bytes();
            commands += block.commands();
            if !group.is_empty() && (bytes > PIPELINE_BYTES || commands > PIPELINE_COMMANDS) {
                blocks.push_front(block);
                break;
            }
            group.push(block);
        }
        let mut answers = match lane.link() {
            Ok(link) => ask(link, &group, ttl).await,
            Err(why) => Err((why, false)),
        };
        // The server may have been restarted while nobody asked.
        if matches!(answers, Err((_, false))) {
            answers = match lane.renew().await {
                Ok(true) => match lane.link() {
                    Ok(link) => ask(link, &group, ttl).await,
                    Err(why) => Err((why, false)),
                },
                Ok(false) => answers,
                Err(why) => Err((why, false)),
            };
        }
        let failed = matches!(answers, Err((_, false)));
        good &= !failed & answer(group, answers.map_err(|(why, _)| why));
        if failed {
            blocks.into_iter().for_each(|block| block.fail(RemoteError::Unreachable));
            return false;
        }
    }
    good
}

/// Blocks of a cluster, several at a time, each where it lies.
async fn one_by_one(link: Link, mut blocks: VecDeque<Block>, ttl: Duration) -> bool {
    let mut tasks = JoinSet::new();
    let mut good = true;
    loop {
        while tasks.len() < AT_A_TIME
            && let Some(block) = blocks.pop_front()
        {
            let mut link = link.clone();
            tasks.spawn(async move {
                let group = vec![block];
                let answers = ask(&mut link, &group, ttl).await;
                let good = !matches!(answers, Err((_, false)));
                answer(group, answers.map_err(|(why, _)| why)) && good
            });
        }
        match tasks.join_next().await {
            Some(result) => good &= result.unwrap_or(false),
            None => return good,
        }
    }
}

/// Why a pipeline failed, and whether its connection is still good.
type Failed = (RemoteError, bool);

async fn ask(link: &mut Link, group: &[Block], ttl: Duration) -> Result<Vec<Value>, Failed> {
    let mut pipeline = Pipeline::new();
    group.iter().for_each(|block| block.ask(&mut pipeline, ttl));
    let expected = pipeline.len();
    let answers =
        link.ask(&pipeline).await.map_err(|error| (remote_error(&error), leaves_link_good(&error)))?;
    if answers.len() == expected { Ok(answers) } else { Err((RemoteError::Server, false)) }
}

/// Hands the answers out. False if one of them is so wrong that the connection may be out of step.
fn answer(group: Vec<Block>, answers: Result<Vec<Value>, RemoteError>) -> bool {
    match answers {
        Err(why) => {
            group.into_iter().for_each(|block| block.fail(why));
            true
        }
        Ok(answers) => {
            let mut answers = answers.into_iter();
            group.into_iter().fold(true, |good, block| good & block.answer(&mut answers))
        }
    }
}

/// What a server says that did what it was asked.
fn check(value: Value) -> Result<Value, RemoteError> {
    match value {
        Value::ServerError(error) => Err(remote_error(&error.into())),
        value => Ok(value),
    }
}

impl Block {
    fn commands(&self) -> usize {
        match self {
            Self::Exists(..) | Self::Delete(..) => 1,
            Self::Get(fetch) => fetch.record_bytes.div_ceil(CHUNK),
            Self::Put(store) => store.record.len().div_ceil(CHUNK),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Exists(..) | Self::Delete(..) => 0,
            Self::Get(fetch) => fetch.record_bytes,
            Self::Put(store) => store.record.len(),
        }
    }

    fn fail(self, why: RemoteError) {
        match self {
            Self::Exists(_, reply) => reply.answer(Err(why)),
            Self::Get(fetch) => fetch.reply.answer(Err(why)),
            Self::Put(store) => {
                drop((store.record, store.writer));
                store.reply.answer(Err(why));
            }
            Self::Delete(_, reply) => reply.answer(Err(why)),
        }
    }

    fn ask(&self, pipeline: &mut Pipeline, ttl: Duration) {
        match self {
            Self::Exists(key, _) => {
                pipeline.cmd("EXISTS").arg(name(key, 0));
            }
            Self::Get(fetch) => {
                for chunk in 0..self.commands() {
                    // A byte more than there should be, so that a longer value is noticed and never fetched whole.
                    let last = (fetch.record_bytes - chunk * CHUNK).min(CHUNK);
                    pipeline.cmd("GETRANGE").arg(name(&fetch.key, chunk)).arg(0).arg(last);
                }
            }
            Self::Put(store) => {
                let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
                for (chunk, bytes) in store.record.chunks(CHUNK).enumerate().rev() {
                    pipeline.cmd("SET").arg(name(&store.key, chunk)).arg(bytes).arg("PX").arg(ttl);
                }
            }
            Self::Delete(key, _) => {
                pipeline
                    .cmd("UNLINK")
                    .arg((0..MOST_CHUNKS).map(|chunk| name(key, chunk)).collect::<Vec<_>>());
            }
        }
    }

    /// Takes the answers to this block's commands. False if they are out of step.
    fn answer(self, answers: &mut impl Iterator<Item = Value>) -> bool {
        let n = self.commands();
        let mut next = || answers.next().map_or(Err(RemoteError::Server), check);
        match self {
            Self::Exists(_, reply) => {
                let said = match next() {
                    Ok(Value::Int(there)) => Ok(there > 0),
                    Ok(_) => Err(RemoteError::Server),
                    Err(why) => Err(why),
                };
                let in_step = said != Err(RemoteError::Server);
                reply.answer(said);
                in_step
            }
            Self::Get(fetch) => {
                let mut chunks = Vec::with_capacity(n);
                let mut failed = None;
                // An encoded block has fewer chunks than it might have. What lies behind them is none of it.
                let mut all = n;
                for chunk in 0..n {
                    match next() {
                        Ok(Value::BulkString(_)) if chunk >= all => {}
                        // A missing key is an empty string.
                        Ok(Value::BulkString(bytes)) if bytes.is_empty() => {
                            failed = Some(RemoteError::Absent)
                        }
                        Ok(Value::BulkString(bytes)) => {
                            if let Some(bytes) = envelope::record_bytes(&bytes).filter(|_| chunk == 0) {
                                all = bytes.div_ceil(CHUNK);
                            }
                            chunks.push(bytes);
                        }
                        Ok(_) => failed = Some(RemoteError::Server),
                        Err(why) => failed = Some(why),
                    }
                }
                let in_step = match failed {
                    Some(why) => why != RemoteError::Server,
                    None => chunks.first().is_some_and(|first| envelope::is_of(first, &fetch.key.identity())),
                };
                fetch.reply.answer(failed.map_or(Ok(RawRecord(chunks)), Err));
                in_step
            }
            Self::Put(store) => {
                drop((store.record, store.writer));
                let mut stored = Ok(());
                for _ in 0..n {
                    match next() {
                        Ok(Value::Okay) => {}
                        Ok(_) => stored = Err(RemoteError::Server),
                        Err(why) => stored = Err(why),
                    }
                }
                store.reply.answer(stored);
                stored != Err(RemoteError::Server)
            }
            Self::Delete(_, reply) => {
                let deleted = match next() {
                    Ok(Value::Int(_)) => Ok(()),
                    Ok(_) => Err(RemoteError::Server),
                    Err(why) => Err(why),
                };
                reply.answer(deleted);
                deleted != Err(RemoteError::Server)
            }
        }
    }
}

/// Looks through the names of every server, and deletes what belongs to the namespace and its old epochs.
async fn sweep(lanes: &Lanes, namespace: NamespaceId, up_to: Epoch) -> Result<u64, RemoteError> {
    let mut lane = lanes.enter().await?;
    let link = lane.link()?;
    let prefix = format!("kvtier:1:{}:", hex(&namespace.0));
    let mut removed = 0;
    for server in link.servers().await? {
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(format!("{prefix}*")).arg("COUNT").arg(1000);
            let found = link.ask_server(&server, scan).await.map_err(|e| remote_error(&e))?;
            let (next, names): (u64, Vec<Vec<u8>>) =
                redis::from_redis_value(found).map_err(|_| RemoteError::Server)?;
            for name in names.iter().filter_map(|name| std::str::from_utf8(name).ok()) {
                let epoch = name.strip_prefix(&prefix).and_then(|rest| epoch_of(rest.split(':').next()?));
                if epoch.is_some_and(|epoch| epoch <= up_to) {
                    let mut unlink = Pipeline::new();
                    unlink.cmd("UNLINK").arg(name);
                    let gone = link.ask(&unlink).await.map_err(|e| remote_error(&e))?;
                    let gone = gone.into_iter().next().map_or(Err(RemoteError::Server), check)?;
                    removed += u64::from(name.ends_with(":0") && gone == Value::Int(1));
                }
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
    }
    lane.leave();
    Ok(removed)
}
