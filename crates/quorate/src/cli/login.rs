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
    /// User, and the password unless that is given by itself, where users count
    #[arg(long, value_name = "NAME[:PASSWORD]", env = "QUORATE_USER", hide_env_values = true)]
    user: Option<String>,
    /// Password of that user, whose name may hold a colon then
    #[arg(long, value_name = "PASSWORD", env = "QUORATE_PASSWORD", hide_env_values = true)]
    password: Option<String>,
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
        let token = match self.name_and_password()? {
            Some((name, password)) => token(channel.clone(), name, password).await?,
            None => None,
        };
        Ok(InterceptedService::new(channel, Token(token)))
    }

    /// As etcdctl takes them.
    fn name_and_password(&self) -> Result<Option<(&str, &str)>, Status> {
        match (self.user.as_deref(), self.password.as_deref()) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(Status::invalid_argument("--password needs --user")),
            (Some(name), Some(password)) => Ok(Some((name, password))),
            (Some(user), None) => Ok(Some(user.split_once(':').unwrap_or((user, "")))),
        }
    }
}

async fn token(
    channel: Channel,
    name: &str,
    password: &str,
) -> Result<Option<MetadataValue<Ascii>>, Status> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_comes_with_the_name_or_by_itself() {
        let login = |user: Option<&str>, password: Option<&str>| Login {
            user: user.map(str::to_owned),
            password: password.map(str::to_owned),
        };
        for (user, password, expected) in [
            (None, None, None),
            (Some("a:b"), None, Some(("a", "b"))),
            (Some("a:b:c"), None, Some(("a", "b:c"))),
            (Some("a"), None, Some(("a", ""))),
            (Some("a"), Some("b"), Some(("a", "b"))),
            (Some("a:b"), Some("c"), Some(("a:b", "c"))),
        ] {
            assert_eq!(login(user, password).name_and_password().unwrap(), expected);
        }
        assert!(login(None, Some("b")).name_and_password().is_err());
    }
}
