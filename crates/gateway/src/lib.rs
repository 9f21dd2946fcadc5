//! The front door: etcd's v3 services over one [`Backend`], so that stock clients work unchanged.
//!
//! The gateway translates, validates and counts. It knows neither groups' logs nor leaders: whoever keeps
//! the data stands behind the [`Backend`] trait.
//!
//! - [`backend`]: the one way out.
//! - [`server`]: [`Gateway`], accepting and ending connections; `connection`: one of them; `pings`: how
//!   often its client may ping; `gather`: small answers leave together; `prefixed`: bytes read ahead.
//! - `door`: from an HTTP/2 request to the service that answers it.
//! - `kv`, `watch`, `lease`, `cluster`, `maintenance`: etcd's services; `admin`: ours; `health`: gRPC's;
//!   `blobs`: files as streams; `pages`: ranges as streams.
//! - [`compaction`]: when history is forgotten by itself.
//! - `lock`, `election`: etcd's services over the others, with `ownership`: whose turn it is, and `undo`: the places
//!   of calls that ended.
//! - `closing`: how streams end when the gateway goes down.
//! - `desk`: what the services share.
//! - [`auth`]: who asks, and whether they may.
//! - [`validate`], `writes`: what a request must be; `translate`: what it becomes.
//! - [`error`]: every refusal, with etcd's codes and texts.
//! - [`http`](mod@http): the plain pages beside gRPC; `health_page`: one of them.
//! - [`tls`]: certificates of the client port and of clients.
//! - `json`: the same calls as JSON, on etcd's paths.
//! - `metrics`, `calls`: what is counted; [`config`].
//!
//! # What differs from etcd, on purpose
//!
//! An unknown sort order or target and an unknown compare are refused, not guessed. A transaction has a
//! cap on its total and on its depth. Alarms have one of etcd's two kinds; etcd ends with a panic when it is asked
//! for another one.

pub mod auth;
pub mod backend;
pub mod compaction;
pub mod config;
pub mod error;
pub mod http;
pub mod server;
pub mod tls;
pub mod validate;

mod admin;
mod blobs;
mod calls;
mod closing;
mod cluster;
mod connection;
mod desk;
mod door;
mod election;
mod gather;
mod health;
mod health_page;
mod json;
mod kv;
mod lease;
mod lock;
mod maintenance;
mod metrics;
mod ownership;
mod pages;
mod pings;
mod prefixed;
mod translate;
mod undo;
mod watch;
mod writes;

pub use auth::{AuthConfig, AuthConfigError, Peer, TokenKind};
pub use backend::{
    Answer, Backend, BackendError, Backup, BackupError, BackupForm, Consistency, EventBatch,
    GroupStatus, Happened, Member, MemberChange, MemberError, MemberRefusal, MembersAnswer,
    NodeStatus, PeerLag, Role,
};
pub use config::GatewayConfig;
pub use desk::ETCD_VERSION;
pub use error::ApiError;
pub use http::MetricsPage;
pub use server::Gateway;
pub use tls::{ClientCertificate, ClientTls, ClientTlsFiles, TlsError};
