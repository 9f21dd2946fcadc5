//! Replicas of the keyspace of which one goes astray: nodes over real QUIC and RocksDB in one process, whose machines
//! do what they should not.

mod cluster;
mod corrupt;
mod feed;
mod machine;
