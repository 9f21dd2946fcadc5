//! The listening side: accepting connections, and ending them in good order.
//!
//! The life of a connection: it is accepted while fewer than `max_connections` are open; where the client port
//! has certificates, it agrees on TLS within `handshake_timeout`; it says within
//! `first_bytes_timeout` what it speaks; HTTP/2 goes to the services, everything else to the pages as
//! HTTP/1, where random bytes end as a `400`; when shutdown begins it may finish its open requests, for
//! `shutdown_grace` at most.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use metrics::Recorder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::auth::AuthConfig;
use crate::auth::guard::Guard;
use crate::backend::Backend;
use crate::config::GatewayConfig;
use crate::connection::Connection;
use crate::desk::Desk;
use crate::door::Door;
use crate::http::{MetricsPage, Pages, Port};
use crate::json::{InProcess, JsonGateway, Routes};
use crate::metrics::{GatewayMetrics, UndoMetrics, WatchMetrics};
use crate::ownership::Queues;
use crate::tls::{ClientTls, Handshakes};
use crate::watch::Hub;

/// Pause after a failed accept (out of file descriptors, say), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Time that places of ended calls have to be taken back when the gateway goes down: for a write, not for an
/// election.
const SETTLE_MAX: Duration = Duration::from_secs(1);

/// The front door: etcd's services over a [`Backend`], and the plain pages.
///
/// Handles and services are made once; [`serve`](Self::serve) may run on several listeners and runtimes.
pub struct Gateway<B> {
    config: GatewayConfig,
    metrics: Arc<GatewayMetrics>,
    door: Arc<Door<B>>,
    pages: Arc<Pages<B>>,
    handshakes: Arc<Handshakes>,
    tls: Option<Arc<ClientTls>>,
    hub: Arc<Hub<B>>,
    queues: Arc<Queues<B>>,
}

impl<B: Backend> Gateway<B> {
    /// A gateway over `backend`, whose identity must be settled: ids are read here, once.
    pub fn new(
        backend: Arc<B>,
        config: GatewayConfig,
        metrics_page: MetricsPage,
        recorder: &dyn Recorder,
    ) -> Self {
        Self::with_auth(backend, config, AuthConfig::default(), metrics_page, recorder)
    }

    /// As [`new`](Self::new), with settings of tokens and passwords.
    pub fn with_auth(
        backend: Arc<B>,
        config: GatewayConfig,
        auth: AuthConfig,
        metrics_page: MetricsPage,
        recorder: &dyn Recorder,
    ) -> Self {
        let metrics = Arc::new(GatewayMetrics::new(recorder));
        let guard = Guard::new(auth, &metrics);
        let desk = Arc::new(Desk::new(backend, config, guard));
        let hub = Arc::new(Hub::new(Arc::clone(&desk), WatchMetrics::new(recorder)));
        let queues = Arc::new(Queues::new(Arc::clone(&hub), UndoMetrics::new(recorder)));
        let door = Door::new(Arc::clone(&desk), Arc::clone(&metrics.calls), Arc::clone(&queues));
        let door = Arc::new(door);
        let refused = metrics.json_refused_total.clone();
        let in_process = InProcess(Arc::clone(&door));
        let json = JsonGateway::new(in_process, Routes::of_this_build(), config, refused);
        let tls = &metrics.tls;
        let (under_way, cut) = (tls.handshakes.clone(), tls.handshakes_cut_total.clone());
        Self {
            config,
            door,
            pages: Arc::new(Pages::new(desk, metrics_page, json)),
            handshakes: Arc::new(Handshakes::new(config.max_handshakes, under_way, cut)),
            metrics,
            tls: None,
            hub,
            queues,
        }
    }

    /// The same gateway, whose client port speaks TLS and nothing else. The port of probes never does.
    #[must_use]
    pub fn with_tls(self, tls: ClientTls) -> Self {
        Self { tls: Some(Arc::new(tls)), ..self }
    }

    /// Serves clients until `shutdown` resolves and open requests have ended or their grace is over.
    pub async fn serve(&self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        let follow = async {
            match &self.tls {
                Some(tls) => {
                    let (interval, metrics) = (self.config.tls_reload_interval, &self.metrics.tls);
                    Arc::clone(tls).follow(interval, metrics.clone()).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.accept(listener, shutdown, Port::Client) => {}
            () = follow => {}
        }
    }

    /// Serves probes and scrapers, in the same way and without gRPC.
    pub async fn serve_metrics(&self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        self.accept(listener, shutdown, Port::Metrics).await;
    }

    async fn accept(&self, listener: TcpListener, shutdown: impl Future<Output = ()>, port: Port) {
        let free = Arc::new(Semaphore::new(self.config.max_connections));
        let (close, closing) = watch::channel(());
        let mut open = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                Some(_) = open.join_next() => continue,
                accepted = accept_one(&listener, &free) => accepted,
            };
            match accepted {
                Ok((stream, permit)) => {
                    let connection = self.connection(port, closing.clone());
                    let guard = Open::new(Arc::clone(&self.metrics), permit);
                    open.spawn(async move {
                        connection.run(stream).await;
                        drop(guard);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        if port == Port::Client {
            // Watches, keep-alives and calls that wait for their turn end by themselves only.
            self.hub.close();
        }
        // Every connection holds a receiver; they see this as the word to finish.
        drop(close);
        let finished = async {
            while open.join_next().await.is_some() {}
            if port == Port::Client {
                // Places that nobody takes back so soon stay until their leases end.
                drop(tokio::time::timeout(SETTLE_MAX, self.queues.settle()).await);
            }
        };
        if tokio::time::timeout(self.config.shutdown_grace, finished).await.is_err() {
            tracing::info!("connections were cut off at the end of their grace");
            if port == Port::Client {
                // Nothing of this gateway may hold the backend any longer.
                self.queues.abandon();
            }
        }
    }

    fn connection(&self, port: Port, closing: watch::Receiver<()>) -> Connection<B> {
        Connection {
            port,
            config: self.config,
            metrics: Arc::clone(&self.metrics),
            door: Arc::clone(&self.door),
            pages: Arc::clone(&self.pages),
            handshakes: Arc::clone(&self.handshakes),
            tls: self.tls.clone().filter(|_| port == Port::Client),
            closing,
        }
    }
}

type Permit = tokio::sync::OwnedSemaphorePermit;

/// The next connection, once there is room for one more.
async fn accept_one(
    listener: &TcpListener,
    free: &Arc<Semaphore>,
) -> io::Result<(TcpStream, Permit)> {
    let permit = Arc::clone(free).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

/// An open connection's place among the others; given back however the connection ends.
struct Open {
    metrics: Arc<GatewayMetrics>,
    _permit: Permit,
}

impl Open {
    fn new(metrics: Arc<GatewayMetrics>, permit: Permit) -> Self {
        metrics.connections_total.increment(1);
        metrics.connections.increment(1);
        Self { metrics, _permit: permit }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.connections.decrement(1);
    }
}
