//! The gateway from outside: real sockets, stock clients, and a keyspace in memory behind it.
//!
//! - `services`: what each service answers, and how failures of the backend reach a client.
//! - `members`: how members change, and who must not, beside a real etcd too.
//! - `auth`: users, roles and tokens, beside a real etcd too; `auth_matrix`: every RPC and every kind of caller;
//!   `auth_behind`: a node that knows less of users than others; `auth_moved`: users that came from an etcd;
//!   `auth_audit`: what the audit log tells; `auth_certificate`: users by certificates; `auth_json`: every path of
//!   JSON; `auth_jwt`: signed tokens; `auth_refused`: what a refused call costs.
//! - `ports`: noise, half-open connections, oversized messages, plain pages.
//! - `sizes`: messages above the limit; `frames`: streams above it, and streams that are reset all the time.
//! - `pings`: clients that ping too often.
//! - `health`: `/health` under alarms, beside a real etcd too.
//! - `pages`: a range in parts.
//! - `beside_etcd`: the same requests to a real etcd and to us, answers compared.
//! - `json`: the JSON gateway, beside a real etcd's where there is one; `json_streams`: its watches and leases.
//! - `tls`: certificates of the port and of clients; `tls_rotation`: a new authority of clients.
//! - `locks`: locks and elections, beside a real etcd too; `locks_auth`: who may take them.
//! - `shutdown`: what a gateway that goes down tells those who wait.
//! - `watch`: what a watch promises, and what ends one; `watch_beside_etcd`: the same watches on both.
//!   `watch_auth`: who may watch, beside a real etcd too. `watch_slow`: clients that do not take their responses.
//!   `watch_prev`: the pairs of before.
//! - `compaction`: history that is forgotten by itself.
//! - `etcdctl`: the stock command line against both.

mod auth;
mod auth_audit;
mod auth_behind;
mod auth_certificate;
mod auth_json;
mod auth_jwt;
mod auth_matrix;
mod auth_moved;
mod auth_refused;
mod beside_etcd;
mod compaction;
mod etcdctl;
mod fake;
mod frames;
mod health;
mod json;
mod json_streams;
mod keyspace;
mod leases;
mod locks;
mod locks_auth;
mod members;
mod pages;
mod peer;
mod pings;
mod ports;
mod roster;
mod services;
mod shutdown;
mod sizes;
mod support;
mod tls;
mod tls_rotation;
mod upkeep;
mod watch;
mod watch_auth;
mod watch_beside_etcd;
mod watch_prev;
mod watch_slow;
