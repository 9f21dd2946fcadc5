//! Compiles the `.proto` files with `protox`, so that no `protoc` is needed on the machine that builds.

use std::path::PathBuf;
use std::{env, fs};

use prost::Message;

const FILES: [&str; 7] = [
    "etcdserverpb/rpc.proto",
    "etcdserverpb/auth.proto",
    "etcdserverpb/lease.proto",
    "etcdserverpb/watch.proto",
    "v3lock.proto",
    "v3election.proto",
    "quorate/v1/admin.proto",
];

/// Messages that carry a password or token: what they show of themselves is written by hand.
const SECRET: [&str; 4] = [
    ".etcdserverpb.AuthenticateRequest",
    ".etcdserverpb.AuthenticateResponse",
    ".etcdserverpb.AuthUserAddRequest",
    ".etcdserverpb.AuthUserChangePasswordRequest",
];

// Cargo reads what a build script prints.
#[allow(clippy::print_stdout)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    fs::write(out.join("methods.rs"), methods(&descriptors))?;
    // `Bytes` fields share the buffer that a request was read into: a value is copied once on its way
    // from the socket to the log.
    tonic_prost_build::configure()
        .skip_debug(SECRET)
        .bytes(".")
        .codec_path("crate::codec::SizedCodec")
        .compile_fds(descriptors)?;
    Ok(())
}

/// The paths of all methods, as a slice for the crate's source.
fn methods(descriptors: &prost_types::FileDescriptorSet) -> String {
    let mut paths = Vec::new();
    for file in &descriptors.file {
        for service in &file.service {
            let of_service = |method: &prost_types::MethodDescriptorProto| {
                format!("/{}.{}/{}", file.package(), service.name(), method.name())
            };
            paths.extend(service.method.iter().map(of_service));
        }
    }
    format!("&{paths:?}")
}
