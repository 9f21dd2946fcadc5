//! What etcd's `--auto-compaction-mode` and `--auto-compaction-retention` say together.

use std::time::Duration;

use quorate_gateway::compaction::Retention;

use super::values::{Span, Value};

/// The least time that history is kept: more often nobody needs to compact.
const PERIOD_MIN: Duration = Duration::from_secs(1);

/// Reads both; without them, and with a length of 0, all history is kept.
///
/// # Errors
/// The setting that is wrong, and in which way.
pub(super) fn retention(
    mode: Option<&str>,
    length: Option<&str>,
) -> Result<Option<Retention>, (&'static str, String)> {
    const LENGTH: &str = "auto-compaction-retention";
    let length = length.unwrap_or("0");
    let wrong = |expected: &str| (LENGTH, format!("must be {expected}, found {length:?}"));
    match mode.unwrap_or("periodic") {
        "periodic" => {
            let expected = "hours, or a length of time such as \"20m\", of a second at least";
            // As etcd: a bare number means hours.
            let period = match length.parse::<u32>() {
                Ok(hours) => Duration::from_secs(3_600) * hours,
                Err(_) => Span::from_text(length).map_err(|_| wrong(expected))?.0,
            };
            match period {
                Duration::ZERO => Ok(None),
                period if period >= PERIOD_MIN => Ok(Some(Retention::Period(period))),
                _ => Err(wrong(expected)),
            }
        }
        "revision" => match length.parse::<i64>() {
            Ok(0) => Ok(None),
            Ok(kept @ 1..) => Ok(Some(Retention::Revisions(kept))),
            Ok(_) | Err(_) => Err(wrong("a count of revisions")),
        },
        mode => {
            let what = format!("must be periodic or revision, found {mode:?}");
            Err(("auto-compaction-mode", what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_is_read_as_etcd_reads_it() {
        let period = |seconds| Ok(Some(Retention::Period(Duration::from_secs(seconds))));
        assert_eq!(retention(None, None), Ok(None));
        assert_eq!(retention(None, Some("0")), Ok(None));
        assert_eq!(retention(None, Some("1")), period(3_600));
        assert_eq!(retention(Some("periodic"), Some("10m")), period(600));
        assert_eq!(retention(Some("revision"), Some("1000")), Ok(Some(Retention::Revisions(1000))));
        assert_eq!(retention(Some("revision"), None), Ok(None));
    }

    #[test]
    fn what_is_no_retention_is_refused() {
        for (mode, length) in [
            (None, "x"),
            (None, "10ms"),
            (None, "-1"),
            (Some("revision"), "1h"),
            (Some("revision"), "-5"),
            (Some("hourly"), "1"),
        ] {
            assert!(retention(mode, Some(length)).is_err(), "{mode:?} {length}");
        }
    }
}
