//! Users, roles, permissions and tokens, and reads and writes by all kinds of callers.
//!
//! Each call goes to a node that chance says. After a change of users all nodes are brought up to it, so that there is
//! one right answer.

use std::collections::BTreeMap;

use quorate_api::etcdserverpb::{self as pb, RequestOp, ResponseHeader, request_op};
use quorate_tests::client::Client;
use tonic::{Code, Request, Status};

use super::auth_known::{excuse, leave_out};
use super::auth_steps::{ROOT, Step, caller, first_steps, login, rare_steps, step};
use super::harness::{ETCD, QUORATE, Run};
use super::known::Known;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    Said(String),
    Refused(Code, String),
}

/// Clients of one side, with the tokens that it gave.
struct Side {
    clients: Vec<Client>,
    tokens: BTreeMap<String, String>,
    /// Whether users count.
    enabled: bool,
}

/// Both sides, and where and by whom they are asked.
pub(super) struct Users {
    sides: [Side; 2],
    number: usize,
    node: usize,
    pub(super) caller: Option<&'static str>,
}

/// One sequence. Users do not count before and after.
pub(crate) async fn sequence(run: &mut Run) -> Result<(), String> {
    let of = |side: &Vec<Client>| Side {
        clients: side.clone(),
        tokens: BTreeMap::new(),
        enabled: false,
    };
    let sides = run.sides.each_ref().map(of);
    let mut users = Users { sides, number: 0, node: 0, caller: None };
    let [etcd, quorate] = &mut users.sides;
    tokio::join!(etcd.forget_all(), quorate.forget_all());
    run.settle().await;
    let compacted = run.generator.position().1;
    let mut script = first_steps(&mut run.rng, &mut run.generator.left_out);
    // In one of a run, for certain.
    if run.seed == 1 {
        script.extend(rare_steps(compacted));
    }
    for number in 0..run.steps.max(script.len()) {
        let (caller, step) = match script.get(number) {
            Some((caller, step)) => (*caller, step.clone()),
            None => {
                let left_out = &mut run.generator.left_out;
                (caller(&mut run.rng), step(&mut run.rng, left_out, compacted))
            }
        };
        users = Users { number, node: run.rng.usize(..3), caller, ..users };
        match step {
            Step::Txn(mut txn) => {
                leave_out(run, &mut users, &mut txn).await?;
                users.ask(run, &Step::Txn(txn)).await?;
            }
            step => match step.with_password() {
                Some(with) => users.ask_without_password(run, &step, &with).await?,
                None => users.ask(run, &step).await.map(|_| ())?,
            },
        }
    }
    users.end(run).await
}

impl Users {
    /// Whether rights are looked at, and not root's.
    pub(super) fn has_rights(&self) -> bool {
        self.sides[ETCD].enabled && self.caller != Some(ROOT)
    }

    /// Asks both sides the same, and compares. Returns whether it was done.
    pub(super) async fn ask(&mut self, run: &mut Run, step: &Step) -> Result<bool, String> {
        let (node, caller) = (self.node, self.caller);
        let enabled = self.sides[ETCD].enabled;
        let [etcd, quorate] = &mut self.sides;
        let (expected, found) =
            tokio::join!(etcd.send(node, caller, step), quorate.send(node, caller, step));
        let answers = [expected, found];
        run.judge(self.shown(step), &answers, || excuse(step, enabled, &answers))?;
        let is_done = matches!(answers[ETCD], Answer::Said(_));
        if is_done && step.changes_users() {
            run.settle().await;
        }
        Ok(is_done)
    }

    /// Asks Quorate for what etcd takes with an empty password, and both for the same `with` one.
    async fn ask_without_password(
        &mut self,
        run: &mut Run,
        step: &Step,
        with: &Step,
    ) -> Result<(), String> {
        let found = self.sides[QUORATE].send(self.node, self.caller, step).await;
        let shown = self.shown(step);
        // Only what is right otherwise is refused for its password.
        let (expected, known) = match self.ask(run, with).await? {
            true => {
                let text = "quorate: a password is not empty".to_owned();
                (Answer::Refused(Code::InvalidArgument, text), Some(Known::EmptyPassword))
            }
            false => (found.clone(), None),
        };
        let is_refused = matches!(found, Answer::Refused(..)) && found == expected;
        run.conclude(shown, [&expected, &found], is_refused.then_some(known))
    }

    fn shown(&self, step: &Step) -> String {
        format!("step {}, node {}, by {:?}: {step:?}", self.number, self.node, self.caller)
    }

    /// Lets users count no more, and compares what is there at each node.
    async fn end(&mut self, run: &mut Run) -> Result<(), String> {
        let root = Step::Authenticate(login(ROOT, ROOT));
        let [etcd, quorate] = &mut self.sides;
        tokio::join!(etcd.send(0, None, &root), quorate.send(0, None, &root));
        let (by, disable) = (Some(ROOT), Step::Disable);
        tokio::join!(etcd.send(0, by, &disable), quorate.send(0, by, &disable));
        run.settle().await;
        let (key, range_end) = ("\0".into(), "\0".into());
        let own = pb::RangeRequest { key, range_end, serializable: true, ..Default::default() };
        let own = Step::Range(own);
        for node in 0..run.sides[ETCD].len() {
            let [etcd, quorate] = &mut self.sides;
            let left = tokio::join!(etcd.send(node, None, &own), quorate.send(node, None, &own));
            run.judge(format!("what node {node} has in the end"), &left.into(), || None)?;
        }
        Ok(())
    }
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
        let auth = &mut self.clients[0].auth;
        let users = auth.user_list(pb::AuthUserListRequest {}).await.expect("a list").into_inner();
        for name in users.users {
            auth.user_delete(pb::AuthUserDeleteRequest { name }).await.expect("it is there");
        }
        let roles = auth.role_list(pb::AuthRoleListRequest {}).await.expect("a list").into_inner();
        for role in roles.roles {
            auth.role_delete(pb::AuthRoleDeleteRequest { role }).await.expect("it is there");
        }
    }

    async fn send(&mut self, node: usize, caller: Option<&str>, step: &Step) -> Answer {
        let caller = caller.filter(|_| self.enabled);
        let answer = self.send_as(node, caller, step).await;
        match (step, &answer) {
            (Step::Enable, Answer::Said(_)) => self.enabled = true,
            (Step::Disable, Answer::Said(_)) => self.enabled = false,
            _ => {}
        }
        answer
    }

    async fn send_as(&mut self, node: usize, caller: Option<&str>, step: &Step) -> Answer {
        let token = caller.and_then(|name| self.tokens.get(name));
        let Client { auth, kv, .. } = &mut self.clients[node];
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
