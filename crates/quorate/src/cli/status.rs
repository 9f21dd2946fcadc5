//! `quorate status`: what nodes say of themselves, side by side.
//!
//! Each endpoint answers from its own memory, so a node that is cut off shows what it last knew; the
//! table puts the answers next to each other instead of choosing between them.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_api::quorate::v1::admin_client::AdminClient;
use quorate_api::quorate::v1::{Role, StatusRequest, StatusResponse};
use serde::Serialize;
use tonic::transport::Endpoint;

use super::login::Login;
use super::{Failure, block_on, print};
use crate::shutdown::Exit;
use crate::table::Table;

/// How long an endpoint has to be reached and to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Client addresses of the nodes to ask
    #[arg(
        long,
        value_name = "HOST:PORT,...",
        value_delimiter = ',',
        default_value = "127.0.0.1:2379"
    )]
    endpoints: Vec<String>,
    /// Whom to ask as
    #[command(flatten)]
    login: Login,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When an endpoint gave no answer, after printing those of the others; the exit code is 1.
pub fn run(args: &Args) -> Result<(), Failure> {
    block_on(async {
        let answers = ask_all(&args.endpoints, &args.login).await;
        print(&if args.json { json(&answers) } else { tables(&answers) });
        let silent = answers.iter().filter(|answer| answer.result.is_err()).count();
        if silent == 0 {
            return Ok(());
        }
        let message = format!("{silent} of {} endpoints gave no answer", answers.len());
        Err(Failure::new(Exit::Failed, message))
    })
}

/// What one endpoint said.
struct Answer {
    endpoint: String,
    result: Result<NodeView, String>,
}

/// A node's answer, for JSON and for the tables. Ids are hexadecimal, as etcdctl shows them: JSON's
/// numbers could not hold them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct NodeView {
    id: String,
    name: String,
    version: String,
    ready: bool,
    db_size_bytes: u64,
    /// What is wrong with it.
    errors: Vec<String>,
    cluster_id: String,
    members: Vec<MemberView>,
    groups: Vec<GroupView>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct MemberView {
    id: String,
    name: String,
    peer_addresses: Vec<String>,
    client_addresses: Vec<String>,
    learner: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct GroupView {
    id: u64,
    kind: String,
    role: &'static str,
    leader: Option<String>,
    term: u64,
    commit: u64,
    applied: u64,
    last: u64,
    lag: BTreeMap<String, u64>,
    asleep: bool,
}

async fn ask_all(endpoints: &[String], login: &Login) -> Vec<Answer> {
    let asked: Vec<_> = endpoints
        .iter()
        .map(|endpoint| {
            let (endpoint, login) = (endpoint.trim().to_owned(), login.clone());
            (endpoint.clone(), tokio::spawn(async move { ask(&endpoint, &login).await }))
        })
        .collect();
    let mut answers = Vec::new();
    for (endpoint, asked) in asked {
        let result = asked.await.unwrap_or_else(|error| Err(error.to_string()));
        answers.push(Answer { endpoint, result });
    }
    answers
}

async fn ask(endpoint: &str, login: &Login) -> Result<NodeView, String> {
    let uri = match endpoint.contains("://") {
        true => endpoint.to_owned(),
        false => format!("http://{endpoint}"),
    };
    let channel = Endpoint::from_shared(uri)
        .map_err(|error| error.to_string())?
        .connect_timeout(ANSWER_TIMEOUT)
        .timeout(ANSWER_TIMEOUT)
        .connect()
        .await
        .map_err(|error| in_words(&error))?;
    let words = |status: tonic::Status| format!("{:?}: {}", status.code(), status.message());
    let channel = login.on(channel).await.map_err(words)?;
    let response = AdminClient::new(channel).status(StatusRequest {}).await.map_err(words)?;
    view(response.into_inner()).ok_or_else(|| "the answer names no node".to_owned())
}

/// An error with its causes: tonic's own words are only "transport error".
pub(super) fn in_words(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut words: Vec<_> = causes.map(ToString::to_string).collect();
    words.dedup();
    words.join(": ")
}

fn view(response: StatusResponse) -> Option<NodeView> {
    let (node, cluster) = (response.node?, response.cluster.unwrap_or_default());
    let names: BTreeMap<u64, String> =
        cluster.nodes.iter().map(|member| (member.id, member.name.clone())).collect();
    let name = |id: u64| names.get(&id).cloned().unwrap_or_else(|| hex(id));
    let group = |group: quorate_api::quorate::v1::Group| GroupView {
        role: match group.role() {
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Leader => "leader",
            Role::Learner => "learner",
            Role::Unspecified => "unknown",
        },
        id: group.id,
        leader: (group.leader != 0).then(|| name(group.leader)),
        term: group.term,
        commit: group.commit,
        applied: group.applied,
        last: group.last,
        lag: group.peers.iter().map(|peer| (name(peer.node), peer.lag)).collect(),
        asleep: group.asleep,
        kind: group.kind,
    };
    let member = |member: quorate_api::quorate::v1::ClusterNode| MemberView {
        id: hex(member.id),
        name: member.name,
        peer_addresses: member.peer_addresses,
        client_addresses: member.client_addresses,
        learner: member.learner,
    };
    Some(NodeView {
        id: hex(node.id),
        name: node.name,
        version: node.version,
        ready: node.ready,
        db_size_bytes: node.db_size_bytes,
        errors: node.errors,
        cluster_id: hex(cluster.id),
        groups: response.groups.into_iter().map(group).collect(),
        members: cluster.nodes.into_iter().map(member).collect(),
    })
}

fn hex(id: u64) -> String {
    format!("{id:x}")
}

fn json(answers: &[Answer]) -> String {
    let endpoints: Vec<_> = answers
        .iter()
        .map(|answer| match &answer.result {
            Ok(node) => serde_json::json!({ "endpoint": answer.endpoint, "node": node }),
            Err(error) => serde_json::json!({ "endpoint": answer.endpoint, "error": error }),
        })
        .collect();
    format!("{:#}\n", serde_json::json!({ "endpoints": endpoints }))
}

fn tables(answers: &[Answer]) -> String {
    let mut nodes =
        Table::new(["ENDPOINT", "NODE", "ID", "CLUSTER", "VERSION", "READY", "STATE BYTES"]);
    let mut groups = Table::new([
        "GROUP", "KIND", "NODE", "ROLE", "LEADER", "TERM", "COMMIT", "APPLIED", "LAST", "LAG",
    ]);
    let mut replicas = Vec::new();
    // What does not fit into a table: who is silent, and what is wrong.
    let mut notes = String::new();
    for Answer { endpoint, result } in answers {
        match result {
            Ok(node) => {
                nodes.row([
                    endpoint.clone(),
                    node.name.clone(),
                    node.id.clone(),
                    node.cluster_id.clone(),
                    node.version.clone(),
                    if node.ready { "yes" } else { "no" }.to_owned(),
                    node.db_size_bytes.to_string(),
                ]);
                for error in &node.errors {
                    notes.push_str(&format!("{endpoint}: {error}\n"));
                }
                replicas.extend(node.groups.iter().map(|group| (group.id, &node.name, group)));
            }
            Err(error) => notes.push_str(&format!("{endpoint}: no answer: {error}\n")),
        }
    }
    replicas.sort_by_key(|(id, name, _)| (*id, *name));
    for (id, name, group) in replicas {
        let lag: Vec<_> = group.lag.iter().map(|(peer, lag)| format!("{peer}:{lag}")).collect();
        groups.row([
            id.to_string(),
            group.kind.clone(),
            name.clone(),
            if group.asleep { format!("{}, asleep", group.role) } else { group.role.to_owned() },
            group.leader.clone().unwrap_or_else(|| "-".to_owned()),
            group.term.to_string(),
            group.commit.to_string(),
            group.applied.to_string(),
            group.last.to_string(),
            lag.join(" "),
        ]);
    }
    match nodes.is_empty() {
        true => notes,
        false => format!("{nodes}\n{groups}{notes}"),
    }
}

#[cfg(test)]
mod tests {
    use quorate_api::quorate::v1::{Cluster, ClusterNode, Group, Node, Peer};

    use super::*;

    fn response() -> StatusResponse {
        let member = |id: u64, name: &str| ClusterNode {
            id,
            name: name.to_owned(),
            peer_addresses: vec![format!("{name}:2380")],
            client_addresses: vec![format!("{name}:2379")],
            learner: false,
        };
        StatusResponse {
            node: Some(Node {
                id: 0xabc,
                name: "n1".to_owned(),
                version: "0.1.0".to_owned(),
                ready: true,
                db_size_bytes: 4096,
                errors: vec!["quorate: group 7 is fenced on this node: bad block".to_owned()],
            }),
            cluster: Some(Cluster { id: 0xc1, nodes: vec![member(0xabc, "n1"), member(2, "n2")] }),
            groups: vec![Group {
                id: 2,
                kind: "kv".to_owned(),
                role: Role::Leader.into(),
                leader: 0xabc,
                term: 3,
                commit: 10,
                applied: 10,
                last: 11,
                peers: vec![Peer { node: 2, match_index: 9, lag: 2 }],
                asleep: false,
            }],
        }
    }

    fn answers() -> Vec<Answer> {
        vec![
            Answer { endpoint: "n1:2379".to_owned(), result: Ok(view(response()).unwrap()) },
            Answer { endpoint: "n2:2379".to_owned(), result: Err("refused".to_owned()) },
        ]
    }

    #[test]
    fn the_tables_show_nodes_groups_leaders_terms_and_indexes() {
        let expected = "\
ENDPOINT  NODE  ID   CLUSTER  VERSION  READY  STATE BYTES
n1:2379   n1    abc  c1       0.1.0    yes    4096

GROUP  KIND  NODE  ROLE    LEADER  TERM  COMMIT  APPLIED  LAST  LAG
2      kv    n1    leader  n1      3     10      10       11    n2:2
n1:2379: quorate: group 7 is fenced on this node: bad block
n2:2379: no answer: refused
";
        assert_eq!(tables(&answers()), expected);
    }

    #[test]
    fn the_json_has_the_same_and_names_the_silent() {
        let json: serde_json::Value = serde_json::from_str(&json(&answers())).unwrap();
        let node = &json["endpoints"][0]["node"];
        assert_eq!(node["id"], "abc");
        assert_eq!(node["members"][1]["name"], "n2");
        assert_eq!(node["groups"][0]["leader"], "n1");
        assert_eq!(node["groups"][0]["lag"]["n2"], 2);
        assert_eq!(json["endpoints"][1]["error"], "refused");
    }

    #[test]
    fn an_answer_without_a_node_is_none_and_an_unknown_leader_is_shown_as_such() {
        assert_eq!(view(StatusResponse::default()), None);
        let mut response = response();
        response.groups[0].leader = 0;
        let answer = Answer { endpoint: "e".to_owned(), result: Ok(view(response).unwrap()) };
        assert!(tables(&[answer]).contains("leader  -"));
    }

    #[test]
    fn a_group_that_sleeps_is_shown_as_such() {
        let mut response = response();
        response.groups[0].asleep = true;
        let answer = Answer { endpoint: "e".to_owned(), result: Ok(view(response).unwrap()) };
        assert!(tables(std::slice::from_ref(&answer)).contains("leader, asleep  n1"));
        assert!(json(&[answer]).contains(r#""asleep": true"#));
    }

    #[tokio::test]
    async fn an_endpoint_that_is_none_is_an_answer_too() {
        let answers = ask_all(&["127.0.0.1:1".to_owned(), "not an address".to_owned()]).await;
        assert!(answers.iter().all(|answer| answer.result.is_err()));
    }
}
