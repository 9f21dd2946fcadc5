//! Users, roles, permissions and tokens, and reads and writes by all kinds of callers.
//!
//! All requests go to one node, which alone is sure to have applied what it acknowledged.

use std::collections::BTreeMap;

use quorate_api::etcdserverpb::{self as pb, RequestOp, ResponseHeader, request_op};
use quorate_tests::client::Client;
use tonic::{Code, Request, Status};

use super::auth_steps::{ROOT, Step, caller, first_steps, has_no_key, login, step};
use super::harness::Run;
use super::known::Known;

#[derive(Debug, Clone, PartialEq)]
enum Answer {
    Said(String),
    Refused(Code, String),
}

/// A client of one side, with the tokens that it was given.
struct Side {
    client: Client,
    tokens: BTreeMap<String, String>,
    /// Whether users count.
    enabled: bool,
}

/// One sequence. Users do not count before and after.
pub(crate) async fn sequence(run: &mut Run) -> Result<(), String> {
    let of = |side: &Vec<Client>| Side {
        client: side[0].clone(),
        tokens: BTreeMap::new(),
        enabled: false,
    };
    let mut sides = run.sides.each_ref().map(of);
    let [etcd, quorate] = &mut sides;
    tokio::join!(etcd.forget_all(), quorate.forget_all());
    let compacted = run.generator.position().1;
    for number in 0..run.steps {
        if run.rng.usize(..3) != 0 {
            run.ledger.note(Known::RightsRemembered);
        }
        let (caller, step) = match first_steps().into_iter().nth(number) {
            Some(step) => (Some(ROOT), step),
            None => {
                let left_out = &mut run.generator.left_out;
                (caller(&mut run.rng), step(&mut run.rng, left_out, compacted))
            }
        };
        let [etcd, quorate] = &mut sides;
        let answers = tokio::join!(etcd.send(caller, &step), quorate.send(caller, &step)).into();
        let shown = format!("step {number}, by {caller:?}: {step:?}");
        run.judge(shown, &answers, || excuse(&step, &answers))?;
    }
    let everything =
        pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    let [etcd, quorate] = &mut sides;
    let left = tokio::join!(etcd.end(everything.clone()), quorate.end(everything));
    run.judge("what is there in the end".to_owned(), &left.into(), || None)
}

fn excuse(step: &Step, [expected, found]: &[Answer; 2]) -> Option<Known> {
    use Answer::{Refused, Said};
    let range = match step {
        Step::Range(range) | Step::NestedRead(range) => Some((&range.key, &range.range_end)),
        Step::Delete(delete) => Some((&delete.key, &delete.range_end)),
        _ => None,
    };
    match (step, expected, found) {
        (_, Said(_), Refused(Code::PermissionDenied, _))
        | (_, Refused(Code::PermissionDenied, _), Said(_))
            if range.is_some_and(|(key, end)| has_no_key(key, end)) =>
        {
            Some(Known::RangeWithoutKeys)
        }
        (Step::NestedRead(_), Said(_), Refused(code, text)) => {
            is_denied(*code, text).then_some(Known::NestedReadUnchecked)
        }
        (Step::Txn(txn), Said(_), Refused(code, text)) if is_empty(txn) => {
            is_denied(*code, text).then_some(Known::EmptyTxnForAll)
        }
        (Step::Compact(_), Refused(Code::OutOfRange, _), Refused(code, text)) => {
            is_denied(*code, text).then_some(Known::CompactionForAll)
        }
        (Step::Stranger(_), Refused(Code::Unauthenticated, _), Said(_)) => {
            Some(Known::UnknownTokenWhileOpen)
        }
        (Step::Authenticate(_), Refused(Code::Unknown, theirs), Refused(code, ours)) => {
            let none = "authentication failed, password was given for no password user";
            let same = theirs.ends_with(none) && ours.ends_with(none);
            (same && *code == Code::InvalidArgument).then_some(Known::PasswordOfNone)
        }
        (_, Refused(Code::Unauthenticated, _), Refused(_, text)) => {
            let old =
                ["etcdserver: revision of auth store is old", "etcdserver: permission denied"]
                    .contains(&&**text);
            old.then_some(Known::TokenOfBefore)
        }
        _ => None,
    }
}

fn is_empty(txn: &pb::TxnRequest) -> bool {
    txn.compare.is_empty() && txn.success.is_empty() && txn.failure.is_empty()
}

/// To a user, or to nobody.
fn is_denied(code: Code, text: &str) -> bool {
    let nobody = code == Code::InvalidArgument && text == "etcdserver: user name is empty";
    nobody || code == Code::PermissionDenied
}

/// Makes a call as somebody; its answer without identities.
macro_rules! call {
    ($client:expr, $method:ident, $request:expr, $token:expr) => {{
        let answer = $client.$method(with_token($request, $token)).await.map(|answer| {
            let mut answer = answer.into_inner();
            neutral(&mut answer.header);
            answer
        });
        said(answer)
    }};
}

fn with_token<T>(request: T, token: Option<&String>) -> Request<T> {
    let mut request = Request::new(request);
    if let Some(token) = token {
        request.metadata_mut().insert("token", token.parse().expect("a token is text"));
    }
    request
}

impl Side {
    /// Deletes all users and roles; users do not count yet.
    async fn forget_all(&mut self) {
        let auth = &mut self.client.auth;
        let users = auth.user_list(pb::AuthUserListRequest {}).await.expect("a list").into_inner();
        for name in users.users {
            auth.user_delete(pb::AuthUserDeleteRequest { name }).await.expect("it is there");
        }
        let roles = auth.role_list(pb::AuthRoleListRequest {}).await.expect("a list").into_inner();
        for role in roles.roles {
            auth.role_delete(pb::AuthRoleDeleteRequest { role }).await.expect("it is there");
        }
    }

    /// Lets users count no more, and says what is there.
    async fn end(&mut self, everything: pb::RangeRequest) -> Answer {
        self.send(None, &Step::Authenticate(login(ROOT, ROOT))).await;
        self.send(Some(ROOT), &Step::Disable).await;
        self.send(None, &Step::Range(everything)).await
    }

    async fn send(&mut self, caller: Option<&str>, step: &Step) -> Answer {
        let caller = caller.filter(|_| self.enabled);
        let answer = self.send_as(caller, step).await;
        match (step, &answer) {
            (Step::Enable, Answer::Said(_)) => self.enabled = true,
            (Step::Disable, Answer::Said(_)) => self.enabled = false,
            _ => {}
        }
        answer
    }

    async fn send_as(&mut self, caller: Option<&str>, step: &Step) -> Answer {
        let token = caller.and_then(|name| self.tokens.get(name));
        let (auth, kv) = (&mut self.client.auth, &mut self.client.kv);
        match step.clone() {
            Step::Enable => call!(auth, auth_enable, pb::AuthEnableRequest {}, token),
            Step::Disable => call!(auth, auth_disable, pb::AuthDisableRequest {}, token),
            Step::Status => call!(auth, auth_status, pb::AuthStatusRequest {}, token),
            Step::Authenticate(request) => {
                let name = request.name.clone();
                match auth.authenticate(request).await {
                    Ok(answer) => {
                        self.tokens.insert(name, answer.into_inner().token);
                        Answer::Said("a token".to_owned())
                    }
                    Err(status) => said::<()>(Err(status)),
                }
            }
            Step::UserAdd(request) => call!(auth, user_add, request, token),
            Step::UserDelete(request) => call!(auth, user_delete, request, token),
            Step::UserGet(request) => call!(auth, user_get, request, token),
            Step::UserList => call!(auth, user_list, pb::AuthUserListRequest {}, token),
            Step::ChangePassword(request) => call!(auth, user_change_password, request, token),
            Step::GrantRole(request) => call!(auth, user_grant_role, request, token),
            Step::RevokeRole(request) => call!(auth, user_revoke_role, request, token),
            Step::RoleAdd(request) => call!(auth, role_add, request, token),
            Step::RoleDelete(request) => call!(auth, role_delete, request, token),
            Step::RoleGet(request) => {
                call!(auth, role_get, request, token)
            }
            Step::RoleList => call!(auth, role_list, pb::AuthRoleListRequest {}, token),
            Step::Grant(request) => call!(auth, role_grant_permission, request, token),
            Step::Revoke(request) => call!(auth, role_revoke_permission, request, token),
            Step::Range(request) => call!(kv, range, request, token),
            Step::Put(request) => call!(kv, put, request, token),
            Step::Delete(request) => call!(kv, delete_range, request, token),
            Step::Txn(request) => call!(kv, txn, request, token),
            Step::NestedRead(range) => {
                let request = Some(request_op::Request::RequestRange(range));
                let inner = pb::TxnRequest {
                    success: vec![RequestOp { request }],
                    ..pb::TxnRequest::default()
                };
                let request = Some(request_op::Request::RequestTxn(inner));
                let outer = pb::TxnRequest {
                    success: vec![RequestOp { request }],
                    ..pb::TxnRequest::default()
                };
                call!(kv, txn, outer, token)
            }
            Step::Compact(revision) => {
                call!(kv, compact, pb::CompactionRequest { revision, physical: false }, token)
            }
            Step::Stranger(range) => call!(kv, range, range, Some(&"nobody.1".to_owned())),
        }
    }
}

fn said<T: std::fmt::Debug>(answer: Result<T, Status>) -> Answer {
    match answer {
        Ok(answer) => Answer::Said(format!("{answer:?}")),
        Err(status) => Answer::Refused(status.code(), status.message().to_owned()),
    }
}

fn neutral(header: &mut Option<ResponseHeader>) {
    if let Some(header) = header {
        *header = ResponseHeader { revision: header.revision, ..ResponseHeader::default() };
    }
}
