//! What was learnt survives; what is damaged is refused.

use super::*;
use kv_core::cost::RestoreError;

const RANGE: TokenRange = TokenRange::new(0, 20_000);

fn learnt() -> (CostModel, Nanos) {
    let mut model = model(&["remote", "nvme"]);
    let now = teach(&mut model, &["remote", "nvme"], 0.005, 1e-10);
    (model, now)
}

#[test]
fn the_restored_model_decides_alike() {
    let (mut model, now) = learnt();
    let bytes = model.snapshot(now);
    assert!(bytes.len() < 16 << 10, "{} bytes", bytes.len());
    let mut other = super::model(&["nvme", "remote"]);
    other.restore(now, &bytes).expect("an intact snapshot");
    assert_eq!(other.balance(), model.balance());
    let expected = model.decide(now, &ask(RANGE), &[offer(&model, "remote", RANGE)], 1).why;
    let found = other.decide(now, &ask(RANGE), &[offer(&other, "remote", RANGE)], 1).why;
    assert_eq!(found.decided, expected.decided);
    let cost = |why: kv_core::cost::Explanation| why.source.expect("a source").cost;
    assert!((cost(found) / cost(expected) - 1.0).abs() < 0.02, "found by name, not by position");
}

#[test]
fn loads_under_way_count_as_lost() {
    let (mut model, now) = learnt();
    let room = model.balance().room();
    let decision = model.decide(now, &ask(RANGE), &[offer(&model, "remote", RANGE)], 1);
    let Some(load) = decision.load else { panic!("it is fast") };
    let mut other = super::model(&["remote", "nvme"]);
    other.restore(now, &model.snapshot(now)).expect("an intact snapshot");
    assert_eq!(other.balance().room(), room - load.deadline);
    assert_eq!(other.balance().reserved, Nanos(0));
    drop(load.ticket);
}

#[test]
fn sources_come_and_go() {
    let (model, now) = learnt();
    let mut other = super::model(&["s3", "remote"]);
    other.restore(now, &model.snapshot(now)).expect("an intact snapshot");
    let offers = [offer(&other, "s3", RANGE)];
    assert_eq!(other.decide(now, &ask(RANGE), &offers, 1).why.decided, kv_core::cost::Decided::Unmeasured);
}

#[test]
fn damage_is_refused_and_changes_nothing() {
    let (model, now) = learnt();
    let good = model.snapshot(now);
    let mut target = super::model(&["remote"]);
    let before = target.snapshot(now);
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        let error = target.restore(now, &bad).expect_err("a flipped bit");
        assert_eq!(
            error,
            if at < 7 { RestoreError::NotASnapshot } else { RestoreError::Damaged },
            "bit of byte {at}"
        );
        assert!(target.restore(now, &good[..at]).is_err(), "cut at {at}");
    }
    assert_eq!(target.snapshot(now), before);
}

#[test]
fn other_versions_and_models_are_told_apart() {
    let (model, now) = learnt();
    let sealed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = model.snapshot(now);
        bytes.truncate(bytes.len() - 4);
        change(&mut bytes);
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes) as u32;
        bytes.extend(crc.to_le_bytes());
        bytes
    };
    let mut target = super::model(&["remote"]);
    assert_eq!(target.restore(now, &sealed(&|b| b[7] = 2)), Err(RestoreError::OtherVersion { found: 2 }));
    assert_eq!(target.restore(now, &sealed(&|b| b[8] ^= 1)), Err(RestoreError::OtherModel));
    // Whole, but with too little or too much inside.
    assert_eq!(target.restore(now, &sealed(&|b| b.truncate(100))), Err(RestoreError::Damaged));
    assert_eq!(target.restore(now, &sealed(&|b| b.push(0))), Err(RestoreError::Damaged));
    assert_eq!(target.restore(now, &sealed(&|b| b[24..32].fill(0xff))), Err(RestoreError::Damaged));
}
