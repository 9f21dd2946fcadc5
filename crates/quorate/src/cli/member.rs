//! `quorate member`: who belongs to the cluster, and how that changes.
//!
//! Any node may be asked. A change is done when the command says so: a removed node may be switched off,
//! a promoted one votes. What is not done in time goes on by itself; the same command again waits on.

use std::time::Duration;

use quorate_api::etcdserverpb::cluster_client::ClusterClient;
use quorate_api::etcdserverpb::{
    Member, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest,
};
use quorate_api::quorate::v1::admin_client::AdminClient;
use quorate_api::quorate::v1::{AddMemberRequest, ClusterNode, ReplaceMemberRequest};
use tonic::Status;

use super::connect::Tls;
use super::login::{Known, Login};
use super::{Failure, block_on, print};
use crate::config::values::{HostPort, Name, parser};
use crate::shutdown::Exit;
use crate::table::Table;

/// How long an endpoint has to be reached.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a change has: longer than the server tries.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);

/// Where to ask.
#[derive(Debug, clap::Args)]
pub struct At {
    /// Client addresses of nodes to ask; the first that can be reached is
    #[arg(
        long,
        value_name = "HOST:PORT,...",
        value_delimiter = ',',
        default_value = "127.0.0.1:2379"
    )]
    endpoints: Vec<String>,
    /// How to speak to them
    #[command(flatten)]
    tls: Tls,
    /// Whom to ask as
    #[command(flatten)]
    login: Login,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Show the members
    List {
        /// Where to ask
        #[command(flatten)]
        at: At,
    },
    /// Add a node, which starts with `quorate serve --join` and votes once it has caught up
    Add {
        /// Its name, as its certificate has it
        #[arg(value_name = "NAME", value_parser = parser::<Name>)]
        name: Name,
        /// Where the other nodes will reach it
        #[arg(long, value_name = "HOST:PORT", value_parser = parser::<HostPort>)]
        peer: HostPort,
        /// Let it have no vote until it is promoted
        #[arg(long)]
        learner: bool,
        /// Where to ask
        #[command(flatten)]
        at: At,
    },
    /// Give a learner a vote
    Promote {
        /// Name or id (hexadecimal) of the node
        #[arg(value_name = "NAME|ID")]
        member: String,
        /// Where to ask
        #[command(flatten)]
        at: At,
    },
    /// Remove a node for good; its process stops by itself
    Remove {
        /// Name or id (hexadecimal) of the node
        #[arg(value_name = "NAME|ID")]
        member: String,
        /// Where to ask
        #[command(flatten)]
        at: At,
    },
    /// Let a node return that lost its data: under its old name, with an empty directory and a new id
    Replace {
        /// Name or id (hexadecimal) of the node
        #[arg(value_name = "NAME|ID")]
        member: String,
        /// Where the other nodes will reach it [default: as before]
        #[arg(long, value_name = "HOST:PORT", value_parser = parser::<HostPort>)]
        peer: Option<HostPort>,
        /// Where to ask
        #[command(flatten)]
        at: At,
    },
}

/// Runs the command.
///
/// # Errors
/// When no endpoint can be reached, or the cluster refuses.
pub fn run(command: &Command) -> Result<(), Failure> {
    block_on(async {
        match command {
            Command::List { at } => {
                let mut cluster = ClusterClient::new(connect(at).await?);
                print(&table(&list(&mut cluster).await?));
            }
            Command::Add { name, peer, learner, at } => {
                let request = AddMemberRequest {
                    name: name.0.clone(),
                    peer_address: peer.to_string(),
                    learner: *learner,
                };
                let answer = AdminClient::new(connect(at).await?).add_member(request).await;
                let answer = answer.map_err(|status| refused(&status))?.into_inner();
                print(&next_steps("added", answer.node.as_ref(), &answer.nodes));
            }
            Command::Promote { member, at } => {
                let mut cluster = ClusterClient::new(connect(at).await?);
                let member = find(&list(&mut cluster).await?, member)?;
                let request = MemberPromoteRequest { id: member.id };
                cluster.member_promote(request).await.map_err(|status| refused(&status))?;
                print(&format!("{} ({:x}) votes\n", member.name, member.id));
            }
            Command::Remove { member, at } => {
                let mut cluster = ClusterClient::new(connect(at).await?);
                let member = find(&list(&mut cluster).await?, member)?;
                let request = MemberRemoveRequest { id: member.id };
                cluster.member_remove(request).await.map_err(|status| refused(&status))?;
                print(&format!("{} ({:x}) is removed\n", member.name, member.id));
            }
            Command::Replace { member, peer, at } => {
                let channel = connect(at).await?;
                let members = list(&mut ClusterClient::new(channel.clone())).await?;
                let request = ReplaceMemberRequest {
                    id: find(&members, member)?.id,
                    peer_address: peer.as_ref().map_or_else(String::new, ToString::to_string),
                };
                let answer = AdminClient::new(channel).replace_member(request).await;
                let answer = answer.map_err(|status| refused(&status))?.into_inner();
                print(&next_steps("replaced", answer.node.as_ref(), &answer.nodes));
            }
        }
        Ok(())
    })
}

/// The first endpoint that can be reached.
async fn connect(at: &At) -> Result<Known, Failure> {
    let mut reasons = Vec::new();
    for endpoint in &at.endpoints {
        match at.tls.connect(endpoint, CONNECT_TIMEOUT, CHANGE_TIMEOUT).await {
            Ok(channel) => return at.login.on(channel).await.map_err(|status| refused(&status)),
            Err(error) => reasons.push(format!("{endpoint}: {error}")),
        }
    }
    Err(Failure::new(Exit::Failed, reasons.join("; ")))
}

async fn list(cluster: &mut ClusterClient<Known>) -> Result<Vec<Member>, Failure> {
    let listed = cluster.member_list(MemberListRequest { linearizable: true }).await;
    Ok(listed.map_err(|status| refused(&status))?.into_inner().members)
}

fn refused(status: &Status) -> Failure {
    Failure::new(Exit::Failed, status.message())
}

/// The member of this name, else of this id.
fn find(members: &[Member], wanted: &str) -> Result<Member, Failure> {
    let by_name = members.iter().find(|member| member.name == wanted);
    let id = u64::from_str_radix(wanted.trim_start_matches("0x"), 16).ok();
    let found = by_name.or_else(|| members.iter().find(|member| Some(member.id) == id));
    found.cloned().ok_or_else(|| {
        let names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
        Failure::new(Exit::Failed, format!("no member {wanted} among {}", names.join(", ")))
    })
}

fn table(members: &[Member]) -> String {
    let mut table = Table::new(["ID", "NAME", "PEER", "CLIENT", "ROLE"]);
    for member in members {
        table.row([
            format!("{:x}", member.id),
            member.name.clone(),
            member.peer_ur_ls.join(","),
            member.client_ur_ls.join(","),
            if member.is_learner { "learner" } else { "voter" }.to_owned(),
        ]);
    }
    table.to_string()
}

/// What was done, and how to start the node that is awaited.
fn next_steps(done: &str, node: Option<&ClusterNode>, nodes: &[ClusterNode]) -> String {
    let Some(node) = node else { return format!("{done}\n") };
    let address = |of: &ClusterNode| {
        let url = of.peer_addresses.first()?;
        Some(url.split_once("://").map_or(url.as_str(), |(_, address)| address).to_owned())
    };
    let others = nodes.iter().filter(|other| other.id != node.id && !other.learner);
    let join: Vec<_> =
        others.filter_map(|other| Some(format!("{}={}", other.name, address(other)?))).collect();
    let own = address(node).unwrap_or_default();
    format!(
        "{} is {done}, its id is {:x}. Start it with an empty data directory and\n  \
         --name {} --advertise-peer {own} --join {}\n",
        node.name,
        node.id,
        node.name,
        join.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, name: &str) -> Member {
        Member { id, name: name.to_owned(), ..Member::default() }
    }

    #[test]
    fn a_member_is_found_by_its_name_before_its_id() {
        let members = [member(0xab, "n1"), member(7, "ab")];
        let found = |wanted| find(&members, wanted).map(|member| member.id);
        assert_eq!(found("n1").expect("by name"), 0xab);
        assert_eq!(found("ab").expect("by name"), 7);
        assert_eq!(found("0xab").expect("by id"), 0xab);
        assert_eq!(found("7").expect("by id"), 7);
        let refused = found("n9").expect_err("unknown");
        assert_eq!(refused.message, "no member n9 among n1, ab");
    }

    #[test]
    fn who_adds_a_node_is_told_how_to_start_it() {
        let node = |id, name: &str, at: &str, learner| ClusterNode {
            id,
            name: name.to_owned(),
            peer_addresses: vec![format!("quic://{at}")],
            client_addresses: Vec::new(),
            learner,
        };
        let nodes = [node(0xa, "n1", "h1:1", false), node(1, "n2", "h2:2", true)];
        let text = next_steps("added", Some(&nodes[1]), &nodes);
        assert_eq!(
            text,
            "n2 is added, its id is 1. Start it with an empty data directory and\n  \
             --name n2 --advertise-peer h2:2 --join n1=h1:1\n"
        );
    }
}
