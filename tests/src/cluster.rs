//! Three nodes on loopback, of Quorate or of the peer.

use std::env;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::network::Network;
use crate::process::Process;
use crate::programs::{self, Etcd};
use crate::relay::Relays;
use crate::{client, http, ports, wait};

/// How long nodes may take to serve. Certificates, disks and elections take about two seconds.
const READY_BOUND: Duration = Duration::from_secs(60);

/// What runs on the nodes.
#[derive(Debug, Clone)]
enum Kind {
    Quorate { certificates: PathBuf },
    Etcd(Etcd),
}

/// A cluster of three nodes, `n1` to `n3`, and those that join it. Its processes and its data are gone when it is
/// dropped; when that happens because a test fails, its data and its logs are kept.
pub struct Cluster {
    /// The nodes, in order.
    pub nodes: Vec<Node>,
    kind: Kind,
    /// Names and peer addresses of the nodes that it began with.
    founders: Vec<(String, String)>,
    /// Given to every node on top.
    args: Vec<String>,
    /// What lies between the nodes, if their links can be cut.
    relays: Option<Relays>,
    /// Where its nodes run, if each has a network of its own.
    network: Option<Network>,
    dir: TempDir,
}

/// One node: its process, if it runs, and its addresses.
pub struct Node {
    /// `n1`, `n2`, `n3`.
    pub name: String,
    /// Where clients connect, `host:port`.
    pub client: String,
    /// Where other nodes connect, `host:port`.
    pub peer: String,
    /// Where health and metrics are served, `host:port`.
    pub metrics: String,
    /// The data directory.
    pub data: PathBuf,
    /// It joins the cluster, or did: the cluster did not begin with it, or not with this directory.
    pub joins: bool,
    /// Environment variables of its own.
    pub env: Vec<(String, OsString)>,
    /// The process, while the node is started.
    pub process: Option<Process>,
}

impl Cluster {
    /// A fresh cluster of Quorate that serves; of the peer if `QUORATE_STAND_IN=etcd` is set, and none if
    /// that cannot be had (see [`programs::etcd`]).
    ///
    /// # Panics
    /// When it does not come to serve.
    pub fn quorate(test: &str) -> Option<Self> {
        Self::quorate_with(test, &[])
    }

    /// As [`Self::quorate`], with `args` for every node; both programs must know them.
    ///
    /// # Panics
    /// When it does not come to serve.
    pub fn quorate_with(test: &str, args: &[&str]) -> Option<Self> {
        let mut cluster = Self::prepare(test, args)?;
        cluster.start_all();
        Some(cluster)
    }

    /// As [`Self::quorate_with`], but nothing is started yet, so that a node's data may be put elsewhere, or
    /// its process be started in another way.
    ///
    /// # Panics
    /// When certificates cannot be made.
    pub fn prepare(test: &str, args: &[&str]) -> Option<Self> {
        let mut cluster = if env::var_os("QUORATE_STAND_IN").is_some_and(|value| value == "etcd") {
            let programs = programs::etcd(test)?;
            Self::new(|_| Kind::Etcd(programs))
        } else {
            Self::new(|dir| Kind::Quorate { certificates: dir.join("certificates") })
        };
        cluster.args = args.iter().map(|&arg| arg.to_owned()).collect();
        cluster.make_certificates();
        Some(cluster)
    }

    /// As [`Self::quorate`], with links between the nodes that can be cut; never of the peer, whose nodes speak
    /// over TCP.
    ///
    /// # Panics
    /// When it does not come to serve.
    pub fn relayed() -> Self {
        let mut cluster = Self::new(|dir| Kind::Quorate { certificates: dir.join("certificates") });
        cluster.make_certificates();
        for (_, peer) in &mut cluster.founders {
            *peer = format!("127.0.0.1:{}", ports::free());
        }
        let parse = |address: &String| address.parse().expect("an address");
        let known = cluster.founders.iter().map(|(_, peer)| parse(peer));
        let listens = cluster.nodes.iter().map(|node| parse(&node.peer));
        cluster.relays = Some(Relays::start(listens.zip(known).collect()));
        cluster.start_all();
        cluster
    }

    /// The links between the nodes.
    ///
    /// # Panics
    /// When this cluster was not made with such.
    pub fn relays(&self) -> &Relays {
        self.relays.as_ref().expect("its links can be cut")
    }

    /// As [`Self::quorate`], on the nodes of `network`, as its hub; never of the peer.
    ///
    /// # Panics
    /// When it does not come to serve.
    pub fn networked(network: Network) -> Self {
        let mut cluster = Self::new(|dir| Kind::Quorate { certificates: dir.join("certificates") });
        for (number, node) in cluster.nodes.iter_mut().enumerate() {
            let at = |address: String| format!("{address}:{}", ports::free());
            node.client = at(Network::client_address(number));
            node.metrics = at(Network::client_address(number));
            node.peer = at(Network::peer_address(number));
        }
        let founder = |node: &Node| (node.name.clone(), node.peer.clone());
        cluster.founders = cluster.nodes.iter().map(founder).collect();
        cluster.network = Some(network);
        cluster.make_certificates();
        cluster.start_all();
        cluster
    }

    /// The network of the nodes.
    ///
    /// # Panics
    /// When they have none of their own.
    pub fn network(&self) -> &Network {
        self.network.as_ref().expect("its nodes have networks of their own")
    }

    /// A fresh cluster of the peer that serves.
    ///
    /// # Panics
    /// When it does not come to serve.
    pub fn etcd(programs: Etcd) -> Self {
        Self::etcd_with(programs, &[])
    }

    /// As [`Self::etcd`], with `args` for every node.
    ///
    /// # Panics
    /// When it does not come to serve.
    pub fn etcd_with(programs: Etcd, args: &[&str]) -> Self {
        let mut cluster = Self::new(|_| Kind::Etcd(programs));
        cluster.args = args.iter().map(|&arg| arg.to_owned()).collect();
        cluster.start_all();
        cluster
    }

    fn new(kind: impl FnOnce(&Path) -> Kind) -> Self {
        Self::sized(3, kind)
    }

    /// So many nodes of Quorate, whatever stands in for it elsewhere. Nothing is started yet.
    ///
    /// # Panics
    /// When certificates cannot be made.
    pub fn prepare_sized(count: usize) -> Self {
        let cluster =
            Self::sized(count, |dir| Kind::Quorate { certificates: dir.join("certificates") });
        cluster.make_certificates();
        cluster
    }

    fn sized(count: usize, kind: impl FnOnce(&Path) -> Kind) -> Self {
        let dir = TempDir::with_prefix("quorate-test-").expect("a temporary directory can be made");
        let nodes: Vec<_> =
            (1..=count).map(|number| Node::new(&format!("n{number}"), dir.path())).collect();
        let founder = |node: &Node| (node.name.clone(), node.peer.clone());
        let founders = nodes.iter().map(founder).collect();
        let kind = kind(dir.path());
        Self { nodes, kind, founders, args: Vec::new(), relays: None, network: None, dir }
    }

    /// A further node of Quorate with a certificate, which has to be added before it is started. Returns
    /// its number.
    ///
    /// # Panics
    /// When its certificate cannot be made.
    pub fn further_node(&mut self, name: &str) -> usize {
        let node = Node { joins: true, ..Node::new(name, self.dir.path()) };
        if let Kind::Quorate { certificates } = &self.kind {
            make_certificate(certificates, name);
        }
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Deletes the data of node `number`, which does not run; it joins when it is started again.
    ///
    /// # Panics
    /// When it runs, or the system refuses.
    pub fn wipe(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        assert!(node.process.is_none(), "{} runs", node.name);
        std::fs::remove_dir_all(&node.data).expect("its directory can be deleted");
        node.joins = true;
    }

    /// `quorate member` with `args`, asked of node `asked`: the exit code and what it said.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn member(&self, asked: usize, args: &[&str]) -> (Option<i32>, String) {
        let mut command = quorate();
        command.arg("member").args(args).args(["--endpoints", &self.nodes[asked].client]);
        run_command(&mut command)
    }

    /// `quorate backup` of node `asked` into `out`: the exit code and what it said.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn backup(&self, asked: usize, out: &Path, args: &[&str]) -> (Option<i32>, String) {
        let mut command = quorate();
        command.args(["backup", "--endpoints", &self.nodes[asked].client]).args(args);
        run_command(command.arg("--out").arg(out))
    }

    /// `quorate restore` of `from` into the data directory of node `number`: the exit code and what it said.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn restore(&self, number: usize, from: &Path, args: &[&str]) -> (Option<i32>, String) {
        let node = &self.nodes[number];
        let members: Vec<_> =
            self.founders.iter().map(|(name, peer)| format!("{name}={peer}")).collect();
        let mut command = quorate();
        command.args(["restore", "--name", &node.name]).arg("--data-dir").arg(&node.data);
        command.args(["--initial-cluster", &members.join(",")]).args(args);
        run_command(command.arg("--from").arg(from))
    }

    /// Waits until node `number` ends by itself; returns its exit code and its log.
    ///
    /// # Panics
    /// When it does not run, or does not end.
    pub fn wait_end(&mut self, number: usize) -> (Option<i32>, String) {
        let mut process = self.nodes[number].process.take().expect("the node runs");
        let status = process.wait(READY_BOUND);
        (status.code(), process.log())
    }

    /// Whether this is Quorate, and not the peer.
    pub fn is_quorate(&self) -> bool {
        matches!(self.kind, Kind::Quorate { .. })
    }

    /// The directory that holds everything of this cluster.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The client endpoints, `host:port`.
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.client.clone()).collect()
    }

    /// Starts every node that does not run and waits until all serve.
    ///
    /// # Panics
    /// When one does not.
    pub fn start_all(&mut self) {
        for number in 0..self.nodes.len() {
            self.start(number);
        }
        for number in 0..self.nodes.len() {
            self.wait_ready(number);
        }
    }

    /// Starts node `number`, counted from 0, unless it runs.
    ///
    /// # Panics
    /// When the program cannot be started.
    pub fn start(&mut self, number: usize) {
        if self.nodes[number].process.is_some() {
            return;
        }
        let mut command = self.command(number);
        let log = self.dir.path().join(format!("{}.log", self.nodes[number].name));
        let node = &mut self.nodes[number];
        let mut start = || Process::start(&node.name, &mut command, &log);
        node.process = Some(match &self.network {
            Some(network) => network.node(number).within(start),
            None => start(),
        });
    }

    /// The command that starts node `number`.
    ///
    /// # Panics
    /// When the program is not built.
    pub fn command(&self, number: usize) -> Command {
        let node = &self.nodes[number];
        let members = |scheme: &str| {
            let member = |(name, peer): &(String, String)| format!("{name}={scheme}{peer}");
            self.founders.iter().map(member).collect::<Vec<_>>().join(",")
        };
        match &self.kind {
            Kind::Quorate { certificates } => {
                let mut command = quorate();
                command.args(["serve", "--name", &node.name]).arg("--data-dir").arg(&node.data);
                command.args(["--listen-client", &node.client, "--listen-peer", &node.peer]);
                command.args(["--listen-metrics", &node.metrics]);
                match node.joins {
                    true => command.args(["--join", &members("")]),
                    false => command.args(["--initial-cluster", &members("")]),
                };
                let file = |end: &str| certificates.join(format!("{}.{end}", node.name));
                command.arg("--cert").arg(file("crt")).arg("--key").arg(file("key"));
                command.arg("--ca").arg(certificates.join("ca.crt"));
                command.args(&self.args).envs(node.env.iter().map(|(key, value)| (key, value)));
                command
            }
            Kind::Etcd(programs) => {
                let mut command = Command::new(programs.program("etcd"));
                let (client, peer) = (url(&node.client), url(&node.peer));
                command.args(["--name", &node.name]).arg("--data-dir").arg(&node.data);
                command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
                command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
                command.args(["--listen-metrics-urls", &url(&node.metrics)]);
                command.args(["--initial-cluster", &members("http://"), "--log-level", "error"]);
                command.args(&self.args);
                command
            }
        }
    }

    /// Waits until node `number` serves.
    ///
    /// # Panics
    /// When it ends, or does not serve for a minute.
    pub fn wait_ready(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let process = node.process.as_mut().expect("the node was started");
        let path = match self.kind {
            Kind::Quorate { .. } => "/readyz",
            Kind::Etcd(_) => "/health",
        };
        wait::until(&format!("{} serves", node.name), READY_BOUND, || {
            if let Some(status) = process.ended() {
                panic!("{} ended with {status}:\n{}", node.name, process.log());
            }
            match http::get(&node.metrics, path)? {
                (200, _) => Ok(()),
                (status, body) => Err(format!("{path} says {status} {body}")),
            }
        });
    }

    /// `kill -9` of node `number`.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self, number: usize) {
        let mut process = self.nodes[number].process.take().expect("the node runs");
        process.kill();
    }

    /// Stops node `number` for `time`, then lets it go on.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pause(&self, number: usize, time: Duration) {
        self.nodes[number].process.as_ref().expect("the node runs").pause(time);
    }

    /// Stops node `number` for good, see [`Process::freeze`].
    ///
    /// # Panics
    /// When it does not run.
    pub fn freeze(&self, number: usize) {
        self.nodes[number].process.as_ref().expect("the node runs").freeze();
    }

    /// The number of the node that leads the data group, as every running node sees it.
    ///
    /// # Panics
    /// When they do not come to agree.
    pub fn leader(&self) -> usize {
        let running = || self.nodes.iter().enumerate().filter(|(_, node)| node.process.is_some());
        wait::until("a leader that all agree on", READY_BOUND, || {
            let mut leader = None;
            let mut found = None;
            for (number, node) in running() {
                let status = client::status(&node.client).map_err(|status| status.to_string())?;
                let own = status.header.as_ref().map_or(0, |header| header.member_id);
                if status.leader == 0 || *leader.get_or_insert(status.leader) != status.leader {
                    return Err(format!("{} sees {:x}", node.name, status.leader));
                }
                if own == status.leader {
                    found = Some(number);
                }
            }
            found.ok_or_else(|| "the leader does not run".to_owned())
        })
    }

    /// The value of a metric of node `number` that has one row; none while it cannot be asked.
    pub fn metric(&self, number: usize, name: &str) -> Option<f64> {
        let (_, page) = http::get(&self.nodes[number].metrics, "/metrics").ok()?;
        let row = page.lines().find(|line| line.split([' ', '{']).next() == Some(name))?;
        row.rsplit(' ').next()?.parse().ok()
    }

    /// One put through node `number`, tried until it is acknowledged.
    ///
    /// # Panics
    /// When none is.
    pub fn write_through(&self, number: usize) {
        let node = &self.nodes[number];
        wait::until(&format!("a write through {}", node.name), READY_BOUND, || {
            client::put(&node.client, b"written", b"through").map_err(|status| status.to_string())
        });
    }

    /// Waits until a linearizable read through node `number` is answered: it has caught up.
    ///
    /// # Panics
    /// When none is.
    pub fn await_read(&self, number: usize) {
        let node = &self.nodes[number];
        wait::until(&format!("a read through {}", node.name), READY_BOUND, || {
            client::get(&node.client, b"any").map(drop).map_err(|status| status.to_string())
        });
    }

    /// The revision of the store.
    ///
    /// # Panics
    /// When no linearizable read is answered.
    pub fn revision(&self) -> i64 {
        wait::until("a linearizable read", READY_BOUND, || {
            let running = self.nodes.iter().filter(|node| node.process.is_some());
            let mut answers = running.map(|node| client::get(&node.client, b"any"));
            // One that does not answer is not the only one.
            let first = answers.next().expect("a node runs");
            let answer = first.or_else(|error| answers.find_map(Result::ok).ok_or(error));
            let answer = answer.map_err(|status| status.to_string())?;
            answer.header.map(|header| header.revision).ok_or_else(|| "no header".to_owned())
        })
    }

    /// Waits until node `number` serves, or ends by itself: then its exit code.
    ///
    /// # Panics
    /// When it does neither.
    pub fn wait_ready_or_ended(&mut self, number: usize) -> Result<(), Option<i32>> {
        let node = &mut self.nodes[number];
        let process = node.process.as_mut().expect("the node was started");
        wait::until(&format!("{} serves or ends", node.name), READY_BOUND, || {
            if let Some(status) = process.ended() {
                return Ok(Err(status.code()));
            }
            match http::get(&node.metrics, "/readyz")? {
                (200, _) => Ok(Ok(())),
                (status, body) => Err(format!("/readyz says {status} {body}")),
            }
        })
    }

    /// Waits until `name` is a voter, as node `asked` has it.
    ///
    /// # Panics
    /// When it does not become one.
    pub fn await_vote(&self, asked: usize, name: &str) {
        wait::until(&format!("{name} votes"), READY_BOUND, || {
            let members = client::members(&self.nodes[asked].client);
            let members = members.map_err(|status| status.to_string())?;
            let votes = members.iter().any(|member| member.name == name && !member.is_learner);
            if votes { Ok(()) } else { Err(format!("{members:?}")) }
        });
    }

    fn make_certificates(&self) {
        let Kind::Quorate { certificates } = &self.kind else { return };
        make_ca(certificates);
        for node in &self.nodes {
            make_certificate(certificates, &node.name);
        }
    }
}

fn run_command(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().expect("quorate runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The processes first: nobody writes there any more.
        for node in &mut self.nodes {
            node.process = None;
        }
        if std::thread::panicking() {
            self.dir.disable_cleanup(true);
            // Nothing is left to do when standard error is closed.
            let _ = writeln!(std::io::stderr(), "--- kept: {}", self.dir.path().display());
        }
    }
}

impl Node {
    fn new(name: &str, dir: &Path) -> Self {
        let address = || format!("127.0.0.1:{}", ports::free());
        Self {
            name: name.to_owned(),
            client: address(),
            peer: address(),
            metrics: address(),
            data: dir.join(name),
            joins: false,
            env: Vec::new(),
            process: None,
        }
    }
}

/// `quorate`, free of settings that this test's environment happens to hold.
///
/// # Panics
/// When it is not built.
pub fn quorate() -> Command {
    let mut command = Command::new(programs::quorate());
    for (key, _) in env::vars_os() {
        if key.to_str().is_some_and(|key| key.starts_with("QUORATE_")) {
            command.env_remove(key);
        }
    }
    command
}

/// Makes a certificate authority in `dir`.
///
/// # Panics
/// When `quorate cert ca` fails.
pub fn make_ca(dir: &Path) {
    run(quorate().args(["cert", "ca", "--dir"]).arg(dir));
}

/// Makes the certificate of node `name` by the authority in `dir`.
///
/// # Panics
/// When `quorate cert node` fails.
pub fn make_certificate(dir: &Path, name: &str) {
    run(quorate().args(["cert", "node", "--name", name, "--dir"]).arg(dir));
}

/// Runs a command that must succeed.
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {said}", output.status);
}

fn url(address: &str) -> String {
    format!("http://{address}")
}
