//! `propose-conf-change N [v1=true] [transition=auto|implicit|explicit]`, then a body of words, one for
//! each node: `vN` voter, `lN` learner, `pN` learner that is promoted when it has caught up, `rN` removed.
//!
//! Without a body it leaves a joint membership. `v1=true`, a single change in etcd's older form, is the
//! same here.

use quorate_raft::{MembershipChange, NodeChange, Via};
use quorate_types::NodeId;

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;
use crate::parse::Line;

pub(crate) fn run(
    cluster: &mut Cluster,
    mut args: Args<'_>,
    body: &[Line],
) -> Result<(), ScriptError> {
    let node = args.node()?;
    let _: Option<bool> = args.value("v1")?;
    let via = match args.value::<String>("transition")?.as_deref() {
        None | Some("auto") => Via::Auto,
        Some("implicit") => Via::Joint,
        Some("explicit") => Via::JointExplicit,
        Some(_) => return Err(args.usage("knows auto, implicit and explicit")),
    };
    args.end()?;
    let words = body.iter().flat_map(|line| line.text.split_whitespace());
    let nodes = words.map(|word| node_change(word, &args)).collect::<Result<_, _>>()?;
    let change = MembershipChange { nodes, via };
    if let Err(error) = cluster.node(node)?.replica()?.change_membership(&change) {
        cluster.output.line(format!("refused: {error}"));
    }
    Ok(())
}

fn node_change(word: &str, args: &Args<'_>) -> Result<NodeChange, ScriptError> {
    let malformed = || args.usage(&format!("cannot take {word:?}"));
    let (kind, number) = word.split_at_checked(1).ok_or_else(malformed)?;
    let node = NodeId(number.parse().map_err(|_| malformed())?);
    match kind {
        "v" => Ok(NodeChange::Voter(node)),
        "l" => Ok(NodeChange::Learner { node, promote: false }),
        "p" => Ok(NodeChange::Learner { node, promote: true }),
        "r" => Ok(NodeChange::Remove(node)),
        _ => Err(malformed()),
    }
}
