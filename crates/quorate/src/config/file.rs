//! A TOML file as a layer of settings.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::ConfigError;
use super::settings::{Settings, closest};

/// What a file says, and where.
#[derive(Clone, Default, Debug)]
pub struct FileLayer {
    /// The settings.
    pub settings: Settings,
    /// The file.
    pub path: PathBuf,
    /// The line of each setting, from 1.
    pub lines: BTreeMap<String, usize>,
}

/// Reads the file at `path`. Paths in it are relative to the working directory, as in flags.
///
/// # Errors
/// When it cannot be read or [`parse`] refuses it.
pub fn read(path: &Path) -> Result<FileLayer, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError(format!("{}: {error}", path.display())))?;
    parse(path, &text)
}

/// Reads the text of a file; `path` is for messages.
///
/// # Errors
/// At the first line that is not TOML, whose key is not a setting, or whose value is not what the
/// setting expects.
pub fn parse(path: &Path, text: &str) -> Result<FileLayer, ConfigError> {
    let line_at = |offset: usize| {
        let before = text.get(..offset).unwrap_or(text);
        before.bytes().filter(|byte| *byte == b'\n').count() + 1
    };
    let fail =
        |line: usize, what: &str| Err(ConfigError(format!("{}:{line}: {what}", path.display())));
    let table = match DeTable::parse(text) {
        Ok(table) => table,
        Err(error) => {
            let line = line_at(error.span().map_or(0, |span| span.start));
            return fail(line, &format!("not TOML: {}", error.message().trim()));
        }
    };
    let mut layer = FileLayer { path: path.to_owned(), ..FileLayer::default() };
    // In the order of the file, so that the first mistake is the one that is reported.
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    for (key, value) in entries {
        let line = line_at(key.span().start);
        let key: &str = key.get_ref();
        match layer.settings.set_toml(key, value.get_ref()) {
            Some(Ok(())) => {
                layer.lines.insert(key.to_owned(), line);
            }
            Some(Err(wrong)) => return fail(line, &format!("{key:?} {wrong}")),
            None => {
                let hint = closest(key);
                let hint = hint.map_or_else(String::new, |key| format!(" (did you mean {key:?}?)"));
                return fail(line, &format!("unknown key {key:?}{hint}"));
            }
        }
    }
    Ok(layer)
}
