//! The gateway from outside: real sockets, stock clients, and a keyspace in memory behind it.
//!
//! - `services`: what each service answers, and how failures of the backend reach a client.
//! - `members`: how members change, and who must not, beside a real etcd too.
//! - `auth`: users, roles and tokens, beside a real etcd too; `auth_matrix`: every RPC and every kind of caller;
//!   `auth_behind`: a node that knows less of users than others; `auth_moved`: users that came from an etcd.
//! - `ports`: noise, half-open connections, oversized messages, plain pages.
//! - `pings`: clients that ping too often.
//! - `health`: `/health` under alarms, beside a real etcd too.
//! - `pages`: a range in parts.
//! - `beside_etcd`: the same requests to a real etcd and to us, answers compared.
//! - `json`: the JSON gateway, beside a real etcd's where there is one.
//! - `tls`: certificates of the port and of clients.
//! - `locks`: locks and elections, beside a real etcd too; `locks_auth`: who may take them.
//! - `shutdown`: what a gateway that goes down tells those who wait.
//! - `watch`: what a watch promises, and what ends one; `watch_beside_etcd`: the same watches on both.
//!   `watch_auth`: who may watch, beside a real etcd too.
//! - `etcdctl`: the stock command line against both.

mod auth;
mod auth_behind;
mod auth_matrix;
mod auth_moved;
mod beside_etcd;
mod etcdctl;
mod fake;
mod health;
mod json;
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
mod support;
mod tls;
mod upkeep;
mod watch;
mod watch_auth;
mod watch_beside_etcd;
