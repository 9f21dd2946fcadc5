//! The life of a node's engine, on its own thread.

use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusRecorder;
use quorate_node::{Engine, EngineConfig, Expelled, OpenError};
use tokio::sync::{oneshot, watch};

use crate::alarms;
use crate::etcd_metrics::EtcdMetrics;
use crate::shutdown::Stop;
use crate::wiring::{self, EngineBackend};

/// Who else stops when a node does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    /// Nobody: the others take its leaderships over.
    Alone,
    /// All others: there is nobody to hand anything to.
    WithCluster,
}

/// The life of the engine's thread: open, hand the engine out, wait for the end, shut down.
pub(crate) async fn run_engine(
    config: EngineConfig,
    recorder: Arc<PrometheusRecorder>,
    quota_bytes: Option<u64>,
    open: oneshot::Sender<Result<EngineBackend, OpenError>>,
    expelled: watch::Sender<Option<Expelled>>,
    stop: Stop,
    ending: Ending,
) {
    let (kinds, auth) = wiring::kinds();
    let shown = EtcdMetrics::new(&*recorder);
    let opened = tokio::select! {
        opened = Engine::open(config, kinds, &*recorder) => opened,
        () = stop.requested() => return,
    };
    let engine = match opened {
        Ok(engine) => {
            engine.label_later_peers(recorder);
            Arc::new(engine)
        }
        Err(error) => {
            // Whoever asked may have gone: then nobody wants to know.
            drop(open.send(Err(error)));
            return;
        }
    };
    let (backend, measure) = EngineBackend::new(Arc::clone(&engine), quota_bytes, auth);
    drop(open.send(Ok(backend)));
    let note_expulsion = async {
        expelled.send_replace(Some(engine.expelled().await));
        // Whoever hears of it stops this part in its turn.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = measure.run(&engine) => {}
        () = alarms::tell_of_corruption(&engine) => {}
        () = shown.run(&engine) => {}
        () = note_expulsion => {}
        () = stop.requested() => {}
    }
    match Arc::into_inner(engine) {
        Some(engine) => match ending {
            Ending::Alone => engine.shutdown().await,
            Ending::WithCluster => engine.shutdown_with_cluster().await,
        },
        // The gateway's thread is stuck with a request. What was acknowledged is on disk.
        None => tracing::error!("the engine is still in use and is not shut down cleanly"),
    }
}
