//! Backups restored, and damaged ones refused.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use quorate_types::auth::command::{
    Body as AuthBody, Enable, Named, RolePermission, UserAdd, UserRole,
};
use quorate_types::auth::{AuthCommand, Caller, Directory, Permission, PermissionKind};
use quorate_types::kv::{Command, Compact, DeleteRange, LeaseGrant, Put, command};
use quorate_types::kv_maintenance::{Alarm, AlarmKind, ChangeAlarm};
use quorate_types::machine::{Direction, RowScope};
use quorate_types::{Committed, MachineKind, NodeId};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::*;
use crate::engine::{MemState, Overlay, ScopedView, StateEngine};
use crate::etcd::{EtcdError, FRONT_BYTES, write_etcd};
use crate::kv::check_keyspace;
use crate::layout;
use crate::snapshot::{Export, GroupRows, Install, SnapshotReader};

const GROUP: GroupId = GroupId::FIRST_DATA;
const BUMP: i64 = 1_000;
const LEASE: i64 = -7;

/// Hashes of root's password and of another one's, as etcd makes them and as we do.
const BCRYPT: &str = "$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy";
const ARGON2ID: &str = "$argon2id$v=19$m=19456,t=2,p=1$c29tZSBzYWx0$AAAA";

/// What makes users and roles, and lets them count.
fn users() -> Vec<command::Body> {
    let add = |name: &str, password_hash: &str, no_password| {
        let password_hash = password_hash.to_owned();
        AuthBody::UserAdd(UserAdd { name: name.into(), password_hash, no_password })
    };
    let grant = |user: &str, role: &str| {
        AuthBody::UserGrantRole(UserRole { user: user.into(), role: role.into() })
    };
    let permit = |kind: PermissionKind, key: &'static str, end: &'static str| {
        let (key, range_end) = (key.into(), end.into());
        let permission = Some(Permission { kind: kind as i32, key, range_end });
        AuthBody::RoleGrantPermission(RolePermission { role: "app".into(), permission })
    };
    let changes = [
        add("root", BCRYPT, false),
        add("ours", ARGON2ID, false),
        add("certified", "", true),
        AuthBody::RoleAdd(Named { name: "app".into() }),
        AuthBody::RoleAdd(Named { name: "root".into() }),
        permit(PermissionKind::ReadWrite, "app/", "app0"),
        permit(PermissionKind::Read, "all", "\0"),
        grant("root", "root"),
        grant("ours", "app"),
        grant("certified", "app"),
        AuthBody::Enable(Enable { secret: "a secret of tokens".into() }),
    ];
    let change = |body| command::Body::Auth(AuthCommand { body: Some(body) });
    changes.map(change).into()
}

/// A keyspace with overwritten and deleted keys, a compaction, a lease, an alarm, and users that count.
fn keyspace() -> MemState {
    let engine = MemState::new();
    let mut bodies = Vec::new();
    for number in 0..300u32 {
        let key: Bytes = match number % 11 {
            // Keys that must be escaped.
            0 => vec![b'k', 0, 0xff, (number % 50) as u8].into(),
            _ => format!("key/{}", number % 70).into(),
        };
        let value = vec![number as u8; (number as usize * 37) % 9000].into();
        bodies.push(command::Body::Put(Put { key, value, ..Put::default() }));
        if number % 13 == 0 {
            let key = format!("key/{}", number % 17).into();
            bodies.push(command::Body::DeleteRange(DeleteRange { key, ..DeleteRange::default() }));
        }
    }
    bodies.push(command::Body::LeaseGrant(LeaseGrant { id: LEASE, ttl_s: 60 }));
    let (key, value) = (Bytes::from_static(b"leased"), Bytes::from_static(b"v"));
    bodies.push(command::Body::Put(Put { key, value, lease: LEASE, ..Put::default() }));
    bodies.push(command::Body::Compact(Compact { revision: 120 }));
    let alarm = Alarm { member: 9, kind: AlarmKind::NoSpace as i32 };
    bodies.extend(users());
    bodies.push(command::Body::ChangeAlarm(ChangeAlarm { alarm, raise: true }));
    let kind = KvKind::default();
    let committed: Vec<_> = (1..)
        .zip(bodies)
        .map(|(index, body)| {
            let caller = Some(Caller::system());
            let command = Command { body: Some(body), caller, ..Command::default() };
            let id = EntryId::new(Term(3), LogIndex(index));
            Committed { id, command: command.encode_to_vec().into() }
        })
        .collect();
    let mut overlay = Overlay::new(engine.view());
    let view = engine.view();
    let mut machine =
        kind.open(GROUP, &[], &ScopedView::new(&*view, RowScope::Keyspace, GROUP)).unwrap();
    let mut batch = overlay.scoped(RowScope::Keyspace, GROUP);
    machine.apply(&committed, &mut batch).unwrap();
    machine.sweep(20, &mut batch).unwrap();
    let row = GroupRow {
        applied: committed.last().unwrap().id,
        membership: voters(&[5]),
        kind: KvKind::NAME.to_owned(),
        meta: machine.meta(),
    };
    overlay.put_group_row(GROUP, &row);
    drop(view);
    engine.write(overlay.into_rows()).unwrap();
    engine
}

fn voters(ids: &[u64]) -> Membership {
    Membership::of_voters(ids.iter().copied().map(NodeId))
}

fn quorate_backup(engine: &MemState) -> Vec<u8> {
    let rows = GroupRows::Keys(KeyRange::all());
    let export = Export::new(engine.view(), GROUP, rows, Some(KeyRange::all())).unwrap();
    let (mut export, mut backup) = (export.unwrap(), Vec::new());
    while let Some(piece) = export.next_piece().unwrap() {
        backup.extend_from_slice(&piece);
    }
    backup
}

fn etcd_backup(engine: &MemState) -> Vec<u8> {
    etcd_backup_within(engine, 1 << 30).0.unwrap()
}

/// A backup of at most `bytes_max` bytes, and how many were written.
fn etcd_backup_within(engine: &MemState, bytes_max: u64) -> (Result<Vec<u8>, EtcdError>, u64) {
    let view = engine.view();
    let row = GroupRow::load(GROUP, &*view).unwrap().unwrap();
    let rows = ScopedView::new(&*view, RowScope::Keyspace, GROUP);
    let mut backup = Vec::new();
    let front = write_etcd(&row, &rows, &[], &mut backup, bytes_max);
    let written = backup.len() as u64;
    let whole = front.map(|front| {
        backup[..front.len()].copy_from_slice(&front);
        backup
    });
    (whole, written)
}

/// What a restored snapshot makes of an engine.
fn installed(snapshot: &[u8]) -> MemState {
    let engine = MemState::new();
    let rows = |_: &SnapshotHeader| Ok(GroupRows::Keys(KeyRange::all()));
    let reader = SnapshotReader::open(snapshot, rows).unwrap();
    Install::stage(reader, &engine).unwrap().run(&engine).unwrap();
    engine
}

fn directory(engine: &MemState) -> Directory {
    let view = engine.view();
    crate::auth::load(&ScopedView::new(&*view, RowScope::Keyspace, GROUP)).unwrap()
}

type Pairs = BTreeMap<Bytes, (crate::kv::record::Record, Bytes)>;

/// All pairs that exist, with their revisions.
fn pairs(engine: &MemState) -> Pairs {
    let view = engine.view();
    let (start, end) = layout::current_range(&KeyRange::all());
    let mut pairs = Pairs::new();
    view.scan(&start, Some(&end), Direction::Forward, &mut |row, value| {
        let key = Bytes::copy_from_slice(layout::key_of_current(row).unwrap());
        let record = crate::kv::record::Record::decode_current(row, value).unwrap();
        let history = layout::history(&key, record.modified);
        let stored = view.get(&history).unwrap().expect("its value");
        let (_, at) = crate::kv::record::Record::decode_history(&history, record.modified, &stored)
            .unwrap()
            .expect("a put");
        pairs.insert(key, (record, stored.slice(at..)));
        ControlFlow::Continue(())
    })
    .unwrap();
    pairs
}

fn expect_sound(engine: &MemState, contents: &Contents) -> Meta {
    let view = engine.view();
    let row = GroupRow::load(GROUP, &*view).unwrap().unwrap();
    assert_eq!((row.applied, &row.membership), (RESTORED, &voters(&[1, 2, 3])));
    let rows = ScopedView::new(&*view, RowScope::Keyspace, GROUP);
    let check = check_keyspace(&row.meta, &rows).unwrap();
    assert_eq!((check.damage_count, check.keys), (0, contents.keys), "{:?}", check.damage);
    let meta = Meta::decode(&row.meta).unwrap();
    assert_eq!((meta.revision, meta.floor), (contents.revision + BUMP, meta.revision));
    assert_eq!(meta.alarms, crate::kv::meta::AlarmCounts::default());
    let directory = directory(engine);
    assert_eq!((meta.auth.enabled, meta.auth.revision), (true, directory.revision()));
    assert_eq!((contents.users, contents.roles), (3, 2));
    meta
}

#[test]
fn a_file_of_etcds_is_refused_above_its_size_and_not_written_beyond() {
    let engine = keyspace();
    let bytes = etcd_backup(&engine).len() as u64;
    assert_eq!(etcd_backup_within(&engine, bytes).0.unwrap().len() as u64, bytes);
    for bytes_max in [bytes - 1, bytes / 2, 1] {
        let (refused, written) = etcd_backup_within(&engine, bytes_max);
        assert!(
            matches!(refused, Err(EtcdError::TooLarge(told)) if told == bytes_max),
            "{refused:?}"
        );
        // The front is there before anything is known to be too much.
        assert!(written <= bytes_max.max(FRONT_BYTES as u64), "{written} of {bytes_max}");
    }
}

#[test]
fn a_backup_becomes_the_beginning_of_a_keyspace_with_the_same_pairs() {
    let engine = keyspace();
    let old = pairs(&engine);
    let backup = quorate_backup(&engine);
    let mut snapshot = Vec::new();
    let contents = from_quorate(&backup[..], BUMP, voters(&[1, 2, 3]), &mut snapshot).unwrap();
    assert_eq!((contents.keys, contents.leases), (old.len() as u64, 1));
    assert_eq!(contents.left_out.len(), 1, "{:?}", contents.left_out);
    let looked = check_backup(&backup[..]).unwrap();
    assert_eq!((looked.revision, looked.keys), (contents.revision, contents.keys));

    let restored = installed(&snapshot);
    assert_eq!(pairs(&restored), old);
    assert_eq!(directory(&restored), directory(&engine));
    expect_sound(&restored, &contents);
    let mut again = Vec::new();
    from_quorate(&backup[..], BUMP, voters(&[1, 2, 3]), &mut again).unwrap();
    assert_eq!(snapshot, again, "every node makes the same of it");
}

#[test]
fn a_file_of_etcd_becomes_the_beginning_of_a_keyspace_with_the_same_pairs() {
    let engine = keyspace();
    let old = pairs(&engine);
    let backup = etcd_backup(&engine);
    let mut snapshot = Vec::new();
    let bytes = backup.len() as u64;
    let contents = from_etcd(&backup, bytes, BUMP, voters(&[1, 2, 3]), &mut snapshot).unwrap();
    assert_eq!((contents.keys, contents.leases), (old.len() as u64, 1));
    let restored = installed(&snapshot);
    assert_eq!(pairs(&restored), old);
    expect_sound(&restored, &contents);
    assert_eq!(contents.left_out.len(), 1, "the alarm: {:?}", contents.left_out);
    let view = restored.view();
    let leases = crate::kv::lease::leases(&ScopedView::new(&*view, RowScope::Keyspace, GROUP));
    assert_eq!(leases, Ok(vec![(LEASE, 60)]));
    // All of users but what tokens were made with: that must not lie in such a file.
    let (old, new) = (directory(&engine).rows(), directory(&restored).rows());
    assert_eq!(new.roles, old.roles);
    for (old, new) in old.users.iter().zip(&new.users) {
        assert_eq!((&old.name, &old.password_hash), (&new.name, &new.password_hash));
        assert_eq!((old.no_password, &old.roles), (new.no_password, &new.roles));
    }
    let (old, new) = (old.head.unwrap(), new.head.unwrap());
    assert_eq!((new.enabled, new.revision), (true, old.revision));
    assert!(new.secret.is_empty() && !old.secret.is_empty());
    let holds = |secret: &[u8]| backup.windows(secret.len()).any(|bytes| bytes == secret);
    assert!(holds(BCRYPT.as_bytes()) && !holds(&old.secret));
}

#[test]
fn revisions_that_clients_cannot_hold_are_refused() {
    let backup = quorate_backup(&keyspace());
    for bump in [i64::MIN, -1, 0, 1 << 53, i64::MAX] {
        let refused = from_quorate(&backup[..], bump, voters(&[1]), Vec::new());
        assert!(matches!(refused, Err(RestoreError::Revision { .. })), "{bump}");
    }
}

#[test]
fn a_snapshot_of_another_group_is_no_backup() {
    let row = GroupRow { membership: voters(&[1]), kind: "locks".into(), ..GroupRow::default() };
    let header = SnapshotHeader { group: GROUP, range: None, row };
    let snapshot = crate::snapshot::SnapshotWriter::new(Vec::new(), &header).unwrap();
    let snapshot = snapshot.finish().unwrap();
    let refused = check_backup(&snapshot[..]);
    assert!(matches!(refused, Err(RestoreError::NotTheKeyspace)), "{refused:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_damaged_backup_is_an_error_and_never_taken(
        at in any::<prop::sample::Index>(), flip in 1u8.., cut in any::<bool>(),
    ) {
        let mut backup = quorate_backup(&keyspace());
        let at = at.index(backup.len());
        if cut { backup.truncate(at) } else { backup[at] ^= flip }
        prop_assert!(from_quorate(&backup[..], BUMP, voters(&[1]), Vec::new()).is_err());
        prop_assert!(check_backup(&backup[..]).is_err());
    }

    // Nothing but the whole file has a checksum there: pairs or an error, but no panic and no endless walk.
    #[test]
    fn any_file_of_etcd_gives_pairs_or_an_error(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0usize..20), 1..20),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut backup = etcd_backup(&keyspace());
        for (at, byte, head) in flips {
            let page = at.index(backup.len() / 4096) * 4096;
            // Heads and elements are where it hurts; the metas have checksums, so mostly behind them.
            let target = if head < 18 { page + at.index(64) } else { at.index(backup.len()) };
            backup[target] = byte;
        }
        if let Some(cut) = cut {
            let length = cut.index(backup.len());
            backup.truncate(length);
        }
        let bytes = backup.len() as u64;
        let mut snapshot = Vec::new();
        if from_etcd(&backup, bytes, BUMP, voters(&[1]), &mut snapshot).is_ok() {
            // What is taken at all is a whole snapshot.
            installed(&snapshot);
        }
    }

    #[test]
    fn any_bytes_give_pairs_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
        let length = bytes.len() as u64;
        prop_assert!(from_etcd(&bytes, length, BUMP, voters(&[1]), Vec::new()).is_err());
        prop_assert!(check_backup(&bytes[..]).is_err());
    }
}
