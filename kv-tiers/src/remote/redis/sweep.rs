//! Deleting everything of a namespace: the names of every server are looked through, a page at a time.
//!
//! What was deleted stays deleted, so a sweep that its deadline cut off goes on where there is something left. In
//! memory there is one page at a time.

use kv_core::key::NamespaceId;
use kv_core::units::Epoch;
use redis::{ErrorKind, RedisResult, ServerErrorKind, Value};

use super::lanes::Lanes;
use super::link::{Link, Server, leaves_link_good, remote_error};
use super::ops::check;
use super::request::Request;
use super::wire::Answer;
use crate::remote::RemoteError;
use crate::remote::keys::{epoch_of, hex};

/// Names that a server looks at in one go, roughly: a millisecond of its time.
const PAGE: &str = "1000";

/// Bytes of the names in a page, at most. Ours are shorter than 140 bytes each.
const PAGE_BYTES: usize = 8 << 20;

pub(super) async fn sweep(lanes: &Lanes, namespace: NamespaceId, up_to: Epoch) -> Result<u64, RemoteError> {
    let mut lane = lanes.enter().await?;
    let servers = match lane.link()?.servers().await {
        // Nothing was deleted yet, and the server may have been restarted while nobody asked.
        Err(RemoteError::Unreachable) if lane.renew().await? => lane.link()?.servers().await?,
        servers => servers?,
    };
    let sweep = Sweep { prefix: format!("kvtier:1:{}:", hex(&namespace.0)), up_to };
    let mut removed = 0;
    for server in servers {
        let mut cursor = "0".to_owned();
        loop {
            let link = lane.link()?;
            let page = match sweep.page(link, &server, &cursor).await {
                Err(error) if !leaves_link_good(&error) && lane.renew().await? => {
                    sweep.page(lane.link()?, &server, &cursor).await
                }
                page => page,
            };
            let (next, names) = page.map_err(|e| remote_error(&e))?;
            removed += sweep.unlink(lane.link()?, &server, names).await?;
            cursor = next;
            if cursor == "0" {
                break;
            }
        }
    }
    lane.leave();
    Ok(removed)
}

struct Sweep {
    prefix: String,
    up_to: Epoch,
}

impl Sweep {
    /// The next names of ours, and where to go on.
    async fn page(
        &self,
        link: &mut Link,
        server: &Server,
        cursor: &str,
    ) -> RedisResult<(String, Vec<String>)> {
        let mut scan = Request::default();
        let words =
            ["SCAN".into(), cursor.to_owned().into(), "MATCH".into(), format!("{}*", self.prefix).into()];
        scan.add_for(PAGE_BYTES, words.into_iter().chain(["COUNT".into(), PAGE.into()]));
        let answer = link.ask_server(server, &scan).await?.pop();
        let nonsense = || (ErrorKind::Parse, "that is no page of a scan").into();
        let (cursor, names) = match answer {
            Some(Answer::Items(two)) => match <[Answer; 2]>::try_from(two) {
                Ok([Answer::Bytes(cursor), Answer::Items(names)]) => (cursor, names),
                _ => return Err(nonsense()),
            },
            Some(Answer::Other(Value::ServerError(error))) => return Err(error.into()),
            _ => return Err(nonsense()),
        };
        let cursor =
            str::from_utf8(&cursor).ok().filter(|c| c.parse::<u64>().is_ok()).ok_or_else(nonsense)?;
        let ours = |name: Answer| match name {
            // A name that is not text is not ours.
            Answer::Bytes(name) => {
                str::from_utf8(&name).ok().filter(|name| self.is_old(name)).map(str::to_owned)
            }
            _ => None,
        };
        Ok((cursor.to_owned(), names.into_iter().filter_map(ours).collect()))
    }

    fn is_old(&self, name: &str) -> bool {
        let epoch = name.strip_prefix(&self.prefix).and_then(|rest| epoch_of(rest.split(':').next()?));
        epoch.is_some_and(|epoch| epoch <= self.up_to)
    }

    /// In one pipeline. Answers how many blocks that were.
    async fn unlink(&self, link: &mut Link, server: &Server, names: Vec<String>) -> Result<u64, RemoteError> {
        if names.is_empty() {
            return Ok(0);
        }
        let command = |name: &String| ["UNLINK".into(), name.clone().into()];
        let mut request = Request::default();
        names.iter().for_each(|name| request.add(command(name)));
        let answers = link.ask_server(server, &request).await.map_err(|e| remote_error(&e))?;
        if answers.len() != names.len() {
            return Err(RemoteError::Server);
        }
        let mut removed = 0;
        for (name, answer) in names.iter().zip(answers) {
            let answer = match answer {
                // It went to another server of the cluster since it was seen here.
                Answer::Other(Value::ServerError(error)) if is_elsewhere(error.kind()) => {
                    let mut again = Request::default();
                    again.add(command(name));
                    let answer = link.ask(&again).await.map_err(|e| remote_error(&e))?.pop();
                    answer.ok_or(RemoteError::Server)?
                }
                answer => answer,
            };
            match check(answer)? {
                Answer::Other(Value::Int(gone)) => removed += u64::from(name.ends_with(":0") && gone == 1),
                _ => return Err(RemoteError::Server),
            }
        }
        Ok(removed)
    }
}

fn is_elsewhere(kind: Option<ServerErrorKind>) -> bool {
    matches!(kind, Some(ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::TryAgain))
}
