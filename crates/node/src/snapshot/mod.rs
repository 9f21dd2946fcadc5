//! Snapshots between nodes, and the truncation that makes them needed.
//!
//! A replica that needs entries which its leader has truncated, or that is new, gets the group's state
//! instead. The life of a snapshot:
//!
//! 1. The leader's replica wants one sent. [`export`] writes the group's rows, from one view of the
//!    engine, into a file, and the transport sends it, few at a time and at a limited rate. Nothing of
//!    that happens in the actor: the end of it comes back as a message.
//! 2. The receiving node ([`arrival`], [`transfer`]) puts the content into a file, goes on where an earlier attempt
//!    stopped, checks that it is whole, and syncs it. Only then does the group hear of it.
//! 3. If the replica wants it, it is put in place, by the steps of [`installation`]: intent in
//!    the log, state replaced, log reset. A start that finds an intent does the last two again before
//!    the group does anything.
//!
//! [`truncation`] decides how much of a log is kept, [`truncator`] sees to it, and [`files`] keeps the
//! directory. What writes snapshots to the disk keeps to a [`pace`].

pub(crate) mod arrival;
pub(crate) mod export;
pub(crate) mod files;
pub(crate) mod installation;
pub(crate) mod pace;
pub(crate) mod transfer;
pub(crate) mod truncation;
pub(crate) mod truncator;
pub(crate) mod words;

pub use installation::InstallError;
pub use words::WordsError;
