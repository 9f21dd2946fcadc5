//! Who asks, for those who open connections and serve calls.

use std::net::SocketAddr;
use std::sync::Arc;

use quorate_types::auth::Caller;

/// The other end of a connection; stands in the extensions of each of its requests.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Peer {
    address: Option<SocketAddr>,
    certificate_user: Option<Arc<str>>,
}

impl Peer {
    /// A client at an address.
    #[must_use]
    pub const fn at(address: Option<SocketAddr>) -> Self {
        Self { address, certificate_user: None }
    }

    /// The client has shown a certificate that was verified against the clients' authority: its common name is
    /// a user, as with etcd, unless a call carries a token. An empty name is nobody's. Never to be called with
    /// the name of a proxy's or gateway's own certificate.
    #[must_use]
    pub fn certified(self, common_name: &str) -> Self {
        let certificate_user = (!common_name.is_empty()).then(|| Arc::from(common_name));
        Self { certificate_user, ..self }
    }

    /// The user of the certificate.
    pub(crate) fn certificate_user(&self) -> Option<&str> {
        self.certificate_user.as_deref()
    }

    /// Where it is.
    pub(crate) const fn address(&self) -> Option<SocketAddr> {
        self.address
    }
}

/// A caller who is known; stands in the extensions of a request while users count.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    pub(crate) caller: Caller,
    pub(crate) source: Source,
    /// The stream that it has opened goes on, so it is looked at as of now from then on.
    pub(crate) is_let_in: bool,
}

impl Identity {
    /// Of a call that begins.
    pub(crate) const fn new(caller: Caller, source: Source) -> Self {
        Self { caller, source, is_let_in: false }
    }

    /// The same for the rest of a stream that was let in: a signed token too holds on there for as long as its user
    /// is the same. etcd looks no more at all.
    pub(crate) fn let_in(self) -> Self {
        Self { is_let_in: true, ..self }
    }
}

/// How a caller is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// By a token of ours, which follows the auth revision.
    Token,
    /// By a signed token, which opens calls at the auth revision that stands in it and at no other.
    Jwt,
    /// By the certificate of the connection.
    Certificate,
}

/// Who makes a request; none while users do not count, or when nobody said.
pub(crate) fn identity<T>(request: &tonic::Request<T>) -> Option<Identity> {
    request.extensions().get::<Identity>().cloned()
}

/// From where a request came.
pub(crate) fn peer<T>(request: &tonic::Request<T>) -> Peer {
    request.extensions().get::<Peer>().cloned().unwrap_or_default()
}
