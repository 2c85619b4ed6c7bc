//! The Redis store against real servers: one, one with a password, one with TLS, one that is full, and a cluster.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;
use std::time::Duration;

use kv_core::Mismatch;
use kv_core::ids::JobId;
use kv_core::job::RecordMeta;
use kv_core::key::BlockKey;
use kv_tiers::codec::Elements;
use kv_tiers::remote::{
    InFlight, Limits, OpenError, Put, RedisConfig, RedisStore, RemoteError, RemoteKey, RemoteStore, Servers,
    Swept, Want,
};
use kvtier_benches::SplitMix64;
use kvtier_tests::redis_server::RedisServer;
use kvtier_tests::remote::{get, key, put, soon, string_name as name, within};

fn config(servers: Servers) -> RedisConfig {
    let ttl = Duration::from_secs(1000);
    RedisConfig { servers, ttl, root_certificate: None, limits: Limits::default() }
}

fn open(url: String) -> RedisStore {
    RedisStore::open(config(Servers::One(url))).unwrap()
}

fn store_of(server: &RedisServer) -> RedisStore {
    open(format!("redis://127.0.0.1:{}", server.port()))
}

fn keys(namespace: u8, epoch: u64, n: u64) -> Vec<RemoteKey> {
    (0..n).map(|i| key(namespace, epoch, i)).collect()
}

/// Everything that a store does, against any kind of server.
fn does_everything(store: &RedisStore) {
    let blocks = keys(1, 0, 300);
    assert_eq!(store.exists(&blocks, soon()).wait(), vec![Ok(false); 300]);
    assert_eq!(get(store, &blocks, 1000, soon()), vec![Err(RemoteError::Absent); 300]);
    assert_eq!(put(store, &blocks, 1000, soon()), vec![Ok(()); 300]);
    assert_eq!(store.exists(&blocks, soon()).wait(), vec![Ok(true); 300]);
    assert_eq!(get(store, &blocks, 1000, soon()), vec![Ok(()); 300]);
    // Another length, which is longer or shorter, is another record.
    assert_eq!(get(store, &blocks[..1], 999, soon()), [Err(Mismatch::Length.into())]);
    assert_eq!(get(store, &blocks[..1], 1001, soon()), [Err(Mismatch::Length.into())]);
    // Several chunks, and one that ends with its chunk.
    for len in [(4 << 20) - 128, (4 << 20) - 127, 9_000_001] {
        let large = keys(3, 0, 3);
        assert_eq!(put(store, &large, len, soon()), vec![Ok(()); 3]);
        assert_eq!(get(store, &large, len, soon()), vec![Ok(()); 3]);
        assert_eq!(store.delete(&large, soon()).wait(), vec![Ok(()); 3]);
        assert_eq!(get(store, &large, len, soon()), vec![Err(RemoteError::Absent); 3]);
    }
    assert_eq!(store.delete(&blocks[..10], soon()).wait(), vec![Ok(()); 10]);
    assert_eq!(store.delete(&blocks[..10], soon()).wait(), vec![Ok(()); 10]);

    let (older, newer, others) = (keys(1, 1, 20), keys(1, 2, 20), keys(2, 0, 20));
    for blocks in [&older, &newer, &others] {
        assert_eq!(put(store, blocks, 1000, soon()), vec![Ok(()); 20]);
    }
    let swept = store.sweep(blocks[0].namespace, older[0].epoch, soon()).wait();
    assert_eq!(swept, Ok(Swept { removed: 290 + 20, writers: 0 }));
    assert_eq!(get(store, &blocks, 1000, soon()), vec![Err(RemoteError::Absent); 300]);
    assert_eq!(get(store, &older, 1000, soon()), vec![Err(RemoteError::Absent); 20]);
    assert_eq!(get(store, &newer, 1000, soon()), vec![Ok(()); 20]);
    assert_eq!(get(store, &others, 1000, soon()), vec![Ok(()); 20]);

    let counters = store.counters();
    assert_eq!((counters.hits, counters.puts), (300 + 9 + 40, 300 + 9 + 60));
    assert_eq!((counters.wrong_length, counters.misses()), (2, 300 + 300 + 2 + 9 + 320));
    assert_eq!(store.in_flight(), InFlight::default());
}

#[test]
fn one_server_does_everything() {
    let server = RedisServer::start(&[]);
    does_everything(&store_of(&server));
}

#[test]
fn a_cluster_does_everything() {
    let servers: Vec<_> = (0..3).map(|_| RedisServer::start(&["--cluster-enabled", "yes"])).collect();
    for (i, slots) in [("0", "5460"), ("5461", "10922"), ("10923", "16383")].iter().enumerate() {
        let words = [&b"CLUSTER"[..], b"ADDSLOTSRANGE", slots.0.as_bytes(), slots.1.as_bytes()];
        assert_eq!(servers[i].command(&words), b"+OK\r\n");
        let epoch = (i + 1).to_string();
        assert_eq!(servers[i].command(&[b"CLUSTER", b"SET-CONFIG-EPOCH", epoch.as_bytes()]), b"+OK\r\n");
        let port = servers[0].port().to_string();
        assert_eq!(servers[i].command(&[b"CLUSTER", b"MEET", b"127.0.0.1", port.as_bytes()]), b"+OK\r\n");
    }
    let agrees = |server: &RedisServer| {
        let info = String::from_utf8(server.command(&[b"CLUSTER", b"INFO"])).unwrap();
        info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
    };
    while !servers.iter().all(agrees) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let urls = servers[..2].iter().map(|server| format!("redis://127.0.0.1:{}", server.port())).collect();
    does_everything(&RedisStore::open(config(Servers::Cluster(urls))).unwrap());
    let left: Vec<_> = servers.iter().map(RedisServer::strings).collect();
    assert_eq!(left.iter().sum::<u64>(), 40);
    assert!(left.iter().all(|&n| n > 0), "{left:?}");
}

/// What somebody else may write under our names.
#[test]
fn damaged_swapped_and_foreign_values_are_counted_misses() {
    let server = RedisServer::start(&[]);
    let store = store_of(&server);
    let (blocks, other) = (keys(1, 0, 2), key(2, 0, 0));
    assert_eq!(put(&store, &blocks, 2000, soon()), [Ok(()), Ok(())]);
    assert_eq!(put(&store, &[other], 2000, soon()), [Ok(())]);
    let good = server.string(&name(&blocks[0], 0));
    assert_eq!(good.len(), 2128);
    let victim = name(&blocks[0], 0);
    let expect = |value: &[u8], error: RemoteError| {
        assert_eq!(server.command(&[b"SET", victim.as_bytes(), value]), b"+OK\r\n");
        let before = store.counters();
        // The neighbour in the same pipeline is not hurt.
        assert_eq!(get(&store, &blocks, 2000, soon()), [Err(error), Ok(())]);
        let after = store.counters();
        assert_eq!((after.hits, after.misses()), (before.hits + 1, before.misses() + 1));
    };
    let mut flipped = good.clone();
    for bit in (0..good.len() * 8).step_by(61) {
        flipped[bit / 8] ^= 1 << (bit % 8);
        expect(&flipped, if bit / 8 < 128 { RemoteError::NoRecord } else { Mismatch::Checksum.into() });
        flipped[bit / 8] ^= 1 << (bit % 8);
    }
    expect(b"", RemoteError::Absent);
    expect(&good[..100], RemoteError::NoRecord);
    expect(&good[..1000], Mismatch::Length.into());
    expect(&[&good[..], b"x"].concat(), Mismatch::Length.into());
    expect(&vec![b'x'; 20_000_000], RemoteError::NoRecord);
    expect(&server.string(&name(&blocks[1], 0)), Mismatch::Identity.into());
    expect(&server.string(&name(&other, 0)), Mismatch::Identity.into());
    assert_eq!(server.command(&[b"DEL", victim.as_bytes()]), b":1\r\n");
    assert_eq!(server.command(&[b"LPUSH", victim.as_bytes(), b"x"]), b":1\r\n");
    assert_eq!(get(&store, &blocks, 2000, soon()), [Err(RemoteError::Server), Ok(())]);
    assert_eq!(put(&store, &blocks[..1], 2000, soon()), [Ok(())]);
    assert_eq!(get(&store, &blocks, 2000, soon()), [Ok(()), Ok(())]);
    // A chunk that was evicted, or belongs to another writer's record.
    assert_eq!(put(&store, &blocks, 9_000_000, soon()), [Ok(()), Ok(())]);
    let chunk = server.string(&name(&blocks[1], 1));
    assert_eq!(server.command(&[b"SET", name(&blocks[0], 1).as_bytes(), &chunk]), b"+OK\r\n");
    assert_eq!(get(&store, &blocks, 9_000_000, soon()), [Err(Mismatch::Checksum.into()), Ok(())]);
    server.command(&[b"DEL", name(&blocks[0], 1).as_bytes()]);
    assert_eq!(get(&store, &blocks, 9_000_000, soon()), [Err(RemoteError::Absent), Ok(())]);
}

#[test]
fn blocks_expire() {
    let server = RedisServer::start(&[]);
    let store = store_of(&server);
    let block = key(1, 0, 0);
    put(&store, &[block], 5_000_000, soon());
    for chunk in 0..2 {
        let ttl = String::from_utf8(server.command(&[b"TTL", name(&block, chunk).as_bytes()])).unwrap();
        let seconds: u64 = ttl.trim_start_matches(':').trim_end().parse().unwrap();
        assert!((1..=1000).contains(&seconds), "{seconds}");
    }
}

#[test]
fn a_password_is_asked_for_and_a_full_server_is_a_counted_miss() {
    let server = RedisServer::start(&["--requirepass", "open sesame", "--maxmemory", "6mb"]);
    let block = [key(1, 0, 0)];
    for wrong in ["", "user:open%20sesame@", ":sesame@"] {
        let store = open(format!("redis://{wrong}127.0.0.1:{}", server.port()));
        assert_eq!(put(&store, &block, 100, soon()), [Err(RemoteError::Denied)]);
        assert_eq!(store.counters().denied, 1);
    }
    let store = open(format!("redis://:open%20sesame@127.0.0.1:{}", server.port()));
    assert_eq!(put(&store, &block, 100, soon()), [Ok(())]);
    let results = put(&store, &keys(2, 0, 40), 1 << 20, soon());
    assert!(results.contains(&Err(RemoteError::NoSpace)), "{results:?}");
    assert!(store.counters().no_space > 0);
    assert_eq!(get(&store, &block, 100, soon()), [Ok(())]);
}

#[test]
fn tls_is_spoken_and_certificates_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str| {
        let (key, cert) = (dir.path().join(format!("{name}.key")), dir.path().join(format!("{name}.pem")));
        let made = Command::new("openssl")
            .args(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=kvtier"
                    .split(' '),
            )
            .args(["-addext", "subjectAltName=IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&cert)
            .output();
        let made = made.expect("install the package openssl");
        assert!(made.status.success(), "{made:?}");
        (key.to_str().unwrap().to_owned(), cert.to_str().unwrap().to_owned())
    };
    let ((key_file, cert), (_, other)) = (make("server"), make("other"));
    let server = RedisServer::start_tls(&[
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key_file,
        "--tls-ca-cert-file",
        &cert,
        "--tls-auth-clients",
        "no",
    ]);
    let open = |cert: &str| {
        let mut config = config(Servers::One(format!("rediss://127.0.0.1:{}", server.port())));
        config.root_certificate = Some(std::fs::read(cert).unwrap());
        RedisStore::open(config).unwrap()
    };
    let store = open(&cert);
    let blocks = keys(1, 0, 10);
    assert_eq!(put(&store, &blocks, 100_000, soon()), vec![Ok(()); 10]);
    assert_eq!(get(&store, &blocks, 100_000, soon()), vec![Ok(()); 10]);
    assert_eq!(get(&open(&other), &blocks[..1], 100_000, soon()), [Err(RemoteError::Unreachable)]);
}

#[test]
fn an_address_that_is_none_is_an_error_and_shows_no_password() {
    for url in ["", "127.0.0.1:6379", "http://127.0.0.1", "redis://:secret@"] {
        let error = RedisStore::open(config(Servers::One(url.to_owned()))).err();
        assert!(
            matches!(&error, Some(OpenError::Address(said)) if !said.contains("secret")),
            "{url}: {error:?}"
        );
    }
}

/// A block of three chunks that takes two when it is encoded, over and under another one's.
#[test]
fn encoded_blocks_take_fewer_chunks_and_mind_no_others() {
    let server = RedisServer::start(&[]);
    let store = store_of(&server);
    let key = key(1, 0, 0);
    let mut rng = SplitMix64::new(1);
    // Two exponents, everything else random.
    let payload: Vec<u8> =
        (0..4_500_000).flat_map(|_| (rng.next_u64() as u16 & 0x80FF | 0x3F00).to_le_bytes()).collect();
    let meta = RecordMeta { identity: key.identity(), parent: BlockKey::ROOT, depth: 0 };
    let put = |elements| {
        assert_eq!(store.put(&[Put { meta, payload: &payload, elements }], soon()).wait(), [Ok(())]);
    };
    let get = || {
        let mut into = vec![0xEE; payload.len()];
        let want = Want { key, payload_bytes: payload.len() };
        let result = store.get(&[want], soon()).wait_into(&mut [(JobId(1), &mut into)]).pop().unwrap();
        assert!(result.is_err() || into == payload, "wrong bytes");
        result.map(|_| ())
    };
    let is_there = |chunk| server.command(&[b"EXISTS", name(&key, chunk).as_bytes()]) == b":1\r\n";
    let chunks = || (0..4).filter(|chunk| is_there(*chunk)).count();
    put(Some(Elements::Bf16));
    assert_eq!((chunks(), get()), (2, Ok(())));
    // Under what lay there before, of which one chunk is left.
    put(None);
    assert_eq!((chunks(), get()), (3, Ok(())));
    put(Some(Elements::Bf16));
    assert_eq!((chunks(), get()), (3, Ok(())));
    server.command(&[b"DEL", name(&key, 1).as_bytes()]);
    assert_eq!(get(), Err(RemoteError::Absent));
    // A chunk of another encoding.
    server.command(&[b"COPY", name(&key, 2).as_bytes(), name(&key, 1).as_bytes()]);
    assert_eq!(get(), Err(Mismatch::Length.into()));
    let counters = store.counters();
    assert_eq!((counters.hits, counters.decoded.payload_bytes), (3, 2 * payload.len() as u64));
}

/// A purge of a hundred thousand blocks among as many of somebody else's, with deadlines that cut it off again and
/// again: what is done stays done, and nothing of the others is touched.
#[test]
fn a_large_sweep_goes_on_where_it_was_cut_off() {
    const BLOCKS: u64 = 100_000;
    let server = RedisServer::start(&[]);
    let store = store_of(&server);
    let (mine, others) = (keys(1, 3, BLOCKS), keys(2, 0, BLOCKS));
    let strings = mine.iter().flat_map(|key| [(name(key, 0), &b"a"[..]), (name(key, 1), b"b")]);
    server.set_all(strings.chain(others.iter().map(|key| (name(key, 0), &b"c"[..]))));
    assert_eq!(server.strings(), 3 * BLOCKS);
    let mut left = vec![server.strings()];
    let (mut deadline, mut removed) = (20, Err(RemoteError::Late));
    while removed.is_err() {
        removed = store.sweep(mine[0].namespace, mine[0].epoch, within(deadline)).wait();
        assert!(matches!(removed, Ok(_) | Err(RemoteError::Late)), "{removed:?}");
        // A sweep that nobody waits for any more ends with its connection.
        while store.in_flight() != InFlight::default() {
            std::thread::sleep(Duration::from_millis(1));
        }
        left.push(server.strings());
        deadline += deadline / 2;
    }
    println!("strings left after each sweep: {left:?}");
    assert!(left.len() > 2 && left[1] < left[0], "{left:?}");
    assert!(left.is_sorted_by(|before, after| before >= after), "{left:?}");
    assert_eq!(left.last(), Some(&BLOCKS));
    let swept = store.sweep(mine[0].namespace, mine[0].epoch, soon()).wait();
    assert_eq!(swept, Ok(Swept { removed: 0, writers: 0 }));
}

/// One call. Blocks of many chunks go whole, those of one leave no other's behind.
#[test]
fn a_hundred_thousand_blocks_are_deleted() {
    const BLOCKS: u64 = 100_000;
    let server = RedisServer::start(&[]);
    let store = store_of(&server);
    let (mine, others) = (keys(1, 0, BLOCKS), keys(1, 0, BLOCKS + 1000).split_off(BLOCKS as usize));
    let small = mine.iter().chain(&others).map(|key| (name(key, 0), &b"a"[..]));
    let large = mine[..3].iter().flat_map(|key| (1..=256).map(|chunk| (name(key, chunk), &b"b"[..])));
    server.set_all(small.chain(large));
    assert_eq!(server.strings(), BLOCKS + 1000 + 3 * 256);
    assert!(store.delete(&mine, soon()).wait().iter().all(Result::is_ok));
    assert_eq!(server.strings(), 1000);
    assert_eq!(store.counters().deletes, BLOCKS);
}
