//! Who serves the prompts: kvtier's engine, and a runtime that loads whatever a store says to have.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_core::cost::priors;
use kv_core::key::{BlockKey, Fingerprint, NamespaceId};
use kv_core::policy::PolicyKind;
use kv_core::units::Epoch;
use kv_cuda::DeviceChoice;
use kv_tiers::engine::{Acquire, Engine, EngineConfig, RemoteConfig, SlowConfig};
use kv_tiers::remote::RemoteStore;

use super::prompts::{BLOCK_BYTES, BLOCK_TOKENS, Prompt, Prompts};

/// Who always loads stops after this time: a hung server would keep it for an hour.
const PATIENCE: Duration = Duration::from_secs(20);

/// What became of the requests.
#[derive(Debug, Default)]
pub struct Served {
    /// Until the first token, of each request that was served.
    pub waits: Vec<Duration>,
    /// Blocks that came from the store and were used.
    pub hits: u64,
    /// Blocks that were refused by verification.
    pub refused: u64,
}

impl Served {
    /// Of all.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.waits.iter().sum()
    }
}

/// Computes what is missing.
fn compute(prompt: &Prompt, ready: u32) {
    std::thread::sleep(prompt.pass(ready).1);
}

/// kvtier, from a cold start. `then` is called when `before` requests were served.
///
/// # Panics
/// When a wrong byte is accepted, or the ledger is overdrawn.
pub fn kvtier(
    store: Arc<dyn RemoteStore>,
    prompts: &Prompts,
    before: usize,
    then: &mut dyn FnMut(),
) -> Served {
    let remote = RemoteConfig {
        name: "server".to_owned(),
        store: store.clone(),
        link: priors::NETWORK,
        writes: false,
        elements: None,
    };
    let fingerprint = Fingerprint([2; 16]);
    let opened = Engine::open(&EngineConfig {
        block_bytes: BLOCK_BYTES,
        hbm: None,
        device: DeviceChoice::Host,
        // Room for the prompt and a probe beside it: the next prompt finds nothing here.
        host_slots: prompts.longest() as u32 * 5 / 4,
        nvme: None,
        policy: PolicyKind::Lru,
        nvme_budget: None,
        max_write_backs: 1,
        slow: Some(SlowConfig {
            tokens_per_block: BLOCK_TOKENS,
            fingerprint,
            curve: priors::UNKNOWN,
            nvme: None,
            remotes: vec![remote],
            learnt: None,
        }),
    });
    let engine = opened.unwrap().engine;
    let namespace = engine.namespace(NamespaceId([1; 16]), fingerprint, Epoch(0)).unwrap();
    let mut served = Served::default();
    for (n, prompt) in prompts.iter().enumerate() {
        if n == before {
            then();
        }
        let keys: Vec<BlockKey> = prompt.keys.iter().map(|key| key.key).collect();
        let begun = Instant::now();
        let lease = engine.acquire(&Acquire { namespace, keys: &keys, patience: None, notify: None });
        let mut lease = lease.unwrap();
        let answer = lease.wait();
        let mut wait = begun.elapsed();
        if std::env::var_os("KVTIER_WHY").is_some() {
            let why = lease.why().and_then(|why| why.remote);
            let decided = why.map_or("-", |why| why.decided.name());
            let load = why.and_then(|why| why.source).map(|s| (s.median, s.deadline));
            eprintln!("{n}: {} of {} blocks, {wait:?}, {decided}, {load:?}", answer.ready, keys.len());
        }
        (0..answer.ready).for_each(|i| prompt.check(i as usize, lease.host_block(i).unwrap()));
        let begun = Instant::now();
        compute(prompt, answer.ready);
        let pass = begun.elapsed();
        wait += pass;
        for i in answer.ready..answer.granted {
            // As if it had been computed.
            lease.host_block_mut(i).unwrap().copy_from_slice(prompt.bytes(i as usize));
        }
        lease.commit(answer.granted).unwrap();
        engine.observed_prefill(prompt.pass(answer.ready).0, pass);
        let balance = engine.balance().unwrap();
        assert!(balance.actual + balance.reserved <= balance.limit(), "{balance:?}");
        served.waits.push(wait);
        served.hits += u64::from(answer.remote_hits);
    }
    served.refused = store.counters().refused();
    engine.audit().unwrap();
    drop(engine);
    served
}

/// Loads whatever the store says to have, for as long as SGLang waits: 1 s and 0.25 s for each 1,024 tokens.
///
/// # Panics
/// When a wrong byte is accepted.
pub fn always(store: &dyn RemoteStore, prompts: &Prompts, before: usize, then: &mut dyn FnMut()) -> Served {
    let mut served = Served::default();
    let started = Instant::now();
    for (n, prompt) in prompts.iter().enumerate() {
        if n == before {
            then();
        }
        if started.elapsed() > PATIENCE {
            break;
        }
        let begun = Instant::now();
        let tokens = prompt.keys.len() as u32 * BLOCK_TOKENS;
        let deadline = begun + Duration::from_secs(1) + Duration::from_millis(250) * tokens / 1024;
        let there = store.exists(&prompt.keys, deadline).wait();
        let there = there.iter().take_while(|there| matches!(there, Ok(true))).count();
        let mut room = prompt.room();
        let mut into: Vec<_> =
            Prompt::jobs().zip(room.iter_mut().map(Vec::as_mut_slice)).take(there).collect();
        let got = store.get(&prompt.wants()[..there], deadline).wait_into(&mut into);
        let ready = got.iter().take_while(|block| block.is_ok()).count();
        let mut wait = begun.elapsed();
        (0..ready).for_each(|i| prompt.check(i, &room[i]));
        let begun = Instant::now();
        compute(prompt, ready as u32);
        wait += begun.elapsed();
        served.waits.push(wait);
        served.hits += ready as u64;
    }
    served.refused = store.counters().refused();
    served
}
