//! A Redis cluster that changes while it is used: slots move, and a primary dies and is replaced.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kv_tiers::remote::{Limits, RedisConfig, RedisStore, RemoteError, RemoteStore, Servers};
use kvtier_benches::SplitMix64;
use kvtier_tests::redis_server::RedisServer;
use kvtier_tests::remote::{get, key, put, soon, within};

const LEN: usize = 20_000;

/// `redis-cli --cluster`, of the package redis-tools. What it said, and whether it was done.
fn manage(arguments: &[&str]) -> (String, bool) {
    let out = Command::new("redis-cli").arg("--cluster").args(arguments).output().expect("redis-cli");
    (String::from_utf8_lossy(&out.stdout).into_owned(), out.status.success())
}

fn address(server: &RedisServer) -> String {
    format!("127.0.0.1:{}", server.port())
}

fn id(server: &RedisServer) -> String {
    let answer = String::from_utf8(server.command(&[b"CLUSTER", b"MYID"])).unwrap();
    answer.lines().nth(1).unwrap().to_owned()
}

/// What came of blocks that were used meanwhile.
#[derive(Debug, Default)]
struct Outcomes {
    served: usize,
    missed: usize,
    reasons: std::collections::BTreeSet<String>,
}

/// Reads and writes any of the blocks until `change` is done. Wrong bytes end the test.
fn used_meanwhile(store: &RedisStore, change: impl FnOnce()) -> Outcomes {
    let done = AtomicBool::new(false);
    /// Also when the change panics.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        let user = scope.spawn(|| {
            let (mut rng, mut outcomes) = (SplitMix64::new(1), Outcomes::default());
            while !done.load(Ordering::Relaxed) {
                let first = rng.below(380);
                let keys: Vec<_> = (first..first + 20).map(|n| key(1, 0, n)).collect();
                let results = match rng.below(3) {
                    0 => put(store, &keys, LEN, within(2000)),
                    _ => get(store, &keys, LEN, within(2000)),
                };
                for result in results {
                    match result {
                        Ok(()) => outcomes.served += 1,
                        Err(why) => {
                            outcomes.missed += 1;
                            outcomes.reasons.insert(why.to_string());
                        }
                    }
                }
            }
            outcomes
        });
        let end = Done(&done);
        change();
        drop(end);
        user.join().unwrap()
    })
}

#[test]
fn slots_move_and_a_primary_dies_while_blocks_are_used() {
    let more =
        ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0"];
    let mut servers: Vec<_> = (0..6).map(|_| RedisServer::start(&more)).collect();
    let addresses: Vec<_> = servers.iter().map(address).collect();
    let create: Vec<_> = ["create"]
        .into_iter()
        .chain(addresses.iter().map(String::as_str))
        .chain(["--cluster-replicas", "1", "--cluster-yes"])
        .collect();
    let (said, created) = manage(&create);
    assert!(created, "{said}");
    let ready = |server: &RedisServer| {
        let info = String::from_utf8(server.command(&[b"CLUSTER", b"INFO"])).unwrap();
        // A replica that has nothing yet would not take over.
        let replication = String::from_utf8(server.command(&[b"INFO", b"replication"])).unwrap();
        info.contains("cluster_state:ok") && !replication.contains("master_link_status:down")
    };
    while !servers.iter().all(ready) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let urls = addresses.iter().map(|address| format!("redis://{address}")).collect();
    let store = RedisStore::open(RedisConfig {
        servers: Servers::Cluster(urls),
        ttl: Duration::from_secs(1000),
        root_certificate: None,
        limits: Limits::default(),
    })
    .unwrap();
    let blocks: Vec<_> = (0..400).map(|n| key(1, 0, n)).collect();
    let others: Vec<_> = (0..400).map(|n| key(2, 0, n)).collect();
    for blocks in [&blocks, &others] {
        assert_eq!(put(&store, blocks, LEN, soon()), vec![Ok(()); 400]);
    }

    // Some of the first primary's slots, with their blocks, to the second and back.
    let reshard = |from: &RedisServer, to: &RedisServer| {
        let ids = [id(from), id(to)];
        let [from, to] = &ids;
        let how = ["--cluster-slots", "600", "--cluster-yes", "--cluster-pipeline", "50"];
        manage(
            &[&["reshard", &*addresses[1], "--cluster-from", from, "--cluster-to", to][..], &how].concat(),
        );
    };
    let moved = used_meanwhile(&store, || {
        reshard(&servers[0], &servers[1]);
        reshard(&servers[1], &servers[0]);
    });
    println!("slots moved: {moved:?}");
    assert!(moved.served > 100 && moved.missed < moved.served / 10, "{moved:?}");
    // Nothing was lost.
    assert_eq!(get(&store, &blocks, LEN, soon()), vec![Ok(()); 400]);
    assert_eq!(get(&store, &others, LEN, soon()), vec![Ok(()); 400]);

    // Its replica takes over. Until then its blocks are misses, and a sweep cannot claim to be done.
    let (namespace, epoch) = (others[0].namespace, others[0].epoch);
    let mut claims = Vec::new();
    let died = used_meanwhile(&store, || {
        servers[0].kill();
        claims.push(store.sweep(namespace, epoch, within(100)).wait());
        let other = || put(&store, &[key(3, 0, 0)], LEN, within(500));
        // First they find out that it is dead, then who replaces it.
        while ready(&servers[1]) {
            std::thread::sleep(Duration::from_millis(20));
        }
        while !ready(&servers[1]) || other() != [Ok(())] {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    println!("a primary died: {died:?}, the sweep said {claims:?}");
    assert!(died.served > 0 && died.missed > 0, "{died:?}");
    while put(&store, &blocks, LEN, within(5000)) != vec![Ok(()); 400] {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(get(&store, &blocks, LEN, soon()), vec![Ok(()); 400]);
    if claims[0].is_ok() {
        assert_eq!(get(&store, &others, LEN, soon()), vec![Err(RemoteError::Absent); 400], "a false claim");
    }
    let swept = store.sweep(namespace, epoch, soon()).wait().unwrap();
    assert_eq!(swept.writers, 0);
    assert_eq!(get(&store, &others, LEN, soon()), vec![Err(RemoteError::Absent); 400]);
    assert_eq!(get(&store, &blocks, LEN, soon()), vec![Ok(()); 400]);
}
