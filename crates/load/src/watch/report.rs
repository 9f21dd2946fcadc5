//! What a run prints: for people, or as one JSON object.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;

use super::verdict::{Fate, Verdict};
use super::{Counts, EVENT, PUT, Shared};
use crate::Fault;
use crate::call::Failure;
use crate::process::{Sample, Servers};
use crate::report::{self, Latency};

/// Resident memory of all servers together, bytes.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Memory {
    /// Before the first connection.
    pub(super) before_bytes: u64,
    /// When all watchers were there and had idled.
    pub(super) watching_bytes: u64,
    /// When the last event had come.
    pub(super) ended_bytes: u64,
}

/// Everything that a run came to.
#[derive(Serialize)]
pub(super) struct Report {
    workload: &'static str,
    streams: usize,
    /// On all streams.
    watchers: usize,
    /// Further streams, which do not read.
    stuck: usize,
    keys: u64,
    scheduled_rate: f64,
    acknowledged: u64,
    failed: u64,
    errors: BTreeMap<String, u64>,
    /// From when a put was due to its answer.
    put_latency_ms: Latency,
    /// From when a put was due to the arrival of its event at a watcher; one for each watcher.
    event_latency_ms: Latency,
    events: Verdict,
    /// Streams that ended before the run did, by why.
    broken_streams: BTreeMap<String, u64>,
    /// CPU of all server processes over measured puts, events included, microseconds, when pids were given.
    server_cpu_us_per_put: Option<f64>,
    client_cpu_us_per_put: f64,
    servers: Vec<Sample>,
    memory: Option<Memory>,
}

impl Report {
    /// Sums a run up.
    pub(super) fn new(
        shared: &Shared,
        counts: &Counts,
        events: Verdict,
        broken: &[Failure],
        servers: &Servers,
        client_us: u64,
        memory: Option<Memory>,
    ) -> Self {
        let plan = &shared.plan;
        let [puts, arrivals] = [PUT, EVENT].map(|one| &counts.tally.latency_us[one]);
        let per_put = |us: u64| us as f64 / puts.len().max(1) as f64;
        let server_us = servers.processes.iter().map(|sample| sample.cpu_us).sum();
        let mut broken_streams = BTreeMap::new();
        for failure in broken {
            *broken_streams.entry(failure.to_string()).or_default() += 1;
        }
        let acknowledged = counts.fates.iter().filter(|fate| **fate == Fate::Acknowledged).count();
        Self {
            workload: "watch",
            streams: plan.streams,
            watchers: plan.streams * plan.watchers,
            stuck: shared.args.stuck,
            keys: plan.keys,
            scheduled_rate: shared.args.rate,
            acknowledged: acknowledged as u64,
            failed: counts.tally.errors.values().sum(),
            errors: counts.tally.errors.clone(),
            put_latency_ms: Latency::of(puts),
            event_latency_ms: Latency::of(arrivals),
            events,
            broken_streams,
            server_cpu_us_per_put: (!servers.processes.is_empty()).then(|| per_put(server_us)),
            client_cpu_us_per_put: per_put(client_us),
            servers: servers.processes.clone(),
            memory,
        }
    }

    /// Whether there were events, and every one came as it must, on streams that lasted.
    pub(super) fn is_clean(&self) -> bool {
        self.acknowledged > 0 && self.events.is_clean() && self.broken_streams.is_empty()
    }

    /// Prints to standard output.
    ///
    /// # Errors
    /// When standard output is closed.
    pub(super) fn print(&self, json: bool) -> Result<(), Fault> {
        report::print(self, json, |out| self.text(out))
    }

    fn text(&self, out: &mut impl Write) -> io::Result<()> {
        let Self { streams, watchers, keys, scheduled_rate, acknowledged, .. } = self;
        writeln!(
            out,
            "watch, {watchers} watchers of {keys} keys on {streams} streams, {scheduled_rate} puts/s scheduled"
        )?;
        if self.stuck > 0 {
            writeln!(out, "  {} further streams do not read", self.stuck)?;
        }
        writeln!(out, "  {acknowledged} puts acknowledged")?;
        let Verdict { expected, delivered, missing, repeated, disordered, unexpected } =
            &self.events;
        writeln!(
            out,
            "  {delivered} of {expected} events delivered: {missing} missing, {repeated} repeated, \
             {disordered} out of order, {unexpected} unexpected"
        )?;
        self.event_latency_ms.text(out, "event latency, from when its put was due,")?;
        self.put_latency_ms.text(out, "put latency, from when it was due,")?;
        writeln!(out, "  client CPU {:.1} us/put", self.client_cpu_us_per_put)?;
        if let Some(us) = self.server_cpu_us_per_put {
            writeln!(out, "  server CPU {us:.1} us/put, with its events")?;
        }
        if let Some(Memory { before_bytes, watching_bytes, ended_bytes }) = self.memory {
            let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
            let each = watching_bytes.saturating_sub(before_bytes) / (*watchers as u64).max(1);
            writeln!(
                out,
                "  servers' memory {:.1} MiB before, {:.1} MiB with the watchers, {each} bytes for each; {:.1} MiB in the end",
                mib(before_bytes),
                mib(watching_bytes),
                mib(ended_bytes)
            )?;
        }
        for (kind, count) in &self.errors {
            writeln!(out, "  {count} puts failed: {kind}")?;
        }
        for (why, count) in &self.broken_streams {
            writeln!(out, "  {count} streams ended: {why}")?;
        }
        Ok(())
    }
}
