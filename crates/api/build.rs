//! Compiles the `.proto` files with `protox`, so that no `protoc` is needed on the machine that builds.

use std::path::PathBuf;
use std::{env, fs};

use prost::Message;

const FILES: [&str; 3] =
    ["etcdserverpb/rpc.proto", "quorate/v1/admin.proto", "etcdserverpb/lease.proto"];

// Cargo reads what a build script prints.
#[allow(clippy::print_stdout)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // `Bytes` fields share the buffer that a request was read into: a value is copied once on its way
    // from the socket to the log.
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::codec::SizedCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
