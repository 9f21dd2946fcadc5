//! Hashes and alarms, as etcd 3.5.1 was seen to give and keep them.

use quorate_store::{MemState, StateEngine};
use quorate_types::kv::{
    Command, Compact, DeleteRange, KvError, Op, Outcome, Put, Query, Txn, command, op, outcome,
    query,
};
use quorate_types::kv_maintenance::{
    Alarm, AlarmKind, ChangeAlarm, ChangeDowngrade, Conditions, ConditionsOutcome, HashAll, HashKv,
};

use crate::host::{Host, error};

type Kv = Host<MemState>;

fn apply(kv: &mut Kv, body: command::Body) -> Outcome {
    kv.apply(&Command { body: Some(body), ..Command::default() })
}

fn put(key: &str, value: &str) -> Put {
    let (key, value) = (key.to_owned().into(), value.to_owned().into());
    Put { key, value, ..Put::default() }
}

fn delete(key: &str, range_end: &'static str) -> DeleteRange {
    DeleteRange { key: key.to_owned().into(), range_end: range_end.into(), prev_kv: false }
}

fn ask(kv: &Kv, body: query::Body) -> Outcome {
    kv.read(&Query { body: Some(body), caller: None }).unwrap()
}

/// Hash and compaction's revision.
fn hash(kv: &Kv, revision: i64) -> Result<(u32, i64), KvError> {
    let outcome = ask(kv, query::Body::HashKv(HashKv { revision }));
    match outcome.body {
        Some(outcome::Body::Hash(found)) => Ok((found.hash, found.compact_revision)),
        _ => Err(error(&outcome).expect("a hash or an error")),
    }
}

#[test]
fn the_hash_of_a_history_is_etcds() {
    use command::Body::{Compact as C, DeleteRange as D, Put as P};
    let mut kv = Host::new(MemState::new());
    assert_eq!(hash(&kv, 0), Ok((1_084_519_789, -1)));
    for (key, value) in [("a", "1"), ("b", "2"), ("a", "3")] {
        apply(&mut kv, P(put(key, value)));
    }
    assert_eq!(hash(&kv, 0), Ok((2_069_675_932, -1)));
    apply(&mut kv, D(delete("b", "")));
    assert_eq!(hash(&kv, 0), Ok((1_125_682_900, -1)));
    assert_eq!(hash(&kv, 3), Ok((1_827_592_406, -1)));
    let ops = [
        op::Body::Put(put("c", "1")),
        op::Body::Put(put("d", "2")),
        op::Body::DeleteRange(delete("a", "")),
    ];
    let success = ops.into_iter().map(|body| Op { body: Some(body) }).collect();
    apply(&mut kv, command::Body::Txn(Txn { success, ..Txn::default() }));
    assert_eq!(hash(&kv, 0), Ok((4_212_751_735, -1)));
    apply(&mut kv, P(put("a", "9")));
    assert_eq!(hash(&kv, 0), Ok((2_939_136_380, -1)));

    apply(&mut kv, C(Compact { revision: 5 }));
    for swept in [false, true] {
        assert_eq!(hash(&kv, 0), Ok((147_243_289, 5)), "swept: {swept}");
        assert_eq!(hash(&kv, 5), Err(KvError::Compacted));
        assert_eq!(hash(&kv, 6), Ok((2_554_788_208, 5)));
        assert_eq!(hash(&kv, 7), Ok((147_243_289, 5)));
        while kv.sweep(1) {}
    }
    apply(&mut kv, D(delete("\0", "\0")));
    assert_eq!(hash(&kv, 0), Ok((2_489_572_422, 5)));
    apply(&mut kv, C(Compact { revision: 7 }));
    while kv.sweep(100) {}
    assert_eq!(hash(&kv, 0), Ok((389_276_437, 7)));
    assert_eq!(hash(&kv, 8), Ok((389_276_437, 7)));
    apply(&mut kv, P(put("z", "1")));
    assert_eq!(hash(&kv, 0), Ok((2_216_054_424, 7)));
    assert_eq!(hash(&kv, 99), Err(KvError::FutureRevision));
}

fn alarm(member: u64, kind: AlarmKind) -> Alarm {
    Alarm { member, kind: kind as i32 }
}

fn change(kv: &mut Kv, alarm: Alarm, raise: bool) -> Result<Vec<Alarm>, KvError> {
    let outcome = apply(kv, command::Body::ChangeAlarm(ChangeAlarm { alarm, raise }));
    match outcome.body {
        Some(outcome::Body::Conditions(found)) => Ok(found.alarms),
        _ => Err(error(&outcome).expect("alarms or an error")),
    }
}

fn now(kv: &Kv) -> ConditionsOutcome {
    match ask(kv, query::Body::Conditions(Conditions {})).body {
        Some(outcome::Body::Conditions(now)) => now,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_alarm_about_space_refuses_what_grows_until_it_is_cleared() {
    let mut kv = Host::new(MemState::new());
    apply(&mut kv, command::Body::Put(put("a", "1")));
    let alarms = [alarm(5, AlarmKind::NoSpace), alarm(7, AlarmKind::NoSpace)];
    for alarm in alarms {
        assert_eq!(change(&mut kv, alarm, true), Ok(vec![alarm]));
        assert_eq!(change(&mut kv, alarm, true), Ok(vec![alarm]), "once more");
    }
    assert_eq!(now(&kv).alarms, alarms);
    let refused = apply(&mut kv, command::Body::Put(put("a", "2")));
    assert_eq!((error(&refused), refused.revision), (Some(KvError::NoSpace), 2));
    let freed = apply(&mut kv, command::Body::DeleteRange(delete("a", "")));
    assert_eq!((error(&freed), freed.revision), (None, 3));
    assert_eq!(change(&mut kv, alarms[0], false), Ok(vec![alarms[0]]));
    assert_eq!(change(&mut kv, alarms[0], false), Ok(vec![]), "it is cleared already");
    let refused = apply(&mut kv, command::Body::Put(put("a", "2")));
    assert_eq!(error(&refused), Some(KvError::NoSpace), "there is another one");
    assert_eq!(change(&mut kv, alarms[1], false), Ok(vec![alarms[1]]));
    assert_eq!(apply(&mut kv, command::Body::Put(put("a", "2"))).revision, 4);
}

#[test]
fn an_alarm_about_damage_refuses_every_change() {
    let mut kv = Host::new(MemState::new());
    change(&mut kv, alarm(0, AlarmKind::Corrupt), true).unwrap();
    for body in [
        command::Body::Put(put("a", "1")),
        command::Body::DeleteRange(delete("a", "")),
        command::Body::Txn(Txn::default()),
        command::Body::Compact(Compact { revision: 1 }),
    ] {
        assert_eq!(error(&apply(&mut kv, body)), Some(KvError::Corrupt));
    }
    change(&mut kv, alarm(0, AlarmKind::Corrupt), false).unwrap();
    assert_eq!(apply(&mut kv, command::Body::Put(put("a", "1"))).revision, 2);
}

#[test]
fn alarms_are_bounded_and_of_known_kinds() {
    let mut kv = Host::new(MemState::new());
    assert_eq!(change(&mut kv, alarm(5, AlarmKind::None), true), Ok(vec![]));
    assert_eq!(change(&mut kv, Alarm { member: 5, kind: 7 }, true), Err(KvError::BadAlarm));
    for member in 0..256 {
        change(&mut kv, alarm(member, AlarmKind::NoSpace), true).unwrap();
    }
    let more = change(&mut kv, alarm(256, AlarmKind::NoSpace), true);
    assert_eq!(more, Err(KvError::BadAlarm));
    assert_eq!(now(&kv).alarms.len(), 256);
}

#[test]
fn a_downgrade_is_noted_once_and_ended_once() {
    let mut kv = Host::new(MemState::new());
    let mut note = |target: &str| {
        let change = ChangeDowngrade { target: target.to_owned() };
        error(&apply(&mut kv, command::Body::ChangeDowngrade(change)))
    };
    assert_eq!(note(""), Some(KvError::NoDowngrade));
    assert_eq!(note("3.4.0"), None);
    assert_eq!(note("3.4.0"), Some(KvError::DowngradeInProcess));
    assert_eq!(note(&"9".repeat(65)), Some(KvError::Malformed));
    assert_eq!(now(&kv).downgrade_target, "3.4.0");
    let mut end = || {
        let change = ChangeDowngrade::default();
        error(&apply(&mut kv, command::Body::ChangeDowngrade(change)))
    };
    assert_eq!((end(), end()), (None, Some(KvError::NoDowngrade)));
}

#[test]
fn the_hash_of_everything_sees_the_systems_rows_too() {
    let mut kv = Host::new(MemState::new());
    let all = |kv: &Kv| match ask(kv, query::Body::HashAll(HashAll {})).body {
        Some(outcome::Body::Hash(found)) => found.hash,
        other => panic!("{other:?}"),
    };
    let (before, history) = (all(&kv), hash(&kv, 0));
    change(&mut kv, alarm(5, AlarmKind::NoSpace), true).unwrap();
    assert_ne!(all(&kv), before);
    assert_eq!(hash(&kv, 0), history);
    change(&mut kv, alarm(5, AlarmKind::NoSpace), false).unwrap();
    assert_eq!(all(&kv), before);
    assert!(kv.engine.size_bytes() < 1 << 20);
}
