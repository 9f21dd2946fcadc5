//! The logs from outside: one suite over both stores, and the threads over the memory twin.

mod abort;
mod crash;
#[cfg(feature = "rocks")]
mod damage;
mod model;
#[cfg(feature = "rocks")]
mod rocks;
mod suite;
mod threads;
