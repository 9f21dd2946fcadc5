//! Log lines on stderr, for people or as JSON.

use std::io::IsTerminal;

use tracing::Dispatch;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::values::LogFormat;

/// Sends events that pass `filter` to stderr for the rest of the process's life. `filter` was checked
/// when the settings were read; one that cannot be read lets `info` pass. A second call does nothing.
pub fn start(format: LogFormat, filter: &str) {
    let set = lines(format, filter, std::io::stderr, std::io::stderr().is_terminal()).try_init();
    // Something else in the process (a test's own subscriber) was first.
    drop(set);
}

/// Events that pass `filter` as lines for `writer`.
fn lines<W>(format: LogFormat, filter: &str, writer: W, ansi: bool) -> Dispatch
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(ansi);
    match format {
        LogFormat::Human => lines.with_target(false).finish().into(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).finish().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What is logged of three events.
    fn logged(format: LogFormat, filter: &str) -> String {
        let written = Arc::new(Mutex::new(Vec::new()));
        let writer = Arc::clone(&written);
        let writer = move || Written(Arc::clone(&writer));
        tracing::dispatcher::with_default(&lines(format, filter, writer, false), || {
            tracing::info!(target: "audit", user = "u", verdict = "allowed", "audit");
            tracing::info!("little");
            tracing::warn!("much");
        });
        let written = written.lock().expect("nobody panics with it").clone();
        String::from_utf8(written).expect("lines are text")
    }

    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("nobody panics with it").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_audit_log_is_shown_beside_warnings_and_can_be_told_from_them() {
        let human = logged(LogFormat::Human, "warn,audit=info");
        let lines: Vec<_> = human.lines().collect();
        assert_eq!(lines.len(), 2, "{human}");
        assert!(lines[0].contains("INFO audit user=\"u\" verdict=\"allowed\""), "{human}");
        assert!(lines[1].contains("WARN much"), "{human}");
        let json = logged(LogFormat::Json, "error,audit=info");
        let line: serde_json::Value = serde_json::from_str(&json).expect("one object");
        assert_eq!((&line["target"], &line["user"]), (&"audit".into(), &"u".into()), "{json}");
        assert!(!logged(LogFormat::Human, "warn").contains("audit"));
    }
}
