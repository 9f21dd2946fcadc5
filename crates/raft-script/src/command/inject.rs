//! `inject TYPE from=N to=N term=T [prev=I@T] [last=I@T] [hint=I@T] [refused=I] [commit=I]
//! [round=R] [promise=US] [context=LIFE.NUMBER] [index=I] [entries=(I@T,..)] [granted] [transfer]`
//!
//! Puts a forged message into the network: one that was delayed for ever so long, or that no
//! correct node would send. TYPE is one of ours. Fields that the type does not have are refused,
//! those left out are 0. Entries carry the command `forged`.

use bytes::Bytes;
use quorate_types::{
    Body, Entry, EntryId, GroupId, LogIndex, Message, NodeId, Payload, ReadContext, Term,
};

use crate::args::Args;
use crate::cluster::Cluster;
use crate::error::ScriptError;

pub(crate) fn run(cluster: &mut Cluster, mut args: Args<'_>) -> Result<(), ScriptError> {
    let name = args.word().ok_or_else(|| args.usage("names no type"))?;
    let from = NodeId(args.value("from")?.unwrap_or(0));
    let to = NodeId(args.value("to")?.unwrap_or(0));
    let term = Term(args.value("term")?.unwrap_or(0));
    let body = body(name, &mut args)?;
    args.end()?;
    cluster.network.push(Message { group: GroupId(1), from, to, term, body });
    Ok(())
}

fn body(name: &str, args: &mut Args<'_>) -> Result<Body, ScriptError> {
    Ok(match name {
        "PreVote" => Body::PreVote { last: id(args, "last")? },
        "PreVoteReply" => Body::PreVoteReply { granted: args.flag("granted") },
        "Vote" => Body::Vote { last: id(args, "last")?, transfer: args.flag("transfer") },
        "TimeoutNow" => Body::TimeoutNow,
        "Wake" => Body::Wake,
        "Sleep" => {
            Body::Sleep { last: id(args, "last")?, round: args.value("round")?.unwrap_or(0) }
        }
        "Asleep" => Body::Asleep { round: args.value("round")?.unwrap_or(0) },
        "VoteReply" => Body::VoteReply { granted: args.flag("granted") },
        "Append" => {
            let entries = args.values("entries").iter().map(|text| {
                let id = parse_id(args, text)?;
                Ok(Entry { id, payload: Payload::Command(Bytes::from_static(b"forged")) })
            });
            let entries = entries.collect::<Result<_, ScriptError>>()?;
            Body::Append { prev: id(args, "prev")?, entries, commit: index(args, "commit")? }
        }
        "AppendAccepted" => Body::AppendAccepted { last: index(args, "last")? },
        "AppendRejected" => {
            Body::AppendRejected { refused: index(args, "refused")?, hint: id(args, "hint")? }
        }
        "Commit" => Body::Commit { commit: index(args, "commit")? },
        "Heartbeat" => Body::Heartbeat {
            commit: index(args, "commit")?,
            round: args.value("round")?.unwrap_or(0),
        },
        "HeartbeatReply" => Body::HeartbeatReply {
            round: args.value("round")?.unwrap_or(0),
            promise_us: args.value("promise")?.unwrap_or(0),
        },
        "ReadIndex" => Body::ReadIndex { context: context(args)? },
        "ReadIndexReply" => {
            Body::ReadIndexReply { context: context(args)?, index: index(args, "index")? }
        }
        unknown => return Err(args.usage(&format!("knows no {unknown}"))),
    })
}

fn index(args: &mut Args<'_>, key: &str) -> Result<LogIndex, ScriptError> {
    Ok(LogIndex(args.value(key)?.unwrap_or(0)))
}

fn id(args: &mut Args<'_>, key: &str) -> Result<EntryId, ScriptError> {
    let text: Option<String> = args.value(key)?;
    text.map_or(Ok(EntryId::ZERO), |text| parse_id(args, &text))
}

fn context(args: &mut Args<'_>) -> Result<ReadContext, ScriptError> {
    let text: Option<String> = args.value("context")?;
    let parsed = text.as_deref().unwrap_or("0.0").split_once('.').and_then(|(life, number)| {
        Some(ReadContext { life: life.parse().ok()?, number: number.parse().ok()? })
    });
    parsed.ok_or_else(|| args.usage("needs a context like life.number"))
}

fn parse_id(args: &Args<'_>, text: &str) -> Result<EntryId, ScriptError> {
    let parsed = text
        .split_once('@')
        .and_then(|(index, term)| Some((index.parse().ok()?, term.parse().ok()?)));
    let (index, term) = parsed.ok_or_else(|| args.usage("needs ids like index@term"))?;
    Ok(EntryId::new(Term(term), LogIndex(index)))
}
