//! Users and roles as a part of the keyspace: every replica refuses the same, restarts keep them, and a read is
//! judged by the users of its own view.

use proptest::prelude::*;
use prost::Message;
use quorate_store::{MemState, StateEngine};
use quorate_types::auth::command::{self as change, Body};
use quorate_types::auth::{
    AuthCommand, AuthQuery, Caller, Directory, Permission, outcome as told, query as asked,
};
use quorate_types::kv::{
    Command, Compact, KvError, LeaseGrant, LeaseKeys, LeaseRevoke, Op, Outcome, Put, Query, Range,
    Txn, command, op, outcome, query,
};

use crate::host::{Host, error, rows};

fn by(caller: Option<Caller>, body: command::Body) -> Command {
    Command { body: Some(body), caller, ..Command::default() }
}

fn auth(body: Body) -> command::Body {
    command::Body::Auth(AuthCommand { body: Some(body) })
}

fn put(key: &str) -> Put {
    Put { key: key.to_owned().into(), ..Put::default() }
}

fn named(name: &str) -> change::Named {
    change::Named { name: name.to_owned() }
}

fn user_add(name: &str) -> Body {
    let (name, password_hash) = (name.to_owned(), "$hash".to_owned());
    Body::UserAdd(change::UserAdd { name, password_hash, no_password: false })
}

fn user_role(user: &str, role: &str) -> change::UserRole {
    change::UserRole { user: user.to_owned(), role: role.to_owned() }
}

fn grant(role: &str, key: &'static str, end: &'static str) -> Body {
    let permission = Some(Permission { kind: 2, key: key.into(), range_end: end.into() });
    Body::RoleGrantPermission(change::RolePermission { role: role.to_owned(), permission })
}

fn enable() -> Body {
    Body::Enable(change::Enable { secret: "secret".into() })
}

/// Root, and a user who may read and write `a` to `b`, at auth revision 7.
fn with_users<E: StateEngine>(host: &mut Host<E>) {
    for body in [
        user_add("root"),
        Body::UserGrantRole(user_role("root", "root")),
        Body::RoleAdd(named("r")),
        grant("r", "a", "b"),
        user_add("u"),
        Body::UserGrantRole(user_role("u", "r")),
        enable(),
    ] {
        let outcome = host.apply(&by(None, auth(body)));
        assert_eq!((error(&outcome), outcome.revision), (None, 1), "no revision of the keyspace");
    }
}

fn status<E: StateEngine>(host: &Host<E>) -> (bool, i64) {
    let status = asked::Body::Status(asked::Everything {});
    let body = Some(query::Body::Auth(AuthQuery { body: Some(status) }));
    let answer = host.read(&Query { body, caller: Some(Caller::system()) }).unwrap();
    let Some(outcome::Body::Auth(answer)) = answer.body else { panic!("{answer:?}") };
    let Some(told::Body::Status(status)) = answer.body else { panic!("{answer:?}") };
    (status.enabled, status.auth_revision)
}

fn get<E: StateEngine>(host: &Host<E>, caller: Option<Caller>, key: &str) -> Outcome {
    let range = Range { key: key.to_owned().into(), ..Range::default() };
    host.read(&Query { body: Some(query::Body::Range(range)), caller }).unwrap()
}

#[test]
fn what_a_user_may_is_decided_where_a_command_is_applied() {
    let mut host = Host::new(MemState::new());
    with_users(&mut host);
    assert_eq!(status(&host), (true, 7));
    let user = |revision| Some(Caller::user("u", revision));
    let nested = |key: &str| {
        let op = |body| Op { body: Some(body) };
        let inner = Txn { failure: vec![op(op::Body::Put(put(key)))], ..Txn::default() };
        command::Body::Txn(Txn { success: vec![op(op::Body::Txn(inner))], ..Txn::default() })
    };
    let rows = [
        (None, command::Body::Put(put("a")), Some(KvError::UserEmpty)),
        (Some(Caller::user("", 7)), command::Body::Put(put("a")), Some(KvError::UserEmpty)),
        (user(6), command::Body::Put(put("a")), Some(KvError::AuthOldRevision)),
        (user(7), command::Body::Put(put("b")), Some(KvError::PermissionDenied)),
        (user(7), nested("b"), Some(KvError::PermissionDenied)),
        (
            Some(Caller::user("gone", 7)),
            command::Body::Put(put("a")),
            Some(KvError::PermissionDenied),
        ),
        (user(7), command::Body::Compact(Compact { revision: 1 }), Some(KvError::PermissionDenied)),
        (user(7), auth(user_add("x")), Some(KvError::PermissionDenied)),
        (None, auth(Body::Disable(change::Disable {})), Some(KvError::UserEmpty)),
        (user(7), command::Body::Put(put("a")), None),
        (Some(Caller::user("root", 7)), command::Body::Put(put("b")), None),
        (Some(Caller::system()), command::Body::Put(put("c")), None),
    ];
    for (caller, body, expected) in rows {
        let before = host.meta();
        let outcome = host.apply(&by(caller.clone(), body.clone()));
        assert_eq!(error(&outcome), expected, "{caller:?} {body:?}");
        assert_eq!(host.meta() == before, expected.is_some(), "a refusal changes nothing");
    }
    for (caller, key, expected) in [
        (None, "a", Some(KvError::UserEmpty)),
        (user(7), "a", None),
        (user(6), "a", Some(KvError::AuthOldRevision)),
        (user(7), "b", Some(KvError::PermissionDenied)),
    ] {
        assert_eq!(error(&get(&host, caller, key)), expected);
    }
}

#[test]
fn a_command_that_was_proposed_before_a_right_was_taken_is_refused_after() {
    let mut host = Host::new(MemState::new());
    with_users(&mut host);
    let root = || Some(Caller::user("root", 7));
    let late = by(Some(Caller::user("u", 7)), command::Body::Put(put("a")));
    let revoke = by(root(), auth(Body::UserRevokeRole(user_role("u", "r"))));
    let both = [&revoke, &late].map(|command| command.encode_to_vec().into());
    let outcomes = host.apply_all(both);
    assert_eq!(
        outcomes.iter().map(error).collect::<Vec<_>>(),
        [None, Some(KvError::AuthOldRevision)]
    );
}

#[test]
fn a_read_is_judged_by_the_users_of_its_own_view() {
    let mut host = Host::new(MemState::new());
    with_users(&mut host);
    let disable = by(Some(Caller::user("root", 7)), auth(Body::Disable(change::Disable {})));
    host.apply_while(&disable, |host| {
        // The machine has gone on; what readers see has not.
        assert_eq!(error(&get(host, None, "a")), Some(KvError::UserEmpty));
    });
    assert_eq!(error(&get(&host, None, "a")), None);
    host.apply_while(&by(None, auth(enable())), |host| {
        assert_eq!(error(&get(host, None, "a")), None);
    });
    assert_eq!(error(&get(&host, None, "a")), Some(KvError::UserEmpty));
}

fn lease_grant(id: i64) -> command::Body {
    command::Body::LeaseGrant(LeaseGrant { id, ttl_s: 60 })
}

fn revoke(id: i64) -> command::Body {
    command::Body::LeaseRevoke(LeaseRevoke { id, expired_in_term: 0 })
}

fn attach(key: &str, lease: i64) -> Put {
    Put { lease, ..put(key) }
}

#[test]
fn who_may_not_write_every_key_of_a_lease_neither_ends_it_nor_attaches_another_to_it() {
    let mut host = Host::new(MemState::new());
    with_users(&mut host);
    let op = |body| Op { body: Some(body) };
    let branches =
        |then: Vec<Op>, other: Vec<Op>| Txn { success: then, failure: other, ..Txn::default() };
    let one = |key: &str, lease| op(op::Body::Put(attach(key, lease)));
    let nested =
        |inner: Txn| command::Body::Txn(branches(Vec::new(), vec![op(op::Body::Txn(inner))]));
    let user = || Some(Caller::user("u", 7));
    let system = || Some(Caller::system());
    let denied = Some(KvError::PermissionDenied);
    let rows = [
        // Lease 1 has keys of the user and of others, 2 only of the user, 3 has none.
        (None, lease_grant(1), Some(KvError::UserEmpty)),
        (user(), lease_grant(1), None),
        (user(), lease_grant(2), None),
        (user(), lease_grant(3), None),
        (user(), command::Body::Put(attach("a", 1)), None),
        (system(), command::Body::Put(attach("b", 1)), None),
        (user(), command::Body::Put(attach("a1", 2)), None),
        (user(), command::Body::Put(attach("a2", 2)), None),
        (user(), command::Body::Put(attach("a3", 1)), denied),
        (user(), command::Body::Put(attach("a", 1)), denied),
        (user(), command::Body::Txn(branches(vec![one("a3", 1)], Vec::new())), denied),
        (user(), command::Body::Txn(branches(vec![one("a3", 2)], vec![one("a3", 1)])), denied),
        (user(), nested(branches(vec![one("a3", 2)], vec![one("a3", 1)])), denied),
        (user(), nested(branches(vec![one("a3", 2)], vec![one("a3", 3)])), None),
        (user(), revoke(1), denied),
        (Some(Caller::user("u", 6)), revoke(2), Some(KvError::AuthOldRevision)),
        (Some(Caller::user("gone", 7)), revoke(2), denied),
        (None, revoke(2), Some(KvError::UserEmpty)),
        (None, revoke(3), Some(KvError::UserEmpty)),
        (user(), revoke(3), None),
        (user(), revoke(2), None),
        (user(), revoke(2), Some(KvError::LeaseNotFound)),
        (user(), command::Body::Put(attach("a", 2)), Some(KvError::LeaseNotFound)),
        // What is attached to no lease any more counts for none.
        (system(), command::Body::Put(put("b")), None),
        (user(), revoke(1), None),
    ];
    for (step, (caller, body, expected)) in rows.into_iter().enumerate() {
        let before = rows_of_keyspace(&host);
        let outcome = host.apply(&by(caller.clone(), body.clone()));
        assert_eq!(error(&outcome), expected, "{step}: {caller:?} {body:?}");
        assert!(
            expected.is_none() || rows_of_keyspace(&host) == before,
            "a refusal changes nothing"
        );
    }
    let kept = host.read(&Query {
        body: Some(query::Body::Range(Range {
            key: "\0".into(),
            range_end: "\0".into(),
            ..Range::default()
        })),
        caller: system(),
    });
    let Some(outcome::Body::Range(kept)) = kept.unwrap().body else { panic!("a range") };
    assert_eq!(kept.kvs.iter().map(|kv| kv.key.clone()).collect::<Vec<_>>(), ["b"]);
}

/// All rows but the group's own, which tells how far it is.
fn rows_of_keyspace(host: &Host<MemState>) -> Vec<(bytes::Bytes, bytes::Bytes)> {
    let group_row = host.meta();
    rows(&host.engine)
        .into_iter()
        .filter(|(_, row)| !row.windows(group_row.len()).any(|part| part == group_row))
        .collect()
}

#[test]
fn a_lease_that_is_over_ends_whoever_may_write_its_keys() {
    let mut host = Host::new(MemState::new());
    with_users(&mut host);
    let system = || Some(Caller::system());
    for body in [lease_grant(1), command::Body::Put(attach("b", 1))] {
        assert_eq!(error(&host.apply(&by(system(), body))), None);
    }
    // The entries of the tests are of term 1.
    let over = command::Body::LeaseRevoke(LeaseRevoke { id: 1, expired_in_term: 1 });
    let outcome = host.apply(&by(None, over));
    assert!(
        matches!(&outcome.body, Some(outcome::Body::LeaseRevoke(revoked)) if revoked.deleted == 1),
        "{outcome:?}"
    );
}

#[test]
fn the_keys_of_a_lease_are_shown_to_who_may_read_all_of_them() {
    let mut host = Host::new(MemState::new());
    with_users(&mut host);
    let system = || Some(Caller::system());
    let permission = |kind| {
        Some(Permission { kind, key: "a".into(), range_end: bytes::Bytes::from_static(b"b") })
    };
    for (name, kind) in [("reader", 0), ("writer", 1)] {
        let role = change::RolePermission { role: name.to_owned(), permission: permission(kind) };
        for body in [
            user_add(name),
            Body::RoleAdd(named(name)),
            Body::RoleGrantPermission(role),
            Body::UserGrantRole(user_role(name, name)),
        ] {
            assert_eq!(error(&host.apply(&by(system(), auth(body)))), None);
        }
    }
    for body in [
        lease_grant(1),
        lease_grant(2),
        lease_grant(3),
        command::Body::Put(attach("a", 1)),
        command::Body::Put(attach("a1", 2)),
        command::Body::Put(attach("b", 2)),
    ] {
        assert_eq!(error(&host.apply(&by(system(), body))), None);
    }
    let (_, now) = status(&host);
    let user = |name: &str| Some(Caller::user(name, now));
    let denied = Err(KvError::PermissionDenied);
    for (caller, lease, expected) in [
        (user("u"), 1, Ok(1)),
        (user("reader"), 1, Ok(1)),
        (user("writer"), 1, denied),
        (user("u"), 2, denied),
        (user("root"), 2, Ok(2)),
        (system(), 2, Ok(2)),
        (None, 1, Err(KvError::UserEmpty)),
        (None, 3, Err(KvError::UserEmpty)),
        (None, 4, Err(KvError::UserEmpty)),
        (user("writer"), 3, Ok(0)),
        (user("writer"), 4, Ok(0)),
        (Some(Caller::user("u", now - 1)), 1, Err(KvError::AuthOldRevision)),
    ] {
        let asked = Some(query::Body::LeaseKeys(LeaseKeys { id: lease }));
        let outcome = host.read(&Query { body: asked, caller: caller.clone() }).unwrap();
        let shown = match (&outcome.body, error(&outcome)) {
            (Some(outcome::Body::LeaseKeys(shown)), _) => Ok(shown.keys.len()),
            (_, Some(error)) => Err(error),
            _ => panic!("{outcome:?}"),
        };
        assert_eq!(shown, expected, "{caller:?} asks for {lease}");
    }
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![Just("root"), Just("u"), Just("v"), Just("")].prop_map(str::to_owned)
}

fn any_change() -> impl Strategy<Value = Body> {
    let user_role = || (name(), name()).prop_map(|(user, role)| change::UserRole { user, role });
    let permission = (0i32..4, "[ab]{0,1}", "[ab\0]{0,1}")
        .prop_map(|(kind, key, end)| Permission { kind, key: key.into(), range_end: end.into() });
    let role_permission = (name(), proptest::option::of(permission))
        .prop_map(|(role, permission)| change::RolePermission { role, permission })
        .boxed();
    prop_oneof![
        3 => Just(enable()),
        1 => Just(Body::Disable(change::Disable {})),
        3 => name().prop_map(|name| user_add(&name)),
        1 => name().prop_map(|name| Body::UserDelete(named(&name))),
        1 => name().prop_map(|name| Body::UserChangePassword(change::UserChangePassword {
            name,
            password_hash: "$other".into()
        })),
        3 => user_role().prop_map(Body::UserGrantRole),
        1 => user_role().prop_map(Body::UserRevokeRole),
        3 => name().prop_map(|name| Body::RoleAdd(named(&name))),
        1 => name().prop_map(|name| Body::RoleDelete(named(&name))),
        3 => role_permission.clone().prop_map(Body::RoleGrantPermission),
        1 => role_permission.prop_map(Body::RoleRevokePermission),
    ]
}

fn any_command() -> impl Strategy<Value = Command> {
    let caller = prop_oneof![
        2 => Just(None),
        2 => Just(Some(Caller::system())),
        3 => (name(), 0i64..12).prop_map(|(name, revision)| Some(Caller::user(name, revision))),
    ];
    let body = prop_oneof![
        3 => any_change().prop_map(auth),
        1 => "[abc]".prop_map(|key| command::Body::Put(put(&key))),
    ];
    (caller, body).prop_map(|(caller, body)| by(caller, body))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// One replica applies one by one and restarts in between, the other applies in one batch.
    #[test]
    fn replicas_agree_about_users_however_the_log_is_cut(
        commands in proptest::collection::vec(any_command(), 1..40), restart in 0usize..40,
    ) {
        let (mut one, mut other) = (Host::new(MemState::new()), Host::new(MemState::new()));
        let mut outcomes = Vec::new();
        for (at, command) in commands.iter().enumerate() {
            if at == restart {
                one.restart();
            }
            outcomes.push(one.apply(command));
        }
        let together = other.apply_all(commands.iter().map(|command| command.encode_to_vec().into()));
        prop_assert_eq!(outcomes, together);
        prop_assert_eq!(rows(&one.engine), rows(&other.engine));
        prop_assert_eq!(one.meta(), other.meta());
    }

    /// What is stored reads back as the value that it was, whatever was done.
    #[test]
    fn a_directory_reads_back_from_its_rows(changes in proptest::collection::vec(any_change(), 0..30)) {
        let mut directory = Directory::default();
        for body in changes {
            let before = directory.clone();
            let command = AuthCommand { body: Some(body) };
            if directory.apply(&command).is_err() {
                prop_assert_eq!(&directory, &before, "a refusal changes nothing");
            }
            let read_back = Directory::from_rows(directory.rows());
            prop_assert_eq!(read_back.as_ref(), Ok(&directory));
        }
    }

    #[test]
    fn whatever_bytes_stand_in_a_command_about_users_it_has_an_outcome(
        bytes in proptest::collection::vec(any::<u8>(), 0..60), tag in prop_oneof![Just(0xa2u8), Just(0xa6)],
    ) {
        // Field 20 with the bytes as its message, and as garbage.
        let mut command = vec![tag, 1, bytes.len() as u8];
        command.extend_from_slice(&bytes);
        let mut host = Host::new(MemState::new());
        prop_assert_eq!(host.apply_all([command.clone().into()]).len(), 1);
        let _ = host.read_bytes(command.into());
    }
}
