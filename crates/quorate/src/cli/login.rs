//! Whom a command asks as, where users count.

use std::fmt;

use quorate_api::etcdserverpb::AuthenticateRequest;
use quorate_api::etcdserverpb::auth_client::AuthClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// A connection on which every call says who makes it.
pub(super) type Known = InterceptedService<Channel, Token>;

/// Whom to ask as.
#[derive(Clone, Default, clap::Args)]
pub struct Login {
    /// User and password, where users count
    #[arg(long, value_name = "NAME:PASSWORD", env = "QUORATE_USER", hide_env_values = true)]
    user: Option<String>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").finish_non_exhaustive()
    }
}

/// Puts a token into each call, if there is one.
#[derive(Clone)]
pub(super) struct Token(Option<MetadataValue<Ascii>>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("token", token.clone());
        }
        Ok(request)
    }
}

impl Login {
    /// Asks for a token, and takes it along from then on. Where users do not count none is needed.
    pub(super) async fn on(&self, channel: Channel) -> Result<Known, Status> {
        let token = match &self.user {
            Some(user) => token(channel.clone(), user).await?,
            None => None,
        };
        Ok(InterceptedService::new(channel, Token(token)))
    }
}

async fn token(channel: Channel, user: &str) -> Result<Option<MetadataValue<Ascii>>, Status> {
    let (name, password) = user.split_once(':').unwrap_or((user, ""));
    let request = AuthenticateRequest { name: name.to_owned(), password: password.to_owned() };
    match AuthClient::new(channel).authenticate(request).await {
        Ok(answer) => {
            let token = answer.into_inner().token.parse();
            token.map(Some).map_err(|_| Status::internal("the token is no text"))
        }
        Err(status)
            if status.code() == Code::FailedPrecondition
                && status.message().ends_with("authentication is not enabled") =>
        {
            Ok(None)
        }
        Err(status) => Err(status),
    }
}
