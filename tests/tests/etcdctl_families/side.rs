//! One side: etcdctl and the cluster that it talks to.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use quorate_api::etcdserverpb::Member;
use quorate_tests::cluster::{Cluster, Node};
use quorate_tests::process::{self, Process};
use quorate_tests::{client, wait};

use crate::words;

/// The fourth node.
const FOURTH: usize = 3;

/// How long anything may take that comes in the end.
const BOUND: Duration = Duration::from_secs(60);

/// etcdctl and the cluster that it talks to.
pub(super) struct Side {
    cluster: Cluster,
    program: PathBuf,
    lease: String,
    added: String,
}

/// What a command came to.
#[derive(Debug, PartialEq)]
pub(super) struct Outcome {
    /// It ended well, or it was ended after as many lines as it was to print.
    pub(super) succeeded: bool,
    code: Option<i32>,
    out: Vec<String>,
    /// The lines that begin with `Error`: the others are a log with addresses and times.
    error: Vec<String>,
}

impl Side {
    pub(super) fn new(mut cluster: Cluster, program: PathBuf) -> Self {
        assert_eq!(cluster.further_node("n4"), FOURTH);
        Self { cluster, program, lease: "0".to_owned(), added: "0".to_owned() }
    }

    pub(super) fn run(&mut self, step: &str) -> Outcome {
        if step == "START" {
            self.start_fourth();
            return Outcome { succeeded: true, code: None, out: Vec::new(), error: Vec::new() };
        }
        if let Some(step) = step.strip_prefix("until> ") {
            return wait::until(step, BOUND, || {
                let outcome = self.run(step);
                if outcome.succeeded { Ok(outcome) } else { Err(format!("{outcome:?}")) }
            });
        }
        if step.starts_with("member list") {
            let mut first = self.run_at(0, step);
            for asked in 1..3 {
                let next = self.run_at(asked, step);
                first.out.extend(next.out);
                first.error.extend(next.error);
            }
            return first;
        }
        // One that leads is asked where only that can answer.
        let asked = if step.starts_with("move-leader") { self.cluster.leader() } else { 0 };
        self.run_at(asked, step)
    }

    fn run_at(&mut self, asked: usize, step: &str) -> Outcome {
        let (lines, step) = match step.split_once("> ") {
            Some((lines, step)) => (lines.parse::<usize>().ok(), step),
            None => (None, step),
        };
        let (step, typed) = step.split_once(" < ").unwrap_or((step, ""));
        let args: Vec<String> = step.split(' ').map(|word| self.word(word)).collect();
        let mut command = Command::new(&self.program);
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.cluster.nodes[asked].client]);
        command.args(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("etcdctl starts");
        let mut stdin = child.stdin.take().expect("it was piped");
        // A command that does not read what is typed may have ended.
        let _ = writeln!(stdin, "{typed}");
        drop(stdin);
        let (code, out, error) = match lines {
            Some(lines) => self.follow(step, child, lines),
            None => {
                let what = format!("the end of etcdctl {step}");
                let output = process::output(&what, BOUND, child);
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                (output.status.code(), text(&output.stdout), text(&output.stderr))
            }
        };
        if step.starts_with("lease grant")
            && let Some(id) = out.split(' ').nth(1)
        {
            id.clone_into(&mut self.lease);
        }
        if step.starts_with("member add")
            && let Some(id) =
                out.strip_prefix("Member ").and_then(|rest| rest.split_whitespace().next())
        {
            id.clone_into(&mut self.added);
        }
        let show = |text: &str| -> Vec<String> {
            // Bars of progress are drawn over by the next one.
            let lines = text.lines().filter(|line| !line.starts_with('\r'));
            lines.map(|line| self.neutral(step, line)).collect()
        };
        let error: String = error
            .lines()
            .filter(|line| line.starts_with("Error"))
            .map(|line| format!("{line}\n"))
            .collect();
        let mut out = show(&out);
        let succeeded = match lines {
            Some(lines) => out.len() == lines,
            None => code == Some(0),
        };
        if step.starts_with("member list") {
            // Members come in the order of their ids.
            out.sort();
        }
        Outcome { succeeded, code, out, error: show(&error) }
    }

    /// Reads so many lines of a command that does not end by itself, then ends it. With none, it is ended when
    /// its work can be seen.
    fn follow(&self, step: &str, mut child: Child, lines: usize) -> (Option<i32>, String, String) {
        if lines == 0 {
            wait::until("the mirror has both keys", BOUND, || {
                let mut get = Command::new(&self.program);
                get.env("ETCDCTL_API", "3").args(["--endpoints", &self.cluster.nodes[2].client]);
                let output = get.args(["get", "copy/", "--prefix", "--keys-only"]).output();
                let text = output.map_err(|error| error.to_string())?.stdout;
                let text = String::from_utf8_lossy(&text);
                if text.contains("copy/b") { Ok(()) } else { Err(text.into_owned()) }
            });
        }
        let stdout = child.stdout.take().expect("it was piped");
        let what = format!("{lines} lines of etcdctl {step}, or its end");
        let read: Vec<String> = process::within(&what, BOUND, child.id(), move || {
            BufReader::new(stdout).lines().take(lines).map_while(Result::ok).collect()
        });
        // It may have ended by itself, with an error.
        let _ = child.kill();
        let output = child.wait_with_output().expect("it was killed");
        (None, read.join("\n"), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Starts the fourth node, which was added, and waits until it has told who it is.
    fn start_fourth(&mut self) {
        let mut command = self.cluster.command(FOURTH);
        if !self.cluster.is_quorate() {
            // Of a flag that is given twice etcd takes the last.
            let member = |node: &Node| format!("{}=http://{}", node.name, node.peer);
            let members: Vec<_> = self.cluster.nodes.iter().map(member).collect();
            command.args(["--initial-cluster", &members.join(",")]);
            command.args(["--initial-cluster-state", "existing"]);
        }
        let log = self.cluster.dir().join("n4.log");
        let node = &mut self.cluster.nodes[FOURTH];
        node.process = Some(Process::start(&node.name, &mut command, &log));
        wait::until("n4 is known by its name", BOUND, || {
            let members = client::members(&self.cluster.nodes[0].client);
            let members = members.map_err(|status| status.to_string())?;
            let is_known = |member: &Member| member.name == "n4" && !member.client_ur_ls.is_empty();
            if members.iter().any(is_known) { Ok(()) } else { Err(format!("{members:?}")) }
        });
    }

    /// The id of node `number`, as etcdctl writes it.
    fn id(&self, number: usize) -> String {
        let status = client::status(&self.cluster.nodes[number].client).expect("it answers");
        format!("{:x}", status.header.expect("a header").member_id)
    }

    /// What stands for a word of a step.
    fn word(&self, word: &str) -> String {
        match word {
            "LEASE" => self.lease.clone(),
            "ADDED" => self.added.clone(),
            "MEMBER" => self.id(0),
            "LEADER" => self.id(self.cluster.leader()),
            "OTHER" => self.id((self.cluster.leader() + 1) % 3),
            "ELSEWHERE" => self.cluster.nodes[2].client.clone(),
            word => word
                .replace("DIR", &self.cluster.dir().display().to_string())
                .replace("OWN", &format!("http://{}", self.cluster.nodes[0].peer))
                .replace("JOINER", &format!("http://{}", self.cluster.nodes[FOURTH].peer)),
        }
    }

    /// A line without what names this cluster, and without the figures that are its own.
    fn neutral(&self, step: &str, line: &str) -> String {
        let mut line = line.replace(&self.cluster.dir().display().to_string(), "DIR");
        // Nodes speak another protocol with each other than the peer's.
        line = line.replace("quic://", "http://");
        for node in &self.cluster.nodes {
            for scheme in ["http://", ""] {
                line = line.replace(&format!("{scheme}{}", node.client), "CLIENT");
                line = line.replace(&format!("{scheme}{}", node.peer), "PEER");
            }
        }
        words::without_ids(step, &words::without_figures(step, &line))
    }
}
