//! The wire API as types: etcd's v3 messages, clients and servers, and our own admin service.
//!
//! The messages and stubs are generated from the files under `proto/`, which are our own; package, service and
//! method names and field numbers are those of etcd's published API, because stock clients rely on them.
//! `bytes` fields are [`bytes::Bytes`](https://docs.rs/bytes): keys and values are shared, not copied.
//!
//! - [`mvccpb`]: the stored pair.
//! - [`etcdserverpb`]: etcd's services.
//! - [`quorate::v1`](quorate): what etcd's API has no words for.
//! - [`codec`]: how messages get in and out of a call's buffers.
//! - [`authpb`]: what a user or role is.
//! - [`v3lockpb`], [`v3electionpb`]: etcd's services of locks and elections.
//! - [`METHODS`]: the paths of all methods; [`FILE_DESCRIPTORS`]: all of it as data, for gRPC reflection.

pub mod codec;
mod secret;

// The generators leave some generated items without words, and do not follow our idioms.
#[allow(
    missing_docs,
    unused_qualifications,
    unreachable_pub,
    clippy::use_self,
    clippy::or_fun_call
)]
pub mod mvccpb {
    //! The stored pair of etcd's API.
    tonic::include_proto!("mvccpb");
}

#[allow(
    missing_docs,
    unused_qualifications,
    unreachable_pub,
    clippy::use_self,
    clippy::or_fun_call
)]
pub mod authpb {
    //! What a user or role is.
    tonic::include_proto!("authpb");
}

#[allow(
    missing_docs,
    unused_qualifications,
    unreachable_pub,
    clippy::use_self,
    clippy::or_fun_call
)]
pub mod etcdserverpb {
    //! etcd's services and their messages.
    tonic::include_proto!("etcdserverpb");
}

#[allow(
    missing_docs,
    unused_qualifications,
    unreachable_pub,
    clippy::use_self,
    clippy::or_fun_call
)]
pub mod v3lockpb {
    //! etcd's service of locks.
    tonic::include_proto!("v3lockpb");
}

#[allow(
    missing_docs,
    unused_qualifications,
    unreachable_pub,
    clippy::use_self,
    clippy::or_fun_call
)]
pub mod v3electionpb {
    //! etcd's service of elections.
    tonic::include_proto!("v3electionpb");
}

pub mod quorate {
    //! The services that are Quorate's own.

    #[allow(
        missing_docs,
        unused_qualifications,
        unreachable_pub,
        clippy::use_self,
        clippy::or_fun_call
    )]
    pub mod v1 {
        //! The first version of the admin service.
        tonic::include_proto!("quorate.v1");
    }
}

/// The encoded `FileDescriptorSet` of every file under `proto/`.
pub const FILE_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The path of every method of every service under `proto/`, as it stands in a call.
pub const METHODS: &[&str] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));
