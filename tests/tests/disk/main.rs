//! Disks that fail, hang or are full, under real processes.
//!
//! [`syncs`] fail and hang through a small library of our own that stands between a node and its files
//! ([`shim`]), and [`leases`] live on meanwhile; in [`full`] the data lies on small filesystems of its own.

mod full;
mod leases;
mod shim;
mod syncs;
