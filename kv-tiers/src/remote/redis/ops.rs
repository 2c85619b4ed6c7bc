//! Calls as commands and answers.

use std::collections::VecDeque;
use std::time::Duration;

use redis::Value;
use redis::cluster_async::ClusterConnection;
use tokio::task::JoinSet;

use super::lanes::{Lane, Lanes};
use super::link::{Link, ask_cluster, leaves_link_good, remote_error};
use super::request::{Request, Word};
use super::sweep::sweep;
use super::wire::Answer;
use crate::remote::RemoteError;
use crate::remote::backend::{Call, Fetch, Store};
use crate::remote::call::Reply;
use crate::remote::envelope::{self, RawRecord};
use crate::remote::keys::{RemoteKey, epoch_name, hex};

/// Bytes of one string. Far below the server's limit (`proto-max-bulk-len`, 512 MiB), so that one value never keeps
/// the server or the connection busy for long.
const CHUNK: usize = 4 << 20;

/// Bytes of one pipeline. A cluster's client needs a few times this in memory beside the records.
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
    /// The chunks from this one on.
    Delete(RemoteKey, usize, Reply<()>),
}

/// No block has more: it must fit a slot of the arena, which is at most 1 GiB.
const MOST_CHUNKS: usize = crate::arena::MAX_SLOT / CHUNK + 1;

/// Chunks that a deletion tries first. The number of a block's chunks is not known; it goes on, with twice as many,
/// as long as it finds any.
const FIRST_DELETED: usize = 4;

/// Does a call and answers it.
pub(super) async fn run(lanes: &Lanes, call: Call, ttl: Duration) {
    let blocks: VecDeque<Block> = match call {
        Call::Exists(keys) => keys.into_iter().map(|(key, reply)| Block::Exists(key, reply)).collect(),
        Call::Get(fetches) => fetches.into_iter().map(Block::Get).collect(),
        Call::Put(stores) => stores.into_iter().map(Block::Put).collect(),
        Call::Delete(keys) => keys.into_iter().map(|(key, reply)| Block::Delete(key, 0, reply)).collect(),
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
        Ok(Link::Cluster(connection)) => {
            let connection = connection.clone();
            one_by_one(connection, blocks, ttl).await
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
        let answered = answer(group, answers.map_err(|(why, _)| why));
        good &= !failed & answered.in_step;
        blocks.extend(answered.again);
        if failed {
            blocks.into_iter().for_each(|block| block.fail(RemoteError::Unreachable));
            return false;
        }
    }
    good
}

/// Blocks of a cluster, several at a time, each where it lies.
async fn one_by_one(connection: ClusterConnection, mut blocks: VecDeque<Block>, ttl: Duration) -> bool {
    let mut tasks = JoinSet::new();
    let mut good = true;
    loop {
        while tasks.len() < AT_A_TIME
            && let Some(block) = blocks.pop_front()
        {
            let mut connection = connection.clone();
            tasks.spawn(async move {
                let group = vec![block];
                let answers = match ask_cluster(&mut connection, &request(&group, ttl)).await {
                    Ok(answers) => checked(&group, answers),
                    Err(error) => Err(failed(&error)),
                };
                let good = !matches!(answers, Err((_, false)));
                let answered = answer(group, answers.map_err(|(why, _)| why));
                (good && answered.in_step, answered.again)
            });
        }
        match tasks.join_next().await {
            Some(Ok((in_step, again))) => {
                good &= in_step;
                blocks.extend(again);
            }
            Some(Err(_)) => good = false,
            None => return good,
        }
    }
}

/// Why a pipeline failed, and whether its connection is still good.
type Failed = (RemoteError, bool);

fn failed(error: &redis::RedisError) -> Failed {
    (remote_error(error), leaves_link_good(error))
}

/// The commands of these blocks.
fn request(group: &[Block], ttl: Duration) -> Request<'_> {
    let mut request = Request::default();
    group.iter().for_each(|block| block.ask(&mut request, ttl));
    request
}

fn checked(group: &[Block], answers: Vec<Answer>) -> Result<Vec<Answer>, Failed> {
    let expected: usize = group.iter().map(Block::commands).sum();
    if answers.len() == expected { Ok(answers) } else { Err((RemoteError::Server, false)) }
}

async fn ask(link: &mut Link, group: &[Block], ttl: Duration) -> Result<Vec<Answer>, Failed> {
    let answers = link.ask(&request(group, ttl)).await.map_err(|error| failed(&error))?;
    checked(group, answers)
}

/// What came of a pipeline.
struct Answered {
    /// False if an answer was so wrong that the connection may be out of step.
    in_step: bool,
    /// What is not done yet.
    again: Vec<Block>,
}

/// Hands the answers out.
fn answer(group: Vec<Block>, answers: Result<Vec<Answer>, RemoteError>) -> Answered {
    let mut answered = Answered { in_step: true, again: Vec::new() };
    match answers {
        Err(why) => group.into_iter().for_each(|block| block.fail(why)),
        Ok(answers) => {
            let mut answers = answers.into_iter();
            for block in group {
                answered.in_step &= block.answer(&mut answers, &mut answered.again);
            }
        }
    }
    answered
}

/// What a server says that did what it was asked.
pub(super) fn check(answer: Answer) -> Result<Answer, RemoteError> {
    match answer {
        Answer::Other(Value::ServerError(error)) => Err(remote_error(&error.into())),
        answer => Ok(answer),
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
            Self::Delete(_, _, reply) => reply.answer(Err(why)),
        }
    }

    fn ask<'a>(&'a self, request: &mut Request<'a>, ttl: Duration) {
        match self {
            Self::Exists(key, _) => request.add(["EXISTS".into(), name(key, 0).into()]),
            Self::Get(fetch) => {
                for chunk in 0..self.commands() {
                    // A byte more than there should be, so that a longer value is noticed and never fetched whole.
                    let last = (fetch.record_bytes - chunk * CHUNK).min(CHUNK);
                    let name = name(&fetch.key, chunk);
                    request.add_for(
                        last + 1,
                        ["GETRANGE".into(), name.into(), "0".into(), last.to_string().into()],
                    );
                }
            }
            Self::Put(store) => {
                let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
                for (chunk, bytes) in store.record.chunks(CHUNK).enumerate().rev() {
                    let name = name(&store.key, chunk);
                    request.add([
                        "SET".into(),
                        name.into(),
                        bytes.into(),
                        "PX".into(),
                        ttl.to_string().into(),
                    ]);
                }
            }
            Self::Delete(key, from, _) => {
                let names = (*from..until(*from)).map(|chunk| Word::from(name(key, chunk)));
                request.add([Word::from("UNLINK")].into_iter().chain(names));
            }
        }
    }

    /// Takes the answers to this block's commands. False if they are out of step.
    fn answer(self, answers: &mut impl Iterator<Item = Answer>, again: &mut Vec<Self>) -> bool {
        let n = self.commands();
        let mut next = || answers.next().map_or(Err(RemoteError::Server), check);
        match self {
            Self::Exists(_, reply) => {
                let said = match next() {
                    Ok(Answer::Other(Value::Int(there))) => Ok(there > 0),
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
                        Ok(Answer::Bytes(_)) if chunk >= all => {}
                        // A missing key is an empty string.
                        Ok(Answer::Bytes(bytes)) if bytes.is_empty() => failed = Some(RemoteError::Absent),
                        Ok(Answer::Bytes(bytes)) => {
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
                        Ok(Answer::Other(Value::Okay)) => {}
                        Ok(_) => stored = Err(RemoteError::Server),
                        Err(why) => stored = Err(why),
                    }
                }
                store.reply.answer(stored);
                stored != Err(RemoteError::Server)
            }
            Self::Delete(key, from, reply) => {
                let deleted = match next() {
                    Ok(Answer::Other(Value::Int(found))) => Ok(found > 0),
                    Ok(_) => Err(RemoteError::Server),
                    Err(why) => Err(why),
                };
                let in_step = deleted != Err(RemoteError::Server);
                match deleted {
                    Ok(true) if until(from) < MOST_CHUNKS => {
                        again.push(Self::Delete(key, until(from), reply));
                    }
                    deleted => reply.answer(deleted.map(drop)),
                }
                in_step
            }
        }
    }
}

/// The chunks that one command deletes end before this one.
fn until(from: usize) -> usize {
    (2 * from).clamp(FIRST_DELETED, MOST_CHUNKS)
}
