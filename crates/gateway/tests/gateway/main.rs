//! The gateway from outside: real sockets, stock clients, and a keyspace in memory behind it.
//!
//! - `services`: what each service answers, and how failures of the backend reach a client.
//! - `members`: how members change, and who must not, beside a real etcd too.
//! - `ports`: noise, half-open connections, oversized messages, plain pages.
//! - `pings`: clients that ping too often.
//! - `beside_etcd`: the same requests to a real etcd and to us, answers compared.
//! - `etcdctl`: the stock command line against both.

mod beside_etcd;
mod etcdctl;
mod fake;
mod keyspace;
mod members;
mod peer;
mod pings;
mod ports;
mod roster;
mod services;
mod support;
mod upkeep;
