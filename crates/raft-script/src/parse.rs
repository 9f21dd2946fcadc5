//! Reads scripts: stanzas of a command line, an optional body, `----`, and the expected output up
//! to a blank line. Output that contains blank lines stands between two pairs of `----`.
//!
//! ```text
//! # A comment, kept as it is.
//! add-nodes 3 voters=(1,2,3) index=2
//! ----
//! ok
//! ```

use std::fmt::Write as _;

use crate::error::ScriptError;

/// A whole script.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Script {
    /// In order.
    pub stanzas: Vec<Stanza>,
    /// Comments and blank lines after the last stanza.
    pub trailer: String,
}

/// One command with what it is expected to print.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stanza {
    /// Comments and blank lines before it, verbatim.
    pub header: String,
    /// The number of its command line, from 1.
    pub line: usize,
    /// The command.
    pub command: Line,
    /// Further commands that belong to the stanza, one a line.
    pub body: Vec<Line>,
    /// What it prints, without the last line's end.
    pub expected: String,
}

/// A command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// As written.
    pub text: String,
    /// The first word.
    pub name: String,
    /// The others.
    pub args: Vec<Arg>,
}

/// `key`, `key=value` or `key=(value,value)`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arg {
    /// The word, or what stands before the `=`.
    pub key: String,
    /// `None` without an `=`.
    pub values: Option<Vec<String>>,
}

const SEPARATOR: &str = "----";

impl Script {
    /// Reads a script.
    ///
    /// # Errors
    /// [`ScriptError::Syntax`] with the line where it is malformed.
    pub fn parse(text: &str) -> Result<Self, ScriptError> {
        let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line)).peekable();
        let (mut stanzas, mut header) = (Vec::new(), String::new());
        while let Some((number, line)) = lines.next() {
            if line.trim().is_empty() || line.starts_with('#') {
                header.push_str(line);
                header.push('\n');
                continue;
            }
            let command = Line::parse(line, number)?;
            let mut body = Vec::new();
            loop {
                match lines.next() {
                    Some((_, SEPARATOR)) => break,
                    Some((number, line)) => body.push(Line::parse(line, number)?),
                    None => return Err(syntax(number, "a command without ----")),
                }
            }
            let has_blanks = lines.next_if(|&(_, line)| line == SEPARATOR).is_some();
            let mut expected: Vec<&str> = Vec::new();
            loop {
                match lines.next() {
                    Some((_, SEPARATOR)) if has_blanks => {
                        if lines.next().is_none_or(|(_, line)| line != SEPARATOR) {
                            return Err(syntax(number, "output that does not end with two ----"));
                        }
                        lines.next_if(|(_, line)| line.is_empty());
                        break;
                    }
                    Some((_, "")) | None if !has_blanks => break,
                    Some((_, line)) => expected.push(line),
                    None => return Err(syntax(number, "output without an end")),
                }
            }
            stanzas.push(Stanza {
                header: std::mem::take(&mut header),
                line: number,
                command,
                body,
                expected: expected.join("\n"),
            });
        }
        Ok(Self { stanzas, trailer: header })
    }

    /// The script as text, so that a run can rewrite its expectations.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        for Stanza { header, command, body, expected, .. } in &self.stanzas {
            text.push_str(header);
            for line in std::iter::once(command).chain(body) {
                text.push_str(&line.text);
                text.push('\n');
            }
            let has_blanks = expected.split('\n').any(str::is_empty) && !expected.is_empty();
            let fence = if has_blanks { "----\n----\n" } else { "----\n" };
            let end = if has_blanks { fence } else { "" };
            let newline = if expected.is_empty() { "" } else { "\n" };
            writeln!(text, "{fence}{expected}{newline}{end}").expect("strings take everything");
        }
        text.push_str(&self.trailer);
        let end = text.trim_end().len();
        text.truncate(end);
        text.push('\n');
        text
    }
}

impl Line {
    fn parse(text: &str, number: usize) -> Result<Self, ScriptError> {
        let mut words = split_words(text, number)?.into_iter();
        let name = words.next().ok_or_else(|| syntax(number, "an empty command"))?;
        let args = words.map(|word| Arg::parse(&word)).collect();
        Ok(Self { text: text.to_owned(), name, args })
    }
}

impl Arg {
    fn parse(word: &str) -> Self {
        let Some((key, value)) = word.split_once('=') else {
            return Self { key: word.to_owned(), values: None };
        };
        let inner = value.strip_prefix('(').and_then(|value| value.strip_suffix(')'));
        let values = match inner {
            Some(list) => list
                .split([',', ' '])
                .map(str::trim)
                .filter(|value| !value.is_empty())
                .map(str::to_owned)
                .collect(),
            None => vec![value.to_owned()],
        };
        Self { key: key.to_owned(), values: Some(values) }
    }
}

/// Splits at blanks outside of parentheses.
fn split_words(text: &str, number: usize) -> Result<Vec<String>, ScriptError> {
    let (mut words, mut word, mut depth) = (Vec::new(), String::new(), 0_usize);
    for letter in text.chars() {
        match letter {
            '(' => depth += 1,
            ')' => {
                depth = depth.checked_sub(1).ok_or_else(|| syntax(number, "an unopened )"))?;
            }
            _ => {}
        }
        if letter.is_whitespace() && depth == 0 {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
        } else {
            word.push(letter);
        }
    }
    if depth > 0 {
        return Err(syntax(number, "an unclosed ("));
    }
    if !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

fn syntax(line: usize, problem: &'static str) -> ScriptError {
    ScriptError::Syntax { line, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Why.\n\nadd-nodes 3 voters=(1,2, 3) index=2\n----\nok\n\npropose 1 foo\n\
                        tick-heartbeat 1\n----\n----\na\n\nb\n----\n----\n\n# The end.\n";

    #[test]
    fn a_script_reads_back_as_it_was_written() {
        let script = Script::parse(TEXT).expect("a script");
        assert_eq!(script.stanzas.len(), 2);
        assert_eq!(script.stanzas[0].line, 3);
        let voters = Some(vec!["1".to_owned(), "2".to_owned(), "3".to_owned()]);
        assert_eq!(script.stanzas[0].command.args[1].values, voters);
        assert_eq!(script.stanzas[1].body.len(), 1);
        assert_eq!(script.stanzas[1].expected, "a\n\nb");
        assert_eq!(script.render(), TEXT);
    }

    #[test]
    fn malformed_scripts_name_their_line() {
        for (text, line) in [("a\n", 1), ("\nb (\n----\n", 2), ("c\n----\n----\nx\n", 1)] {
            match Script::parse(text) {
                Err(ScriptError::Syntax { line: found, .. }) => assert_eq!(found, line, "{text:?}"),
                other => panic!("{text:?} gave {other:?}"),
            }
        }
    }
}
