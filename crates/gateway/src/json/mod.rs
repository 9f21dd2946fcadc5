//! The JSON gateway: etcd's calls for clients that have no gRPC, on the paths that etcd documents.
//!
//! A request names its method by its path ([`routes`]); its body becomes the method's request message
//! ([`words`]), and goes through the same [`Door`](crate::door::Door) as a call of gRPC: what is validated,
//! authorized and counted there is so here. Streams are a JSON object per line.
//!
//! - `routes`: paths and the methods that they stand for.
//! - `words`: messages and statuses as JSON, by the rules of grpc-gateway.
//! - `split`: where one JSON object of a body ends and the next begins.
//! - `intake`: a body that is read within bounds.
//! - `call`: a call of gRPC without a connection.

mod call;
mod gateway;
mod intake;
mod routes;
mod split;
mod words;

pub(crate) use call::InProcess;
pub(crate) use gateway::JsonGateway;
pub(crate) use routes::{Routes, is_call};
