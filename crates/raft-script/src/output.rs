//! What a stanza prints.

use std::fmt::Display;

/// Lines, indented by what they belong to.
#[derive(Debug, Default)]
pub(crate) struct Output {
    text: String,
    indent: usize,
    /// Nothing but errors is printed; for setup that would only be noise.
    pub(crate) quiet: bool,
}

impl Output {
    pub(crate) fn line(&mut self, line: impl Display) {
        if !self.quiet {
            self.error(line);
        }
    }

    /// Printed even when quiet.
    pub(crate) fn error(&mut self, line: impl Display) {
        self.text.extend(std::iter::repeat_n("  ", self.indent));
        self.text.push_str(&line.to_string());
        self.text.push('\n');
    }

    pub(crate) fn indent(&mut self) {
        self.indent += 1;
    }

    pub(crate) fn dedent(&mut self) {
        self.indent -= 1;
    }

    /// Everything since the last time; `ok` if that is nothing.
    pub(crate) fn take(&mut self) -> String {
        self.indent = 0;
        let text = std::mem::take(&mut self.text);
        if text.is_empty() { "ok".to_owned() } else { text.trim_end().to_owned() }
    }
}
