//! TLS on the client port: etcd's `--cert-file`, `--key-file`, `--trusted-ca-file`, `--client-cert-auth`.
//!
//! - `files`: what the files say, as a configuration of rustls.
//! - [`ClientTls`]: the configuration in use; files that change replace it, unless they are broken.
//! - `handshakes`: how many are under way, and whose turn it is to go when there are too many.
//! - [`ClientCertificate`]: whom a client's certificate names.

mod certificate;
mod files;
mod handshakes;
mod reload;

pub use certificate::ClientCertificate;
pub use files::{ClientTlsFiles, TlsError};
pub(crate) use handshakes::Handshakes;
pub use reload::ClientTls;
