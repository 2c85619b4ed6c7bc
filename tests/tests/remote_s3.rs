//! The S3 store against a real server, and against one that only refuses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use kv_core::Mismatch;
use kv_tiers::remote::{
    InFlight, OpenError, RemoteError, RemoteKey, RemoteStore, S3Config, S3Credentials, S3Store, Swept,
};
use kvtier_tests::remote::{get, key, put, soon, within};
use kvtier_tests::s3_server::{S3Server, Script, config, object};

const SERVER: &str = env!("CARGO_BIN_EXE_s3-server");

fn store_of(server: &S3Server) -> S3Store {
    S3Store::open(config(server.port())).unwrap()
}

fn keys(namespace: u8, epoch: u64, n: u64) -> Vec<RemoteKey> {
    (0..n).map(|i| key(namespace, epoch, i)).collect()
}

fn file(server: &S3Server, key: &RemoteKey) -> PathBuf {
    server.files().join(object(key))
}

/// What is left in flight ends: an upload that is taken back outlives its call.
fn ends(store: &S3Store) {
    while store.in_flight() != InFlight::default() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn it_does_everything() {
    let server = S3Server::start(SERVER);
    let store = store_of(&server);
    let blocks = keys(1, 0, 100);
    assert_eq!(store.exists(&blocks, soon()).wait(), vec![Ok(false); 100]);
    assert_eq!(get(&store, &blocks, 1000, soon()), vec![Err(RemoteError::Absent); 100]);
    assert_eq!(put(&store, &blocks, 1000, soon()), vec![Ok(()); 100]);
    assert_eq!(store.exists(&blocks, soon()).wait(), vec![Ok(true); 100]);
    assert_eq!(get(&store, &blocks, 1000, soon()), vec![Ok(()); 100]);
    // Another length, which is longer or shorter, is another record.
    assert_eq!(get(&store, &blocks[..1], 999, soon()), [Err(Mismatch::Length.into())]);
    assert_eq!(get(&store, &blocks[..1], 1001, soon()), [Err(Mismatch::Length.into())]);
    assert_eq!(store.delete(&blocks[..10], soon()).wait(), vec![Ok(()); 10]);
    assert_eq!(store.delete(&blocks[..10], soon()).wait(), vec![Ok(()); 10]);
    assert_eq!(store.exists(&blocks[..11], soon()).wait()[9..], [Ok(false), Ok(true)]);

    let (older, newer, others) = (keys(1, 1, 20), keys(1, 2, 20), keys(2, 0, 20));
    for blocks in [&older, &newer, &others] {
        assert_eq!(put(&store, blocks, 1000, soon()), vec![Ok(()); 20]);
    }
    let sweep = || store.sweep(blocks[0].namespace, older[0].epoch, soon()).wait();
    assert_eq!(sweep(), Ok(Swept { removed: 90 + 20, writers: 0 }));
    assert_eq!(sweep(), Ok(Swept { removed: 0, writers: 0 }));
    assert_eq!(get(&store, &blocks, 1000, soon()), vec![Err(RemoteError::Absent); 100]);
    assert_eq!(get(&store, &older, 1000, soon()), vec![Err(RemoteError::Absent); 20]);
    assert_eq!(get(&store, &newer, 1000, soon()), vec![Ok(()); 20]);
    assert_eq!(get(&store, &others, 1000, soon()), vec![Ok(()); 20]);

    let counters = store.counters();
    assert_eq!((counters.hits, counters.puts), (100 + 40, 100 + 60));
    assert_eq!((counters.wrong_length, counters.misses()), (2, 100 + 100 + 2 + 10 + 120));
    assert_eq!(store.in_flight(), InFlight::default());
}

/// One get, several in parallel, and an upload in parts: with one byte less, as many, and one more than each takes.
#[test]
fn records_of_every_size_come_back() {
    let server = S3Server::start(SERVER);
    let store = store_of(&server);
    let block = [key(3, 0, 0)];
    let (range, large) = (8 << 20, 32 << 20);
    for record in [range - 1, range, range + 1, 3 * range, large - 1, large, large + 1, 50_000_001] {
        let len = record - 128;
        assert_eq!(put(&store, &block, len, soon()), [Ok(())], "{record}");
        assert_eq!(fs::metadata(file(&server, &block[0])).unwrap().len(), record as u64);
        assert_eq!(get(&store, &block, len, soon()), [Ok(())], "{record}");
        assert_eq!(get(&store, &block, len - 1, soon()), [Err(Mismatch::Length.into())], "{record}");
        assert_eq!(get(&store, &block, len + 1, soon()), [Err(Mismatch::Length.into())], "{record}");
    }
    // The end of what is there falls into another range, or on its border, or there is nothing at all.
    for there in [range * 2, range + 5, 5000, 128, 1, 0] {
        let bytes = fs::read(file(&server, &block[0])).unwrap();
        fs::write(file(&server, &block[0]), &bytes[..there]).unwrap();
        let why = if there < 128 { RemoteError::NoRecord } else { Mismatch::Length.into() };
        assert_eq!(get(&store, &block, 50_000_001 - 128, soon()), [Err(why)], "{there}");
    }
    assert_eq!(server.unfinished_parts(), 0);
    assert_eq!(store.in_flight(), InFlight::default());
}

/// What somebody else may write under our names.
#[test]
fn damaged_swapped_and_foreign_objects_are_counted_misses() {
    let server = S3Server::start(SERVER);
    let store = store_of(&server);
    let (blocks, other) = (keys(1, 0, 2), key(2, 0, 0));
    assert_eq!(put(&store, &blocks, 2000, soon()), [Ok(()), Ok(())]);
    assert_eq!(put(&store, &[other], 2000, soon()), [Ok(())]);
    let victim = file(&server, &blocks[0]);
    let good = fs::read(&victim).unwrap();
    assert_eq!(good.len(), 2128);
    let expect = |value: &[u8], error: RemoteError| {
        fs::write(&victim, value).unwrap();
        let before = store.counters();
        assert_eq!(get(&store, &blocks, 2000, soon()), [Err(error), Ok(())]);
        let after = store.counters();
        assert_eq!((after.hits, after.misses()), (before.hits + 1, before.misses() + 1));
        assert_eq!(after.refused(), before.refused() + 1);
    };
    let mut flipped = good.clone();
    for bit in (0..good.len() * 8).step_by(61) {
        flipped[bit / 8] ^= 1 << (bit % 8);
        expect(&flipped, if bit / 8 < 128 { RemoteError::NoRecord } else { Mismatch::Checksum.into() });
        flipped[bit / 8] ^= 1 << (bit % 8);
    }
    expect(b"", RemoteError::NoRecord);
    expect(&good[..100], RemoteError::NoRecord);
    expect(&good[..1000], Mismatch::Length.into());
    expect(&[&good[..], b"x"].concat(), Mismatch::Length.into());
    expect(&vec![b'x'; 20_000_000], RemoteError::NoRecord);
    expect(&fs::read(file(&server, &blocks[1])).unwrap(), Mismatch::Identity.into());
    expect(&fs::read(file(&server, &other)).unwrap(), Mismatch::Identity.into());
    assert_eq!(put(&store, &blocks[..1], 2000, soon()), [Ok(())]);
    assert_eq!(get(&store, &blocks, 2000, soon()), [Ok(()), Ok(())]);
}

/// More blocks than one request may delete, and than one list shows, in every shard.
#[test]
fn many_are_deleted_and_swept() {
    let server = S3Server::start(SERVER);
    let store = store_of(&server);
    let many = keys(1, 0, 2100);
    assert_eq!(put(&store, &many, 10, soon()), vec![Ok(()); 2100]);
    let shards = fs::read_dir(server.files().join("kvtier-1")).unwrap().count();
    assert_eq!(shards, 16);
    assert_eq!(store.delete(&many, soon()).wait(), vec![Ok(()); 2100]);
    assert_eq!(store.exists(&many, soon()).wait(), vec![Ok(false); 2100]);

    // A list shows a thousand: all in one shard, by writing them there.
    let block = key(2, 5, 0);
    assert_eq!(put(&store, &[block], 10, soon()), [Ok(())]);
    let path = file(&server, &block);
    for i in 0..2500 {
        fs::copy(&path, path.with_file_name(format!("{i:032x}"))).unwrap();
    }
    let swept = store.sweep(block.namespace, block.epoch, soon()).wait();
    assert_eq!(swept, Ok(Swept { removed: 2501, writers: 0 }));
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
}

#[test]
fn who_is_not_known_is_denied() {
    let server = S3Server::start(SERVER);
    let block = [key(1, 0, 0)];
    let right = config(server.port());
    let S3Credentials::Given { key_id, secret, .. } = &right.credentials else { panic!("they are given") };
    for (key_id, secret) in [("kvtie", &**secret), (&**key_id, "sesame")] {
        let (key_id, secret) = (key_id.to_owned(), secret.to_owned());
        let credentials = S3Credentials::Given { key_id, secret, token: None };
        let store = S3Store::open(S3Config { credentials, ..right.clone() }).unwrap();
        assert_eq!(put(&store, &block, 100, soon()), [Err(RemoteError::Denied)]);
        assert_eq!(get(&store, &block, 100, soon()), [Err(RemoteError::Denied)]);
        assert_eq!(store.exists(&block, soon()).wait(), [Err(RemoteError::Denied)]);
        assert_eq!(store.delete(&block, soon()).wait(), [Err(RemoteError::Denied)]);
        let swept = store.sweep(block[0].namespace, block[0].epoch, soon()).wait();
        assert_eq!(swept, Err(RemoteError::Denied));
        assert_eq!(store.counters().denied, 5);
    }
    let store = S3Store::open(right).unwrap();
    assert_eq!(put(&store, &block, 100, soon()), [Ok(())]);
}

#[test]
fn an_address_that_is_none_is_an_error_and_nothing_secret_is_shown() {
    let good = config(9000);
    let endpoint = |endpoint: &str| S3Config { endpoint: Some(endpoint.to_owned()), ..good.clone() };
    for wrong in [
        endpoint(""),
        endpoint("127.0.0.1:9000"),
        endpoint("s3://127.0.0.1"),
        endpoint("https://"),
        endpoint("https://me:hidden@127.0.0.1"),
        endpoint("https://127.0.0.1/path"),
        S3Config { allow_http: false, ..good.clone() },
        S3Config { bucket: "a/b".to_owned(), ..good.clone() },
        S3Config { bucket: String::new(), ..good.clone() },
        S3Config { region: "eu central".to_owned(), ..good.clone() },
        S3Config { root_certificate: Some(b"-----BEGIN CERTIFICATE-----\nx".to_vec()), ..good.clone() },
    ] {
        let error = S3Store::open(wrong.clone()).err();
        assert!(
            matches!(&error, Some(OpenError::Address(said)) if !said.contains("hidden")),
            "{wrong:?}: {error:?}"
        );
    }
    let S3Credentials::Given { secret, .. } = &good.credentials else { panic!("they are given") };
    assert!(!format!("{good:?}").contains(secret.as_str()));
}

fn answer(status: &str, code: &str) -> String {
    let body = format!("<Error><Code>{code}</Code></Error>");
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

/// What passes is asked again, so often and no oftener; what does not pass is not.
#[test]
fn only_what_passes_is_asked_again() {
    let block = [key(1, 0, 0)];
    let fine =
        || "HTTP/1.1 200 OK\r\nETag: \"1\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned();
    let open = |script: &Script| S3Store::open(config(script.port())).unwrap();
    for (status, code) in [
        ("503 Slow Down", "SlowDown"),
        ("500 Internal Server Error", "InternalError"),
        ("429 Too Many Requests", ""),
        ("400 Bad Request", "RequestTimeout"),
    ] {
        let script = Script::start(vec![answer(status, code), answer(status, code), fine()]);
        assert_eq!(put(&open(&script), &block, 100, soon()), [Ok(())], "{status}");
        assert_eq!(script.requests(), 3, "{status}");
        let script = Script::start(vec![answer(status, code)]);
        assert_eq!(put(&open(&script), &block, 100, soon()), [Err(RemoteError::Server)], "{status}");
        assert_eq!(script.requests(), 5, "{status}");
    }
    for (status, code, why) in [
        ("507 Insufficient Storage", "XMinioStorageFull", RemoteError::NoSpace),
        ("403 Forbidden", "QuotaExceeded", RemoteError::NoSpace),
        ("403 Forbidden", "AccessDenied", RemoteError::Denied),
        ("400 Bad Request", "ExpiredToken", RemoteError::Denied),
        ("404 Not Found", "NoSuchBucket", RemoteError::Server),
        ("301 Moved Permanently", "PermanentRedirect", RemoteError::Server),
    ] {
        let script = Script::start(vec![answer(status, code)]);
        assert_eq!(put(&open(&script), &block, 100, soon()), [Err(why)], "{status}");
        assert_eq!(script.requests(), 1, "{status}");
    }
    // A pause that would outlast the deadline is not waited for: the answer is the server's, and not that it is late.
    let script = Script::start(vec![answer("503 Slow Down", "SlowDown")]);
    let store = open(&script);
    let mut results = Vec::new();
    while results.len() < 200 {
        results.extend(put(&store, &block, 100, within(30)));
    }
    let by_server = results.iter().filter(|result| **result == Err(RemoteError::Server)).count();
    assert!(by_server > 0, "{results:?}");
    assert!(script.requests() > 200);
}

/// A server that sends something else, or more, than it was asked for.
#[test]
fn lies_are_counted_misses() {
    let block = [key(1, 0, 0)];
    let body = "x".repeat(100_000);
    let head = "Last-Modified: Sat, 21 Nov 2026 00:00:00 GMT\r\nETag: \"1\"\r\nConnection: close";
    for lie in [
        // The range that was asked for, and more bytes than that.
        format!(
            "HTTP/1.1 206 Partial Content\r\n{head}\r\nContent-Range: bytes 0-228/100000\r\nContent-Length: 100000\r\n\r\n{body}"
        ),
        // Not what was asked for.
        format!("HTTP/1.1 200 OK\r\n{head}\r\nContent-Length: 100000\r\n\r\n{body}"),
        format!(
            "HTTP/1.1 206 Partial Content\r\n{head}\r\nContent-Range: bytes 5-228/100000\r\nContent-Length: 100\r\n\r\n{body}"
        ),
        // Less than it announces.
        format!(
            "HTTP/1.1 206 Partial Content\r\n{head}\r\nContent-Range: bytes 0-228/100000\r\nContent-Length: 200000\r\n\r\nxx"
        ),
        "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
        "hello\r\n\r\n".to_owned(),
    ] {
        let script = Script::start(vec![lie.clone()]);
        let store = S3Store::open(config(script.port())).unwrap();
        let said = get(&store, &block, 100, soon());
        assert!(said[0].is_err(), "{said:?} to {:.100}", lie);
        assert_eq!((store.counters().hits, store.counters().misses()), (0, 1));
        assert_eq!(store.in_flight(), InFlight::default());
    }
}

/// Cancelled uploads are ended, and a sweep knows of them while they may still write.
#[test]
fn an_upload_that_is_cancelled_is_taken_back() {
    let server = S3Server::start(SERVER);
    let store = store_of(&server);
    let block = [key(1, 0, 0)];
    let payload = vec![7; 100 << 20];
    let meta = kv_core::job::RecordMeta {
        identity: block[0].identity(),
        parent: kv_core::key::BlockKey::ROOT,
        depth: 0,
    };
    let puts = [kv_tiers::remote::Put { meta, payload: &payload, elements: None }];
    let mut seen = 0;
    while seen < 3 {
        let call = store.put(&puts, soon());
        while server.unfinished_parts() == 0 && !call.is_done() {
            std::thread::yield_now();
        }
        seen += usize::from(!call.is_done());
        let sweep = store.sweep(block[0].namespace, block[0].epoch, soon());
        let cancelled = !call.is_done();
        drop(call);
        let swept = sweep.wait().unwrap();
        assert!(!cancelled || swept.writers > 0, "{swept:?}");
        ends(&store);
        // The server has forgotten the upload. Parts that arrived in that moment it may keep, as Amazon's may.
        let entries = fs::read_dir(server.files().parent().unwrap()).unwrap();
        let uploads = entries.filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with(".upload-")
        });
        assert_eq!(uploads.count(), 0);
    }
    ends(&store);
}
