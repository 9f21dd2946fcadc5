//! The commands, one a file.

mod add_nodes;
mod advance_time;
mod campaign;
mod compact;
mod crash;
mod deliver_msgs;
mod forget_leader;
mod heal;
mod inject;
mod log_level;
mod partition;
mod prefer_leader;
mod process_append_thread;
mod process_apply_thread;
mod process_ready;
mod propose;
mod propose_conf_change;
mod raft_log;
mod raft_state;
mod read;
mod report_unreachable;
mod restart;
mod send_snapshot;
mod stabilize;
mod status;
mod tick;
mod transfer_leadership;

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;
use crate::parse::Line;

/// True for commands whose body is theirs; that of others is a list of further commands.
pub(crate) fn takes_body(line: &Line) -> bool {
    line.name == "propose-conf-change"
}

/// Runs the command of one line.
pub(crate) fn run(cluster: &mut Cluster, line: &Line, body: &[Line]) -> Result<(), ScriptError> {
    let args = Args::new(line);
    match line.name.as_str() {
        "add-nodes" => add_nodes::run(cluster, args),
        "advance-time" => advance_time::run(cluster, args),
        "burst-ticks" => tick::run_burst(cluster, args),
        "campaign" => campaign::run(cluster, args),
        "compact" => compact::run(cluster, args),
        "crash" => crash::run(cluster, args),
        "deliver-msgs" => deliver_msgs::run(cluster, args),
        "forget-leader" => forget_leader::run(cluster, args),
        "heal" => heal::run(cluster, &args),
        "inject" => inject::run(cluster, args),
        "log-level" => log_level::run(cluster, args),
        "partition" => partition::run(cluster, args),
        "prefer-leader" => prefer_leader::run(cluster, args),
        "process-append-thread" => process_append_thread::run(cluster, args),
        "process-apply-thread" => process_apply_thread::run(cluster, args),
        "process-ready" => process_ready::run(cluster, args),
        "propose" => propose::run(cluster, args),
        "propose-conf-change" => propose_conf_change::run(cluster, args, body),
        "raft-log" => raft_log::run(cluster, args),
        "raft-state" => raft_state::run(cluster, &args),
        "read" => read::run(cluster, args),
        "report-unreachable" => report_unreachable::run(cluster, args),
        "restart" => restart::run(cluster, args),
        "send-snapshot" => send_snapshot::run(cluster, args),
        "stabilize" => stabilize::run(cluster, args),
        "status" => status::run(cluster, args),
        "tick-election" => tick::run_election(cluster, args),
        "tick-heartbeat" => tick::run_heartbeat(cluster, args),
        "transfer-leadership" => transfer_leadership::run(cluster, args),
        unknown => Err(ScriptError::UnknownCommand(unknown.to_owned())),
    }
}
