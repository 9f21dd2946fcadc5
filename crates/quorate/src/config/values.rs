//! The types of single settings. Each knows how it is written as text (flags, environment) and in TOML,
//! and the words for what it expects.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

/// A value of some setting.
pub trait Value: Sized {
    /// What is expected, to follow "must be".
    const EXPECTED: &'static str;

    /// Reads the form of flags and environment variables; `Err` says what is wrong with it when
    /// "must be ..." does not.
    ///
    /// # Errors
    /// When the text is not such a value.
    fn from_text(text: &str) -> Result<Self, Wrong>;

    /// Reads the form of a TOML file.
    ///
    /// # Errors
    /// When it is not such a value.
    fn from_toml(value: &DeValue<'_>) -> Result<Self, Wrong> {
        match value {
            DeValue::String(text) => Self::from_text(text),
            other => Err(Wrong::found(kind(other))),
        }
    }
}

/// What is wrong with a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wrong(String);

impl Wrong {
    /// Something else than expected was found.
    fn found(what: impl fmt::Display) -> Self {
        Self(format!("found {what}"))
    }

    /// Text that cannot be read as what is expected.
    fn text(text: &str) -> Self {
        Self::found(format_args!("{text:?}"))
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Makes the parser that clap calls for a value.
pub fn parser<T: Value>(text: &str) -> Result<T, String> {
    T::from_text(text).map_err(|wrong| format!("must be {}, {wrong}", T::EXPECTED))
}

/// What a TOML value is, with its article.
fn kind(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("a string ({text:?})"),
        DeValue::Integer(number) => format!("a whole number ({number})"),
        DeValue::Float(number) => format!("a fraction ({number})"),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

macro_rules! whole_number {
    ($(#[$doc:meta])* $name:ident, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub struct $name(pub u64);

        impl Value for $name {
            const EXPECTED: &'static str = $expected;

            fn from_text(text: &str) -> Result<Self, Wrong> {
                text.parse().map(Self).map_err(|_| Wrong::text(text))
            }

            fn from_toml(value: &DeValue<'_>) -> Result<Self, Wrong> {
                let DeValue::Integer(number) = value else { return Err(Wrong::found(kind(value))) };
                u64::from_str_radix(number.as_str(), number.radix())
                    .map(Self)
                    .map_err(|_| Wrong::found(number.as_str()))
            }
        }
    };
}

whole_number!(
    /// Milliseconds.
    Millis, "a whole number of milliseconds"
);
whole_number!(
    /// Bytes.
    ByteCount, "a whole number of bytes"
);
whole_number!(
    /// How many of something.
    Count, "a whole number"
);

/// Yes or no.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Switch(pub bool);

impl Value for Switch {
    const EXPECTED: &'static str = "true or false";

    fn from_text(text: &str) -> Result<Self, Wrong> {
        text.parse().map(Self).map_err(|_| Wrong::text(text))
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, Wrong> {
        match value {
            DeValue::Boolean(switch) => Ok(Self(*switch)),
            other => Err(Wrong::found(kind(other))),
        }
    }
}

/// Any text that is not empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Text(pub String);

impl Value for Text {
    const EXPECTED: &'static str = "a string that is not empty";

    fn from_text(text: &str) -> Result<Self, Wrong> {
        if text.is_empty() { Err(Wrong::text(text)) } else { Ok(Self(text.to_owned())) }
    }
}

/// The name of a node or of a cluster: it stands in certificates, lists and file names.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Name(pub String);

impl Name {
    /// The longest name in bytes; certificates carry no longer one.
    pub const BYTES_MAX: usize = 64;
}

impl Value for Name {
    const EXPECTED: &'static str = "1 to 64 letters, digits, dots, hyphens and underscores that \
                                    begin with a letter or digit";

    fn from_text(text: &str) -> Result<Self, Wrong> {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if begins && text.len() <= Self::BYTES_MAX && text.bytes().all(inner) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Wrong::text(text))
        }
    }
}

impl Value for PathBuf {
    const EXPECTED: &'static str = "a path";

    fn from_text(text: &str) -> Result<Self, Wrong> {
        if text.is_empty() { Err(Wrong::text(text)) } else { Ok(Self::from(text)) }
    }
}

impl Value for SocketAddr {
    const EXPECTED: &'static str = "an IP address and a port such as 127.0.0.1:2379";

    fn from_text(text: &str) -> Result<Self, Wrong> {
        text.parse().map_err(|_| Wrong::text(text))
    }
}

/// `host:port`, the host being a name or an IP address (IPv6 in brackets). What others are told to dial.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct HostPort(String);

impl HostPort {
    /// The text, `host:port`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self(address.to_string())
    }
}

impl Value for HostPort {
    const EXPECTED: &'static str = "host:port without a scheme, such as db1.example.com:2380";

    fn from_text(text: &str) -> Result<Self, Wrong> {
        let whole = || Self(text.to_owned());
        if let Ok(address) = text.parse::<SocketAddr>() {
            let dialable = address.port() != 0 && !address.ip().is_unspecified();
            return if dialable { Ok(whole()) } else { Err(Wrong::text(text)) };
        }
        let name = |host: &str| {
            !host.is_empty()
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        };
        match text.rsplit_once(':') {
            Some((host, port)) if name(host) && port.parse::<u16>().is_ok_and(|port| port != 0) => {
                Ok(whole())
            }
            _ => Err(Wrong::text(text)),
        }
    }
}

/// `key=value,...`, or a TOML table.
fn pairs(text: &str) -> Result<Vec<(&str, &str)>, Wrong> {
    let pair = |part: &&str| !part.trim().is_empty();
    text.split(',')
        .filter(pair)
        .map(|part| {
            let (key, value) = part.split_once('=').ok_or_else(|| Wrong::text(part.trim()))?;
            Ok((key.trim(), value.trim()))
        })
        .collect()
}

/// The members of a new cluster: name and peer address of each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InitialCluster(pub BTreeMap<Name, HostPort>);

impl InitialCluster {
    fn collect<'p>(pairs: impl IntoIterator<Item = (&'p str, &'p str)>) -> Result<Self, Wrong> {
        let mut members = BTreeMap::new();
        for (name, address) in pairs {
            let member = Name::from_text(name)
                .map_err(|_| Wrong(format!("found the name {name:?}: use {}", Name::EXPECTED)))?;
            let address = HostPort::from_text(address).map_err(|_| {
                Wrong(format!("found {address:?} for {name}: use {}", HostPort::EXPECTED))
            })?;
            if members.values().any(|other| *other == address) {
                return Err(Wrong(format!("found the address {address} twice")));
            }
            if members.insert(member, address).is_some() {
                return Err(Wrong(format!("found the name {name:?} twice")));
            }
        }
        if members.is_empty() { Err(Wrong::found("no member")) } else { Ok(Self(members)) }
    }
}

impl Value for InitialCluster {
    const EXPECTED: &'static str = "a list name=host:port,...";

    fn from_text(text: &str) -> Result<Self, Wrong> {
        Self::collect(pairs(text)?)
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, Wrong> {
        match value {
            DeValue::Table(_) => {
                let table = table(value)?;
                Self::collect(table.iter().map(|(name, at)| (name.as_str(), at.as_str())))
            }
            DeValue::String(text) => Self::from_text(text),
            other => Err(Wrong::found(kind(other))),
        }
    }
}

/// Locality labels of a node.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Labels(pub BTreeMap<String, String>);

impl Labels {
    fn collect<'p>(pairs: impl IntoIterator<Item = (&'p str, &'p str)>) -> Result<Self, Wrong> {
        let word = |text: &str| {
            let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
            (1..=63).contains(&text.len()) && text.bytes().all(inner)
        };
        let mut labels = BTreeMap::new();
        for (key, value) in pairs {
            if !word(key) || !word(value) {
                return Err(Wrong::text(&format!("{key}={value}")));
            }
            if labels.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(Wrong(format!("found {key:?} twice")));
            }
        }
        Ok(Self(labels))
    }
}

impl Value for Labels {
    const EXPECTED: &'static str = "a list key=value,... of short words";

    fn from_text(text: &str) -> Result<Self, Wrong> {
        Self::collect(pairs(text)?)
    }

    fn from_toml(value: &DeValue<'_>) -> Result<Self, Wrong> {
        match value {
            DeValue::Table(_) => {
                let table = table(value)?;
                Self::collect(table.iter().map(|(key, value)| (key.as_str(), value.as_str())))
            }
            DeValue::String(text) => Self::from_text(text),
            other => Err(Wrong::found(kind(other))),
        }
    }
}

/// A TOML table of strings.
fn table(value: &DeValue<'_>) -> Result<Vec<(String, String)>, Wrong> {
    let DeValue::Table(table) = value else { return Err(Wrong::found(kind(value))) };
    table
        .iter()
        .map(|(key, value)| match value.get_ref() {
            DeValue::String(text) => Ok((key.get_ref().to_string(), text.to_string())),
            other => Err(Wrong(format!("found {} at {:?}", kind(other), key.get_ref()))),
        })
        .collect()
}

/// A length of time in Go's notation, as etcd has it: `20s`, `1m30s`, `1.5h`, `500ms`, `0`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Span(pub Duration);

impl Value for Span {
    const EXPECTED: &'static str = "a length of time such as \"20s\" or \"1m30s\"";

    fn from_text(text: &str) -> Result<Self, Wrong> {
        let wrong = || Wrong::text(text);
        if text == "0" {
            return Ok(Self(Duration::ZERO));
        }
        if text.is_empty() {
            return Err(wrong());
        }
        let (mut rest, mut total) = (text, Duration::ZERO);
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
            let (number, tail) = rest.split_at(digits);
            let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit);
            let seconds = match unit {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(wrong()),
            };
            let number: f64 = number.parse().map_err(|_| wrong())?;
            let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
            total = total.checked_add(part).ok_or_else(wrong)?;
            rest = tail;
        }
        Ok(Self(total))
    }
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $expected:literal, { $($(#[$case_doc:meta])* $case:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name {
            $($(#[$case_doc])* $case,)+
        }

        impl Value for $name {
            const EXPECTED: &'static str = $expected;

            fn from_text(text: &str) -> Result<Self, Wrong> {
                match text {
                    $($word => Ok(Self::$case),)+
                    _ => Err(Wrong::text(text)),
                }
            }
        }
    };
}

words!(
    /// Whether an empty data directory starts a new cluster.
    ClusterState, "\"new\" or \"existing\"", {
        /// It does, together with all others of the initial cluster.
        New = "new",
        /// It does not: an empty data directory is an error.
        Existing = "existing",
    }
);
words!(
    /// The form of log lines.
    LogFormat, "\"human\" or \"json\"", {
        /// One line of text for each event.
        Human = "human",
        /// One JSON object for each event.
        Json = "json",
    }
);

/// Which events are logged: a level, or a list of `target=level`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogFilter(pub String);

impl Value for LogFilter {
    const EXPECTED: &'static str =
        "a level (error, warn, info, debug, trace) or a list target=level,...";

    fn from_text(text: &str) -> Result<Self, Wrong> {
        match tracing_subscriber::EnvFilter::builder().parse(text) {
            Ok(_) if !text.is_empty() => Ok(Self(text.to_owned())),
            _ => Err(Wrong::text(text)),
        }
    }
}
