//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::keys::Distribution;

/// Load, latency and loss checks against any etcd v3 endpoints.
#[derive(Debug, Parser)]
#[command(name = "quorate-load", version, about)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Put values under keys of the key space.
    Put(Load),
    /// Get single keys.
    Get(Get),
    /// Gets and puts.
    Mixed(Mixed),
    /// Read ranges of neighbouring keys.
    Range(Range),
    /// Transactions: compare a key's version, then put it, else get it.
    Txn(Load),
    /// Grant many leases, keep all of them alive, and look that none is lost.
    Leases(Leases),
    /// Many watchers of few keys, and puts on a schedule: how late events are, and whether each came.
    Watch(Watch),
    /// Record every acknowledged write, watch reads for going backwards, then look for every write.
    Verify(Verify),
    /// Load servers, record what they answer, and check it against etcd's contract: linearizable keys, watches
    /// without gaps, leases that last, locks with one holder. Also as `--check`.
    #[command(long_flag = "check")]
    Check(Check),
    /// Serve constant answers to KV calls: the ceiling of a gRPC door on this machine.
    Ceiling(Ceiling),
}

/// Where the servers are.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Target {
    /// Client endpoints, `host:port` or `http://host:port`, comma separated. Connections take them in turn.
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:2379")]
    pub(crate) endpoints: Vec<String>,
    /// How long a client waits for one answer. A call that is given up counts as an error.
    #[arg(long, value_parser = duration, default_value = "10s")]
    pub(crate) timeout: Duration,
}

/// What every load workload takes.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Load {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Clients: closed loop, calls in flight at any time; open loop, the most that may be in flight.
    #[arg(long, default_value_t = 64)]
    pub(crate) clients: usize,
    /// Connections, spread over the endpoints; clients take them in turn. 0: one for every 64 clients,
    /// and at least one for each endpoint.
    #[arg(long, default_value_t = 0)]
    pub(crate) connections: usize,
    /// Worker threads, each with its own share of clients and connections.
    #[arg(long, default_value_t = 1)]
    pub(crate) threads: usize,
    /// Open loop: operations per second on a fixed schedule. Latency counts from the scheduled start, so
    /// a server that stalls pays for every call that it delayed.
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// Keys in the key space.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) keys: u64,
    /// Bytes of every key.
    #[arg(long, default_value_t = 32)]
    pub(crate) key_size: usize,
    /// What every key begins with.
    #[arg(long, default_value = "load/")]
    pub(crate) prefix: String,
    /// Bytes of every value.
    #[arg(long, default_value_t = 256)]
    pub(crate) value_size: usize,
    /// Which keys are taken: `uniform`, `sequential`, or `zipf(0.99)`.
    #[arg(long, default_value = "uniform")]
    pub(crate) distribution: Distribution,
    /// How long to measure (after the warm-up), unless --total is given.
    #[arg(long, value_parser = duration, default_value = "10s")]
    pub(crate) duration: Duration,
    /// Measure this many operations instead of a time.
    #[arg(long)]
    pub(crate) total: Option<u64>,
    /// How long to run before the measurement begins.
    #[arg(long, value_parser = duration, default_value = "1s")]
    pub(crate) warmup: Duration,
    /// Do not put missing keys first, for workloads that read.
    #[arg(long)]
    pub(crate) no_fill: bool,
    /// Process ids of the servers: their CPU per operation and memory are reported.
    #[arg(long, value_delimiter = ',')]
    pub(crate) pids: Vec<u32>,
    /// Seed of keys and values.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `get`.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Get {
    #[command(flatten)]
    pub(crate) load: Load,
    /// `l` (linearizable) or `s` (serializable).
    #[arg(long, value_enum, default_value_t = Consistency::L)]
    pub(crate) consistency: Consistency,
}

/// `mixed`.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Mixed {
    #[command(flatten)]
    pub(crate) load: Load,
    /// The share of gets, 0 to 1.
    #[arg(long, default_value_t = 0.5, value_parser = ratio)]
    pub(crate) read_ratio: f64,
    /// `l` (linearizable) or `s` (serializable) gets.
    #[arg(long, value_enum, default_value_t = Consistency::L)]
    pub(crate) consistency: Consistency,
}

/// `range`.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Range {
    #[command(flatten)]
    pub(crate) load: Load,
    /// Neighbouring keys in one range.
    #[arg(long, default_value_t = 100)]
    pub(crate) span: u64,
    /// `l` (linearizable) or `s` (serializable).
    #[arg(long, value_enum, default_value_t = Consistency::L)]
    pub(crate) consistency: Consistency,
}

/// `leases`.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Leases {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Leases.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) leases: u64,
    /// The time to live that they ask for, in seconds. Each is kept alive three times in that time, spread evenly.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(i64).range(1..))]
    pub(crate) ttl: i64,
    /// Clients that grant: grants in flight at any time.
    #[arg(long, default_value_t = 64)]
    pub(crate) clients: usize,
    /// Keep-alive streams; leases take them in turn.
    #[arg(long, default_value_t = 64)]
    pub(crate) streams: usize,
    /// Connections for grants and as many for streams, spread over the endpoints. 0: one for every 8 streams, and
    /// at least one for each endpoint.
    #[arg(long, default_value_t = 0)]
    pub(crate) connections: usize,
    /// How long to keep them alive once all are granted.
    #[arg(long, value_parser = duration, default_value = "60s")]
    pub(crate) duration: Duration,
    /// Process ids of the servers: their CPU and memory are reported.
    #[arg(long, value_delimiter = ',')]
    pub(crate) pids: Vec<u32>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `watch`.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Watch {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Watch streams, spread over the connections.
    #[arg(long, default_value_t = 100)]
    pub(crate) streams: usize,
    /// Watchers on each stream; each watches one key.
    #[arg(long, default_value_t = 10)]
    pub(crate) watchers: usize,
    /// Watchers of each key, on different streams where there are enough: there are so many fewer keys than
    /// watchers.
    #[arg(long, default_value_t = 10)]
    pub(crate) watchers_per_key: usize,
    /// Streams beside these, each on a connection of its own, that watch everything from the prefix on and do not read
    #[arg(long, default_value_t = 0)]
    pub(crate) stuck: usize,
    /// Puts per second on a fixed schedule, to one watched key after the other.
    #[arg(long, default_value_t = 1_000.0)]
    pub(crate) rate: f64,
    /// Puts that may be in flight. Beyond, they are sent late, and their latency still counts from when they
    /// were due.
    #[arg(long, default_value_t = 256)]
    pub(crate) clients: usize,
    /// Connections for streams, spread over the endpoints; puts have as many as there are endpoints. 0: one for
    /// every 10 streams, and at least one for each endpoint.
    #[arg(long, default_value_t = 0)]
    pub(crate) connections: usize,
    /// How long to put, after the warm-up.
    #[arg(long, value_parser = duration, default_value = "10s")]
    pub(crate) duration: Duration,
    /// How long to put before latency is measured.
    #[arg(long, value_parser = duration, default_value = "1s")]
    pub(crate) warmup: Duration,
    /// How long the watchers have nothing to do before the first put; then the servers' memory is compared with
    /// that before the first connection.
    #[arg(long, value_parser = duration, default_value = "0s")]
    pub(crate) idle: Duration,
    /// How long to wait for events after the last put.
    #[arg(long, value_parser = duration, default_value = "10s")]
    pub(crate) settle: Duration,
    /// Bytes of every key.
    #[arg(long, default_value_t = 32)]
    pub(crate) key_size: usize,
    /// What every key begins with.
    #[arg(long, default_value = "watch/")]
    pub(crate) prefix: String,
    /// Bytes of every value, at least 8.
    #[arg(long, default_value_t = 256)]
    pub(crate) value_size: usize,
    /// Process ids of the servers: their CPU and memory are reported.
    #[arg(long, value_delimiter = ',')]
    pub(crate) pids: Vec<u32>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `verify`.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Verify {
    /// Client endpoints, `host:port` or `http://host:port`, comma separated. Clients move on to the next
    /// one after an error.
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:2379")]
    pub(crate) endpoints: Vec<String>,
    /// How long a client waits for one answer before it gives the call up as unknown. It is short,
    /// because it also bounds how finely the pause after a kill is seen.
    #[arg(long, value_parser = duration, default_value = "300ms")]
    pub(crate) timeout: Duration,
    /// Writers; each owns one key, and its writes to it follow one another.
    #[arg(long, default_value_t = 32)]
    pub(crate) writers: usize,
    /// Readers of random keys, linearizable.
    #[arg(long, default_value_t = 8)]
    pub(crate) readers: usize,
    /// Bytes of every value, at least 24.
    #[arg(long, default_value_t = 64)]
    pub(crate) value_size: usize,
    /// What every key begins with; the run adds a number of its own.
    #[arg(long, default_value = "verify/")]
    pub(crate) prefix: String,
    /// How long to write. With --marks, the most.
    #[arg(long, value_parser = duration, default_value = "10s")]
    pub(crate) duration: Duration,
    /// Take every line of standard input as the moment of a fault, named by the line: the longest pause
    /// between acknowledged writes that follows is reported for each. The end of the input ends the run.
    #[arg(long)]
    pub(crate) marks: bool,
    /// Write what was acknowledged to this file.
    #[arg(long)]
    pub(crate) record: Option<PathBuf>,
    /// Do not write: only look for what this file says was acknowledged.
    #[arg(long, conflicts_with_all = ["record", "marks"])]
    pub(crate) check: Option<PathBuf>,
    /// End after the workload, without looking for the writes (the servers may be gone).
    #[arg(long, requires = "record")]
    pub(crate) no_check: bool,
    /// Look through every endpoint, not only through any one that answers.
    #[arg(long)]
    pub(crate) every_endpoint: bool,
    /// How long the final check waits for servers that do not answer.
    #[arg(long, value_parser = duration, default_value = "30s")]
    pub(crate) settle: Duration,
    /// Seed of the readers' choices.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `check`.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Check {
    /// Client endpoints, `host:port` or `http://host:port`, comma separated. Clients move on to the next
    /// one after an error; watchers move on every now and then.
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:2379")]
    pub(crate) endpoints: Vec<String>,
    /// How long a client waits for one answer before it gives the call up as unknown.
    #[arg(long, value_parser = duration, default_value = "1s")]
    pub(crate) timeout: Duration,
    /// How long to run; rounds follow each other until then.
    #[arg(long, default_value_t = 10)]
    pub(crate) seconds: u64,
    /// End when standard input ends, for who knows better when it is enough; --seconds is then the most.
    #[arg(long)]
    pub(crate) until_input_ends: bool,
    /// How long a round lasts. Each has keys of its own, and is judged by itself.
    #[arg(long, value_parser = duration, default_value = "10s")]
    pub(crate) round: Duration,
    /// Records of one round, which ends when there are so many: this bounds the memory, at about 300 bytes
    /// a record.
    #[arg(long, default_value_t = 200_000)]
    pub(crate) records_max: usize,
    /// Calls on keys per second; 0 for as many as there can be.
    #[arg(long, default_value_t = 1_000)]
    pub(crate) rate: u64,
    /// Keys that are read and written.
    #[arg(long, default_value_t = 8)]
    pub(crate) keys: usize,
    /// Clients that read and write them.
    #[arg(long, default_value_t = 8)]
    pub(crate) clients: usize,
    /// Watchers.
    #[arg(long, default_value_t = 8)]
    pub(crate) watchers: usize,
    /// Clients that keep leases, let them end, or revoke them.
    #[arg(long, default_value_t = 4)]
    pub(crate) leases: usize,
    /// Clients that take locks. Half of them use the service `Lock`, if it is served.
    #[arg(long, default_value_t = 4)]
    pub(crate) lockers: usize,
    /// The time to live that leases ask for, in seconds.
    #[arg(long, default_value_t = 2)]
    pub(crate) ttl: i64,
    /// How long servers may take to answer at the end of a round, and watchers to come to it.
    #[arg(long, value_parser = duration, default_value = "30s")]
    pub(crate) settle: Duration,
    /// What every key begins with; the run adds a number of its own.
    #[arg(long, default_value = "check/")]
    pub(crate) prefix: String,
    /// Known defects of the server that are not to be found again, comma separated.
    #[arg(long, value_delimiter = ',')]
    pub(crate) except: Vec<Exception>,
    /// Write what was recorded to this file, one record a line.
    #[arg(long)]
    pub(crate) history: Option<PathBuf>,
    /// Call nobody: only judge what this file holds.
    #[arg(long, conflicts_with = "history")]
    pub(crate) judge: Option<PathBuf>,
    /// Seed of all choices.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A known defect of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Exception {
    /// etcd before 3.4.25 and 3.5.8 answers a progress request at once, also when events up to the answer's
    /// revision are still to come. None is sent.
    ProgressRequests,
}

/// `ceiling`.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Ceiling {
    /// Address to serve on; port 0 takes a free one, and the address is printed.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(crate) listen: std::net::SocketAddr,
    /// Worker threads; 1 is a current-thread runtime.
    #[arg(long, default_value_t = 1)]
    pub(crate) threads: usize,
    /// Bytes of the value in the answer to a get.
    #[arg(long, default_value_t = 256)]
    pub(crate) value_size: usize,
}

/// How a read is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Consistency {
    /// Linearizable: sees every write that was acknowledged before it began.
    L,
    /// Serializable: from the replica that is asked, as far as it has come.
    S,
}

impl Consistency {
    pub(crate) fn is_serializable(self) -> bool {
        self == Self::S
    }
}

/// Reads `250ms`, `10s`, `2m`, `1h` or plain seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match &text[digits.len()..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        unit => return Err(format!("unknown unit {unit}: one of us, ms, s, m, h")),
    };
    let count: f64 = digits.parse().map_err(|_| format!("{text} is not a duration such as 10s"))?;
    Duration::try_from_secs_f64(count * scale).map_err(|error| error.to_string())
}

/// Reads a share between 0 and 1.
fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        Ok(_) | Err(_) => Err("a share between 0 and 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1500)));
        assert!(duration("3d").is_err());
        assert!(duration("-1s").is_err());
        assert!(duration("").is_err());
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
