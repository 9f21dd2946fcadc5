//! Tokens that are almost right, while users count.

use std::time::Duration;

use fastrand::Rng;
use quorate_api::etcdserverpb::{
    AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthUserAddRequest,
    AuthUserGrantRoleRequest, AuthenticateRequest, RangeRequest,
};
use tonic::metadata::AsciiMetadataValue;
use tonic::{Code, Request, Status};

use super::call::{Answer, PATIENCE};
use super::mutate::{damage, noise};
use crate::client::Client;

const PASSWORD: &str = "secret";

/// Makes users count at `client`; returns a token of root.
///
/// # Errors
/// What the server says.
pub(super) async fn enable(client: &mut Client) -> Result<String, Status> {
    let root = || "root".to_owned();
    let user =
        AuthUserAddRequest { name: root(), password: PASSWORD.to_owned(), ..Default::default() };
    client.auth.user_add(user).await?;
    let role = AuthRoleAddRequest { name: root() };
    client.auth.role_add(role).await?;
    let grant = AuthUserGrantRoleRequest { user: root(), role: root() };
    client.auth.user_grant_role(grant).await?;
    client.auth.auth_enable(AuthEnableRequest::default()).await?;
    authenticate(client).await
}

/// Makes users count no longer.
///
/// # Errors
/// What the server says.
pub(super) async fn disable(client: &mut Client) -> Result<(), Status> {
    let token = authenticate(client).await?;
    let mut request = Request::new(AuthDisableRequest::default());
    request.metadata_mut().insert("authorization", value(token.as_bytes()));
    client.auth.auth_disable(request).await.map(drop)
}

async fn authenticate(client: &mut Client) -> Result<String, Status> {
    let request = AuthenticateRequest { name: "root".to_owned(), password: PASSWORD.to_owned() };
    Ok(client.auth.authenticate(request).await?.into_inner().token)
}

/// A read with a token that is not `honest`.
///
/// # Errors
/// When it is let in.
pub(super) async fn show(
    client: &mut Client,
    honest: &str,
    random: &mut Rng,
) -> Result<Answer, String> {
    let token = value(&forged(honest, random));
    let is_honest = token.as_bytes() == honest.as_bytes();
    let mut request = Request::new(RangeRequest { key: "k".into(), ..RangeRequest::default() });
    let name = random.choice(["authorization", "token"]).unwrap_or_default();
    request.metadata_mut().insert(name, token.clone());
    match tokio::time::timeout(PATIENCE.max(Duration::from_secs(1)), client.kv.range(request)).await
    {
        Ok(Ok(_)) if is_honest => Ok(Answer::Served),
        Ok(Ok(_)) => Err(format!("let in with {token:?}")),
        Ok(Err(status)) if matches!(status.code(), Code::Ok | Code::Internal) => {
            Err(format!("{token:?}: {status:?}"))
        }
        Ok(Err(status)) => Ok(Answer::Refused(status)),
        Err(_) => Ok(Answer::Open),
    }
}

fn forged(honest: &str, random: &mut Rng) -> Vec<u8> {
    let mut token = match random.u32(0..8) {
        0 => noise(random, 200),
        1 => b"a".repeat(random.usize(0..20_000)),
        2 => b"q1.".iter().copied().chain(noise(random, 100)).collect(),
        // The form of a signed token.
        3 => b"eyJhbGciOiJub25lIn0.eyJ1c2VybmFtZSI6InJvb3QiLCJyZXZpc2lvbiI6MX0.".to_vec(),
        4 => {
            let mut parts: Vec<_> = honest.split('.').collect();
            random.shuffle(&mut parts);
            parts.join(".").into_bytes()
        }
        _ => honest.as_bytes().to_vec(),
    };
    (0..random.usize(1..4)).for_each(|_| damage(random, &mut token));
    token
}

/// `bytes` as a header may have them: others become letters.
fn value(bytes: &[u8]) -> AsciiMetadataValue {
    let visible = |byte: &u8| if byte.is_ascii_graphic() { *byte } else { b'A' + byte % 26 };
    let bytes: Vec<_> = bytes.iter().map(visible).collect();
    AsciiMetadataValue::try_from(bytes.as_slice()).expect("visible ASCII is a header's value")
}
