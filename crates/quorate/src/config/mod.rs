//! Settings from flags, the environment, a file and defaults; in this order, the first that says
//! something wins.
//!
//! - [`settings`]: the one table of keys, and what each layer says about them.
//! - [`values`]: the types of single settings, each with the words for what it expects.
//! - [`file`]: a TOML file as a layer; its errors name key, line and what was expected.
//! - [`clients`]: how clients are let in.
//! - `retention`: how much history is kept, as etcd's two flags say it.
//! - [`serve`]: [`ServeConfig`], the checked whole that everything behind it trusts.

pub mod clients;
pub mod file;
mod retention;
pub mod serve;
pub mod settings;
pub mod values;

#[cfg(test)]
mod from_etcd_tests;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub use serve::ServeConfig;
pub use settings::{Layers, Settings};

/// Why there is no configuration to run with. The text is for the person who wrote it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Reads every layer and checks the whole.
///
/// `env` are the variables of the process; `file` is the one named by a flag, and `QUORATE_CONFIG` names
/// one otherwise.
///
/// # Errors
/// When a layer cannot be read, or the whole makes no sense.
pub fn load(
    flags: Settings,
    env: impl IntoIterator<Item = (OsString, OsString)>,
    file: Option<&Path>,
) -> Result<(ServeConfig, Vec<String>), ConfigError> {
    let env = settings::from_env(env)?;
    let path: Option<PathBuf> = file.map(Path::to_owned).or(env.config);
    let file = path.map(|path| file::read(&path)).transpose()?.unwrap_or_default();
    let layers = Layers { flags, env: env.settings, file };
    Ok((ServeConfig::check(&layers)?, env.warnings))
}
