//! Calls as pieces of blocking work: several blocks each, as many as one lane has room for.

use std::ffi::CString;
use std::ops::Range;
use std::sync::Arc;

use kv_core::Mismatch;

use super::codes;
use super::names::{name, pattern};
use super::session::Session;
use super::staging::{Lane, rounded};
use crate::remote::backend::{Call, Fetch, Store};
use crate::remote::call::Reply;
use crate::remote::envelope::{HEADER, RawRecord};
use crate::remote::pool::Task;
use crate::remote::{RemoteError, RemoteKey};

/// Blocks of one piece of work, if there is room. Asking for one costs about as much as asking for this many.
const AT_A_TIME: usize = 128;

/// Names that one piece of work removes: one request to the master each.
const REMOVED_AT_A_TIME: usize = 16;

/// The pieces of a call.
pub(super) fn tasks(session: &Arc<Session>, call: Call) -> Vec<Task> {
    match call {
        Call::Exists(blocks) => {
            let groups = chunks(blocks, AT_A_TIME);
            groups.into_iter().filter_map(|group| task(session, group, |(_, reply)| reply, exist)).collect()
        }
        Call::Get(fetches) => {
            let size = |fetch: &Fetch| (fetch.key, fetch.record_bytes);
            let fail = |fetch: Fetch| fetch.reply.answer(Err(RemoteError::TooLarge));
            let groups = fitting(fetches, session.staging().lane_bytes(), size, fail);
            groups.into_iter().filter_map(|group| task(session, group, |fetch| &fetch.reply, get)).collect()
        }
        Call::Put(stores) => {
            let size = |store: &Store| (store.key, store.record.len());
            let fail = |store: Store| store.reply.answer(Err(RemoteError::TooLarge));
            let groups = fitting(stores, session.staging().lane_bytes(), size, fail);
            groups.into_iter().filter_map(|group| task(session, group, |store| &store.reply, put)).collect()
        }
        Call::Delete(blocks) => {
            let groups = chunks(blocks, REMOVED_AT_A_TIME);
            groups.into_iter().filter_map(|group| task(session, group, |(_, reply)| reply, remove)).collect()
        }
        Call::Sweep(namespace, up_to, reply) => {
            let work = move |session: &Session, replies: Vec<Reply<u64>>| {
                let pattern = pattern(namespace, up_to);
                for reply in replies {
                    let removed = session.remove_by_pattern(&pattern);
                    reply.answer(u64::try_from(removed).map_err(|_| codes::error(removed)));
                }
            };
            task(session, vec![reply], |reply| reply, work).into_iter().collect()
        }
    }
}

fn task<B: Send + 'static, T: 'static>(
    session: &Arc<Session>,
    group: Vec<B>,
    reply: impl Fn(&B) -> &Reply<T>,
    work: impl FnOnce(&Session, Vec<B>) + Send + 'static,
) -> Option<Task> {
    let flight = Arc::clone(reply(group.first()?).flight()?);
    let session = Arc::clone(session);
    Some(Task { flight, work: Box::new(move || work(&session, group)) })
}

fn chunks<B>(blocks: Vec<B>, most: usize) -> Vec<Vec<B>> {
    let mut blocks = blocks.into_iter();
    std::iter::from_fn(|| Some(blocks.by_ref().take(most).collect()))
        .take_while(|group: &Vec<B>| !group.is_empty())
        .collect()
}

/// Groups that a lane has room for. No group has a name twice: the library fills memory by name, and would report
/// that it has filled both.
fn fitting<B>(
    blocks: Vec<B>,
    lane_bytes: usize,
    of: impl Fn(&B) -> (RemoteKey, usize),
    too_large: impl Fn(B),
) -> Vec<Vec<B>> {
    let (mut groups, mut group, mut bytes): (Vec<_>, Vec<B>, usize) = (Vec::new(), Vec::new(), 0);
    for block in blocks {
        let (key, len) = of(&block);
        if rounded(len) > lane_bytes {
            too_large(block);
            continue;
        }
        let again = group.iter().any(|other| of(other).0 == key);
        if again || group.len() == AT_A_TIME || bytes + rounded(len) > lane_bytes {
            groups.push(std::mem::take(&mut group));
            bytes = 0;
        }
        bytes += rounded(len);
        group.push(block);
    }
    groups.push(group);
    groups
}

fn exist(session: &Session, blocks: Vec<(RemoteKey, Reply<bool>)>) {
    let names: Vec<_> = blocks.iter().map(|(key, _)| name(key)).collect();
    for ((_, reply), code) in blocks.into_iter().zip(session.exist(&names)) {
        reply.answer(match codes::meaning(code) {
            Ok(there) => Ok(there > 0),
            Err(RemoteError::Absent) => Ok(false),
            Err(why) => Err(why),
        });
    }
}

/// A lane for a group, with a room for each block. There are as many lanes as threads, and [`fitting`] has measured.
fn rooms(session: &Session, sizes: impl Iterator<Item = usize>) -> Option<(Lane, Vec<Range<usize>>)> {
    let mut lane = session.staging().lane()?;
    let rooms = sizes.map(|len| lane.room(len)).collect::<Option<_>>()?;
    Some((lane, rooms))
}

fn get(session: &Session, fetches: Vec<Fetch>) {
    let Some((mut lane, rooms)) = rooms(session, fetches.iter().map(|fetch| fetch.record_bytes)) else {
        return fetches.into_iter().for_each(|fetch| fetch.reply.answer(Err(RemoteError::Busy)));
    };
    // A lane may hold what an earlier call has left. If the library reports a success and writes nothing, that must
    // not look like a record.
    for room in &rooms {
        let header = room.start..room.end.min(room.start + HEADER);
        lane.bytes_mut().get_mut(header).unwrap_or_default().fill(0);
    }
    let names: Vec<_> = fetches.iter().map(|fetch| name(&fetch.key)).collect();
    let codes = session.get(&names, &mut lane, &rooms);
    for (((fetch, name), room), mut code) in fetches.into_iter().zip(names).zip(rooms).zip(codes) {
        if code == codes::LEASE_EXPIRED && fetch.reply.is_wanted() {
            let again = session.get(std::slice::from_ref(&name), &mut lane, std::slice::from_ref(&room));
            code = again.first().copied().unwrap_or(code);
        }
        let record = record(session, code, &name, &lane, &room);
        fetch.reply.answer(record);
    }
}

/// What came into a room.
fn record(
    session: &Session,
    code: i64,
    name: &CString,
    lane: &Lane,
    room: &Range<usize>,
) -> Result<RawRecord, RemoteError> {
    match codes::meaning(code) {
        Ok(len) => {
            let bytes = usize::try_from(len).ok().and_then(|len| lane.bytes().get(room.clone())?.get(..len));
            // More than there is room for is a lie.
            bytes.map(|bytes| RawRecord(vec![bytes.to_vec().into()])).ok_or(RemoteError::Server)
        }
        Err(_)
            if code == codes::INVALID_PARAMS && session.size(name) > room.len().try_into().unwrap_or(0) =>
        {
            Err(Mismatch::Length.into())
        }
        Err(why) => Err(why),
    }
}

fn put(session: &Session, stores: Vec<Store>) {
    let Some((mut lane, rooms)) = rooms(session, stores.iter().map(|store| store.record.len())) else {
        return stores.into_iter().for_each(|store| store.reply.answer(Err(RemoteError::Busy)));
    };
    for (store, room) in stores.iter().zip(&rooms) {
        if let Some(room) = lane.bytes_mut().get_mut(room.clone()) {
            room.copy_from_slice(&store.record);
        }
    }
    let names: Vec<_> = stores.iter().map(|store| name(&store.key)).collect();
    let codes = session.put(&names, &mut lane, &rooms);
    for (store, code) in stores.into_iter().zip(codes) {
        let Store { key: _, record, writer, reply } = store;
        drop((record, writer));
        reply.answer(match codes::meaning(code) {
            Ok(_) => Ok(()),
            Err(_) if code == codes::OBJECT_ALREADY_EXISTS => Ok(()),
            // A put has no plain misses.
            Err(RemoteError::Absent) => Err(RemoteError::Server),
            Err(why) => Err(why),
        });
    }
}

fn remove(session: &Session, blocks: Vec<(RemoteKey, Reply<()>)>) {
    for (key, reply) in blocks {
        if !reply.is_wanted() {
            continue;
        }
        let code = session.remove(&name(&key));
        reply.answer(match codes::meaning(code) {
            Ok(_) => Ok(()),
            Err(_) if code == codes::OBJECT_NOT_FOUND => Ok(()),
            // Being written: it will be there.
            Err(RemoteError::Absent) => Err(RemoteError::Server),
            Err(why) => Err(why),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
    use kv_core::units::Epoch;

    #[test]
    fn groups_fit_a_lane_and_have_no_name_twice() {
        let key = |n: u8| RemoteKey {
            namespace: NamespaceId([0; 16]),
            epoch: Epoch(0),
            fingerprint: Fingerprint([0; 16]),
            key: BlockKey::from_bytes([n; 16]),
        };
        let blocks = [(1, 100), (2, 100), (1, 100), (3, 256), (4, 257), (5, 1), (6, 0)];
        let refused = std::cell::RefCell::new(Vec::new());
        let groups =
            fitting(blocks.to_vec(), 256, |&(n, len)| (key(n), len), |(n, _)| refused.borrow_mut().push(n));
        let names: Vec<Vec<u8>> =
            groups.iter().map(|group| group.iter().map(|&(n, _)| n).collect()).collect();
        assert_eq!(names, [vec![1, 2], vec![1], vec![3], vec![5, 6]]);
        assert_eq!(*refused.borrow(), [4]);
        assert_eq!(chunks((0..5).collect(), 2), [vec![0, 1], vec![2, 3], vec![4]]);
        let many = fitting((0..200).map(|n| (n, 0)).collect(), 256, |&(n, len)| (key(n), len), |_| {});
        assert_eq!(many.iter().map(Vec::len).collect::<Vec<_>>(), [128, 72]);
    }
}
