//! Real processes under test: clusters of `quorate serve`, clusters of the peer etcd, and what looks at
//! them.
//!
//! - [`cluster`]: three nodes of either kind on loopback, started, killed and restarted by name.
//! - [`process`]: one child process, its log, and its end.
//! - [`programs`]: where the programs are; the peers are fetched, or the test says that it was skipped.
//! - [`verify`]: `quorate-load verify` beside a test's faults.
//! - [`check`]: `quorate-load --check` beside a test's faults.
//! - [`relay`]: links between nodes that can be cut; [`network`]: nodes in network namespaces, whose links the kernel cuts.
//! - [`torture`]: faults under load, round after round; a few in the tests, many by `make torture`.
//! - [`fuzz`]: hostile bytes at everything of the client port that decodes.
//! - [`measure`]: how clusters do over minutes and gigabytes.
//! - [`client`], [`http`]: how tests talk to them.
//! - [`ports`], [`wait`]: free ports, and the one place that polls.
//!
//! The tests use what a stranger would: the built programs, their flags and their ports. Settings, from the
//! environment: `QUORATE_BIN` and `QUORATE_LOAD_BIN` name programs to test instead of the ones just built;
//! `QUORATE_STAND_IN=etcd` starts the peer wherever Quorate would be, which tests the tests;
//! `REQUIRE_PEERS=1` turns a missing peer into a failure.

pub mod check;
pub mod client;
pub mod cluster;
pub mod fuzz;
pub mod http;
pub mod measure;
pub mod network;
pub mod ports;
pub mod process;
pub mod programs;
pub mod relay;
pub mod torture;
pub mod verify;
pub mod wait;
