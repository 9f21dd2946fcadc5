//! Metrics of one node, and the metrics port's answers while the node starts.
//!
//! Several nodes may live in one process, so each has a recorder of its own that it is handed as a value;
//! there is no global one.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// How often what histograms have gathered is moved into their buckets: else memory would grow between
/// scrapes, or for ever where nobody scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Connections to the metrics port at a time while the node starts; further ones wait.
const STARTING_CONNECTIONS_MAX: usize = 16;

/// How long such a connection may take to send its request.
const STARTING_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The metrics of one node.
pub struct Exporter {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
}

impl Exporter {
    /// A recorder for the node called `node`; every sample carries that name.
    ///
    /// # Errors
    /// Never with the buckets of this file.
    pub fn new(node: &str) -> Result<Self, BuildError> {
        let suffix = |end: &str| Matcher::Suffix(end.to_owned());
        let recorder = PrometheusBuilder::new()
            .add_global_label("node", node)
            .set_buckets_for_metric(suffix("_seconds"), &powers(2.0, 50e-6, 19))?
            .set_buckets_for_metric(suffix("_bytes"), &powers(4.0, 64.0, 12))?
            .set_buckets(&powers(2.0, 1.0, 14))?
            .build_recorder();
        let handle = recorder.handle();
        Ok(Self { recorder: Arc::new(recorder), handle })
    }

    /// What the parts of the node register their metrics with.
    #[must_use]
    pub fn recorder(&self) -> Arc<PrometheusRecorder> {
        Arc::clone(&self.recorder)
    }

    /// Renders the page that is scraped, in Prometheus' text format.
    #[must_use]
    pub fn page(&self) -> Arc<dyn Fn() -> String + Send + Sync> {
        let handle = self.handle.clone();
        Arc::new(move || {
            let mut page = handle.render();
            if let Some(bytes) = resident_bytes() {
                page.push_str(&resident_memory(bytes));
            }
            page
        })
    }

    /// Keeps histograms small; runs until it is dropped.
    pub async fn upkeep(&self) {
        loop {
            tokio::time::sleep(UPKEEP_INTERVAL).await;
            self.handle.run_upkeep();
        }
    }

    /// Answers the metrics port while the node starts, until it is dropped: alive, not ready, and the
    /// metrics so far. A start may take as long as the other nodes are away, and a supervisor that hears
    /// nothing would kill the node in the midst of it.
    pub async fn answer_while_starting(&self, listener: &TcpListener) {
        let free = Arc::new(Semaphore::new(STARTING_CONNECTIONS_MAX));
        let mut open = JoinSet::new();
        loop {
            let accepted = async {
                let permit = Arc::clone(&free).acquire_owned().await.ok()?;
                let (stream, _) = listener.accept().await.ok()?;
                Some((stream, permit))
            };
            let accepted = tokio::select! {
                Some(_) = open.join_next() => continue,
                accepted = accepted => accepted,
            };
            let Some((stream, permit)) = accepted else {
                // Out of file descriptors, say: no reason to spin.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let page = self.page();
            open.spawn(async move {
                let answer = service_fn(move |request: Request<Incoming>| {
                    let response = starting(request.uri().path(), &page);
                    async move { Ok::<_, Infallible>(response) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(STARTING_REQUEST_TIMEOUT)
                    // The gateway takes the port over: nothing may linger here.
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), answer);
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection to the metrics port ended badly");
                }
                drop(permit);
            });
        }
    }
}

/// Memory of the process, as every Prometheus client library names it: `etcdctl check datascale` reads it here.
/// It is no node's, and etcdctl expects it without labels.
fn resident_memory(bytes: u64) -> String {
    format!(
        "# HELP process_resident_memory_bytes Resident memory size in bytes.\n\
         # TYPE process_resident_memory_bytes gauge\n\
         process_resident_memory_bytes {bytes}\n"
    )
}

/// Resident memory of this process; none where the system does not tell. The kernel answers from memory, so
/// this blocks nobody.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The answer to `path` while the node starts.
fn starting(path: &str, page: &Arc<dyn Fn() -> String + Send + Sync>) -> Response<Full<Bytes>> {
    let (status, body) = match path {
        "/metrics" => (StatusCode::OK, page()),
        "/livez" => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, "starting\n".to_owned()),
        "/health" => (
            StatusCode::SERVICE_UNAVAILABLE,
            r#"{"health":"false","reason":"STARTING"}"#.to_owned(),
        ),
        _ => (StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
    };
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

/// `count` bucket bounds from `first` on, each `factor` times the one before.
fn powers(factor: f64, first: f64, count: u32) -> Vec<f64> {
    std::iter::successors(Some(first), |bound| Some(bound * factor)).take(count as usize).collect()
}

#[cfg(test)]
mod tests {
    use metrics::{Key, Level, Metadata, Recorder};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    fn exporter_with_samples() -> Exporter {
        let exporter = Exporter::new("n1").unwrap();
        let recorder = exporter.recorder();
        let metadata = Metadata::new("test", Level::INFO, None);
        for (name, value) in [
            ("quorate_test_seconds", 0.0003),
            ("quorate_test_bytes", 300.0),
            ("quorate_test_entries", 3.0),
        ] {
            recorder.register_histogram(&Key::from_static_name(name), &metadata).record(value);
        }
        exporter
    }

    #[test]
    fn histograms_have_buckets_that_fit_their_unit_and_samples_name_the_node() {
        let page = exporter_with_samples().page()();
        for sample in [
            "quorate_test_seconds_bucket{node=\"n1\",le=\"0.0004\"} 1",
            "quorate_test_seconds_bucket{node=\"n1\",le=\"0.0002\"} 0",
            "quorate_test_bytes_bucket{node=\"n1\",le=\"256\"} 0",
            "quorate_test_bytes_bucket{node=\"n1\",le=\"1024\"} 1",
            "quorate_test_entries_bucket{node=\"n1\",le=\"4\"} 1",
        ] {
            assert!(page.contains(sample), "{sample} in {page}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_of_the_process_is_told_without_labels_as_etcdctl_reads_it() {
        let page = exporter_with_samples().page()();
        let key = "process_resident_memory_bytes";
        let value = page.lines().find_map(|line| line.strip_prefix(key)).expect("it is there");
        let bytes: f64 = value.trim().parse().expect("a number and no label");
        assert!(bytes > 1e5, "{bytes}");
    }

    #[test]
    fn buckets_reach_from_microseconds_to_beyond_any_request() {
        let seconds = powers(2.0, 50e-6, 19);
        assert_eq!(seconds.len(), 19);
        assert!(seconds[18] > 10.0, "a request is given up after 7 s");
    }

    #[tokio::test]
    async fn a_starting_node_is_alive_and_not_ready() {
        let exporter = exporter_with_samples();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ask = async {
            for (path, status, body) in [
                ("/livez", 200, "ok"),
                ("/readyz", 503, "starting"),
                ("/health", 503, "\"health\":\"false\""),
                ("/metrics", 200, "quorate_test_seconds"),
                ("/", 404, "not found"),
            ] {
                let mut stream = TcpStream::connect(address).await.unwrap();
                let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
                stream.write_all(request.as_bytes()).await.unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.unwrap();
                assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
                assert!(answer.contains(body), "{path}: {answer}");
            }
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"\x16\x03\x01 random bytes\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
        };
        tokio::select! {
            () = ask => {}
            () = exporter.answer_while_starting(&listener) => unreachable!("it never ends"),
        }
    }
}
