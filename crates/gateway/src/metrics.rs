//! The gateway's counters, but for those of calls.

use std::sync::Arc;

use metrics::{Counter, Gauge, Key, Level, Metadata, Recorder, Unit};

use crate::calls::Calls;

/// Handles of one gateway.
pub(crate) struct GatewayMetrics {
    /// Calls by method and code.
    pub(crate) calls: Arc<Calls>,
    /// Connections that are open.
    pub(crate) connections: Gauge,
    /// Connections that were ever accepted.
    pub(crate) connections_total: Counter,
    /// Connections that ended before they had said which protocol they speak.
    pub(crate) connections_mute_total: Counter,
    /// Connections that were ended because their clients pinged too often.
    pub(crate) connections_pinging_total: Counter,
    /// JSON requests that were refused for what they say, or for their size.
    pub(crate) json_refused_total: Counter,
    /// TLS on the client port.
    pub(crate) tls: TlsMetrics,
    /// Passwords that are hashed or wait for it.
    pub(crate) logins_waiting: Gauge,
    /// Calls that were refused because of who made them.
    pub(crate) denied_total: Counter,
}

/// Handles of TLS on the client port.
#[derive(Clone)]
pub(crate) struct TlsMetrics {
    /// Handshakes under way.
    pub(crate) handshakes: Gauge,
    /// Handshakes that ended in a connection.
    pub(crate) handshakes_total: Counter,
    /// Handshakes that ended otherwise: a wrong certificate, no TLS at all, out of time.
    pub(crate) handshakes_failed_total: Counter,
    /// Handshakes that were ended to make room for others.
    pub(crate) handshakes_cut_total: Counter,
    /// Changes of the files that were taken up.
    pub(crate) reloads_total: Counter,
    /// Changes of the files that could not be.
    pub(crate) reloads_failed_total: Counter,
    /// When the server's certificate ends, in seconds since 1970.
    pub(crate) certificate_expires_s: Gauge,
}

/// Handles of the watches; etcd's names.
pub(crate) struct WatchMetrics {
    pub(crate) streams: Gauge,
    pub(crate) watchers: Gauge,
    pub(crate) slow_watchers: Gauge,
    pub(crate) pending_events: Gauge,
    pub(crate) events_total: Counter,
}

impl WatchMetrics {
    pub(crate) fn new(recorder: &dyn Recorder) -> Self {
        let register = Register { recorder };
        let gauge = |name: &'static str, text: &'static str| {
            recorder.describe_gauge(name.into(), Some(Unit::Count), text.into());
            register.gauge(name)
        };
        let events = "etcd_debugging_mvcc_events_total";
        recorder.describe_counter(
            events.into(),
            Some(Unit::Count),
            "Events sent to clients that watch.".into(),
        );
        Self {
            streams: gauge(
                "etcd_debugging_mvcc_watch_stream_total",
                "Watch streams that are open.",
            ),
            watchers: gauge("etcd_debugging_mvcc_watcher_total", "Watchers."),
            slow_watchers: gauge(
                "etcd_debugging_mvcc_slow_watcher_total",
                "Watchers that are behind and read what they lack from the disk.",
            ),
            pending_events: gauge(
                "etcd_debugging_mvcc_pending_events_total",
                "Events that wait to be sent.",
            ),
            events_total: register.counter(events),
        }
    }
}

/// Handles of the places in queues that are taken back.
#[derive(Clone)]
pub(crate) struct UndoMetrics {
    /// Places that are being taken back, or wait for it.
    pub(crate) count: Gauge,
    /// Places that nobody took back in time, or that could not be.
    pub(crate) failed_total: Counter,
    /// Places for which there was no room.
    pub(crate) refused_total: Counter,
}

impl UndoMetrics {
    pub(crate) fn new(recorder: &dyn Recorder) -> Self {
        let register = Register { recorder };
        let counter = |name: &'static str, text: &'static str| {
            recorder.describe_counter(name.into(), Some(Unit::Count), text.into());
            register.counter(name)
        };
        let count = "quorate_gateway_undos_count";
        recorder.describe_gauge(
            count.into(),
            Some(Unit::Count),
            "Places of ended calls in queues of locks and elections that are being taken back."
                .into(),
        );
        Self {
            count: register.gauge(count),
            failed_total: counter(
                "quorate_gateway_undos_failed_total",
                "Places of ended calls that stay until their leases end, since taking them back failed.",
            ),
            refused_total: counter(
                "quorate_gateway_undos_refused_total",
                "Places of ended calls that stay until their leases end, since too many were being taken back.",
            ),
        }
    }
}

impl GatewayMetrics {
    pub(crate) fn new(recorder: &dyn Recorder) -> Self {
        let register = Register { recorder };
        register.describe();
        Self {
            calls: Arc::new(Calls::new(recorder)),
            connections: register.gauge("quorate_gateway_connections_count"),
            connections_total: register.counter("quorate_gateway_connections_total"),
            connections_mute_total: register.counter("quorate_gateway_connections_mute_total"),
            connections_pinging_total: register
                .counter("quorate_gateway_connections_pinging_total"),
            json_refused_total: register.counter("quorate_gateway_json_refused_total"),
            tls: TlsMetrics {
                handshakes: register.gauge("quorate_gateway_tls_handshakes_count"),
                handshakes_total: register.counter("quorate_gateway_tls_handshakes_total"),
                handshakes_failed_total: register
                    .counter("quorate_gateway_tls_handshakes_failed_total"),
                handshakes_cut_total: register.counter("quorate_gateway_tls_handshakes_cut_total"),
                reloads_total: register.counter("quorate_gateway_tls_reloads_total"),
                reloads_failed_total: register.counter("quorate_gateway_tls_reloads_failed_total"),
                certificate_expires_s: register
                    .gauge("quorate_gateway_tls_certificate_expires_timestamp_seconds"),
            },
            logins_waiting: register.gauge("quorate_gateway_logins_waiting_count"),
            denied_total: register.counter("quorate_gateway_denied_total"),
        }
    }
}

/// Makes handles.
struct Register<'r> {
    recorder: &'r dyn Recorder,
}

impl Register<'_> {
    const METADATA: Metadata<'static> =
        Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

    fn describe(&self) {
        let counter = |name: &'static str, text: &'static str| {
            self.recorder.describe_counter(name.into(), Some(Unit::Count), text.into());
        };
        counter("quorate_gateway_connections_total", "Client connections accepted.");
        counter(
            "quorate_gateway_connections_mute_total",
            "Client connections that ended before they spoke a known protocol.",
        );
        counter(
            "quorate_gateway_connections_pinging_total",
            "Client connections ended because their clients pinged too often.",
        );
        counter(
            "quorate_gateway_json_refused_total",
            "JSON requests refused for what they say or for their size.",
        );
        counter("quorate_gateway_tls_handshakes_total", "TLS handshakes of clients completed.");
        counter("quorate_gateway_tls_handshakes_failed_total", "TLS handshakes of clients failed.");
        counter(
            "quorate_gateway_tls_handshakes_cut_total",
            "TLS handshakes of clients ended to make room for others.",
        );
        counter("quorate_gateway_tls_reloads_total", "Changed certificates taken up.");
        counter(
            "quorate_gateway_tls_reloads_failed_total",
            "Changed certificates that cannot be used.",
        );
        let gauge = |name: &'static str, unit: Unit, text: &'static str| {
            self.recorder.describe_gauge(name.into(), Some(unit), text.into());
        };
        gauge(
            "quorate_gateway_tls_handshakes_count",
            Unit::Count,
            "TLS handshakes of clients under way.",
        );
        gauge(
            "quorate_gateway_tls_certificate_expires_timestamp_seconds",
            Unit::Seconds,
            "When the client port's certificate ends, in seconds since 1970; 0 without TLS.",
        );
        counter("quorate_gateway_denied_total", "Calls refused because of who made them.");
        gauge(
            "quorate_gateway_logins_waiting_count",
            Unit::Count,
            "Passwords that are hashed or wait for it.",
        );
        self.recorder.describe_gauge(
            "quorate_gateway_connections_count".into(),
            Some(Unit::Count),
            "Client connections that are open.".into(),
        );
    }

    fn counter(&self, name: &'static str) -> Counter {
        self.recorder.register_counter(&Key::from_name(name), &Self::METADATA)
    }

    fn gauge(&self, name: &'static str) -> Gauge {
        self.recorder.register_gauge(&Key::from_name(name), &Self::METADATA)
    }
}
