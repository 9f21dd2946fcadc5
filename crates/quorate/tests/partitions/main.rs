//! The contract of etcd while the links between nodes fail: both ways, one way, in a ring, or with losses and delay.
//! The nodes run in this process over real sockets and disks, and the test shapes what lies between them; the contract
//! checker is the program that everybody has.

mod nodes;

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use quorate_api::etcdserverpb::StatusRequest;
use quorate_api::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_node::Shape;
use quorate_types::NodeId;
use serde_json::Value;
use tonic::transport::Endpoint;

use self::nodes::Nodes;

/// How long links fail: a few elections. The time is the fault, not a wait for something.
const AWAY: Duration = Duration::from_secs(3);

const CUT: Shape = Shape { delay: Duration::ZERO, loss: 0.0, cut: true };

/// What the checker must have seen some of.
const SEEN: [&str; 5] = ["calls", "events", "resumed", "lease_calls", "holds"];

/// Who leads the keyspace, as the node at `endpoint` has it.
async fn leader(endpoint: &str) -> Option<NodeId> {
    let channel = Endpoint::from_shared(format!("http://{endpoint}")).expect("an address");
    let mut client = MaintenanceClient::new(channel.connect_lazy());
    let status = client.status(StatusRequest::default()).await.ok()?.into_inner();
    (status.leader != 0).then_some(NodeId(status.leader))
}

/// The checker beside the nodes; nothing when it is not built.
struct Check(Option<Child>);

impl Check {
    fn start(nodes: &Nodes, dir: &Path) -> Option<Self> {
        let program = Path::new(env!("CARGO_BIN_EXE_quorate")).with_file_name("quorate-load");
        if !program.exists() {
            assert!(
                std::env::var_os("REQUIRE_PEERS").is_none(),
                "{} is missing",
                program.display()
            );
            let missing = program.display();
            writeln!(std::io::stderr(), "skipped: {missing} is not built").expect("it can be said");
            return None;
        }
        let mut command = Command::new(program);
        command.args(["--check", "--json", "--endpoints", &nodes.endpoints.join(",")]);
        command.args(["--round", "8s", "--rate", "300", "--seed", "1"]);
        command.args(["--until-input-ends", "--seconds", "3600"]);
        command.arg("--history").arg(dir.join("history.jsonl"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Some(Self(Some(command.spawn().expect("it starts"))))
    }

    /// Ends it, and looks at what it says.
    async fn kept(mut self) {
        let child = self.0.take().expect("it runs");
        let ended = tokio::task::spawn_blocking(|| child.wait_with_output());
        let output = ended.await.expect("no panic").expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        let report: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"));
        assert_eq!(output.status.code(), Some(0), "{report:#}\n{said}");
        for what in SEEN {
            assert!(report[what].as_u64() > Some(0), "no {what}: {report:#}");
        }
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // A failed test leaves no load behind; it may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_is_kept_while_links_fail_in_every_direction() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let nodes = Nodes::start(3, dir.path()).await;
    let Some(check) = Check::start(&nodes, dir.path()) else { return nodes.stop().await };
    let id = |place: usize| nodes.ids[place % 3];
    for fault in 0..6 {
        let leader = nodes.leader().await;
        let (one, other) = (id(leader + 1), id(leader + 2));
        let leader = id(leader);
        let (link, lost) = (&nodes.links.shaped, nodes.links.lost());
        match fault {
            // It hears everybody, and nobody hears it.
            0 => [one, other].into_iter().for_each(|to| link.set(leader, to, CUT)),
            // It is heard, and hears nobody.
            1 => [one, other].into_iter().for_each(|from| link.set(from, leader, CUT)),
            // Two of three do not hear each other.
            2 => link.set_both(leader, one, CUT),
            // Everybody hears one, and is heard by the other one.
            3 => [(leader, one), (one, other), (other, leader)]
                .into_iter()
                .for_each(|(from, to)| link.set(from, to, CUT)),
            // All hear each other badly.
            4 => {
                let bad = Shape { delay: Duration::from_millis(20), loss: 0.2, cut: false };
                [(leader, one), (one, other), (other, leader)]
                    .into_iter()
                    .for_each(|(from, to)| link.set_both(from, to, bad));
            }
            // Nobody hears anybody.
            _ => [(leader, one), (one, other), (other, leader)]
                .into_iter()
                .for_each(|(from, to)| link.set_both(from, to, CUT)),
        }
        tokio::time::sleep(AWAY).await;
        link.heal();
        assert!(nodes.links.lost() > lost, "fault {fault} lost nothing");
        nodes.await_reads().await;
    }
    check.kept().await;
    nodes.stop().await;
}
