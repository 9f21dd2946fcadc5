//! etcdctl looks the same on both sides, for every command of 3.5 but `check perf` and `migrate`, by families of
//! calls. The commands of `KV` are in the session of the test `etcdctl`.
//!
//! `QUORATE_STAND_IN=etcd` compares the peer with itself: that tests the test.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use quorate_tests::cluster::Cluster;
use quorate_tests::programs;

/// Commands of one family, in order, each on one line; `'` keeps spaces together. `LEASE` is the id that the
/// last `lease grant` has printed, `MEMBER` that of the first member, `LEADER` that of the leader, `OTHER`
/// that of one that does not lead, `DIR` a directory of this side, `ELSEWHERE` the address of the third node.
/// `N>` before a command reads N lines of it and then ends it, and `typed` is what it gets to read.
struct Family {
    name: &'static str,
    steps: &'static [&'static str],
}

const FAMILIES: [Family; 8] = [
    Family {
        name: "offline",
        steps: &["version", "help", "completion bash", "no-such-command", "get", "put a"],
    },
    Family {
        name: "members",
        steps: &[
            "member list -w simple",
            "member add",
            "member remove",
            "member promote 1",
            "endpoint health",
        ],
    },
    Family {
        name: "watch",
        steps: &[
            "put w/a 1",
            "put w/a 2",
            "put w/b 1",
            "del w/a",
            "12> watch w/ --prefix --rev 2",
            "4> watch w/a --rev 3 --prev-kv",
            "3> watch w/b --rev 1",
            "3> watch w/ x --rev 4",
            "8> watch w/ --prefix --rev 2 -w fields",
            "compaction 4",
            "watch w/ --prefix --rev 2",
        ],
    },
    Family {
        name: "lease",
        steps: &[
            "lease list",
            "lease grant 600",
            "put l/a 1 --lease LEASE",
            "lease timetolive LEASE",
            "lease timetolive LEASE --keys",
            "put l/b 2 --lease LEASE",
            "lease keep-alive LEASE --once",
            "1> lease keep-alive LEASE",
            "lease list",
            "get l/ --prefix",
            "lease revoke LEASE",
            "lease revoke LEASE",
            "lease timetolive LEASE",
            "lease keep-alive LEASE --once",
            "get l/ --prefix",
            "lease grant 0",
            "lease grant nothing",
            "put l/c 1 --lease LEASE",
        ],
    },
    Family {
        name: "lock and election",
        steps: &[
            "lock m echo held",
            "2> lock m --ttl 20",
            "get m --prefix --keys-only",
            "2> elect e someone",
            "elect e",
        ],
    },
    Family {
        name: "auth",
        steps: &[
            "auth status",
            "auth enable",
            "role add r",
            "role add r",
            "role grant-permission r readwrite a z",
            "role grant-permission r read p/ --prefix",
            "role grant-permission nobody read p",
            "role get r",
            "role list",
            "role revoke-permission r p/ --prefix",
            "role revoke-permission r nothing",
            "role get r",
            "user add u:secret",
            "user add u:secret",
            "user add plain --no-password",
            "user add root:secret",
            "user passwd u --interactive=false < other",
            "user grant-role u r",
            "user grant-role u nothing",
            "user grant-role root root",
            "user get u",
            "user get u --detail",
            "user list",
            "auth enable",
            "auth status --user root:secret",
            "get a",
            "get a --user u:wrong",
            "put b 1 --user u:other",
            "get b --user u:other",
            "get zz --user u:other",
            "del b --prefix --user u:other",
            "user list --user u:other",
            "member list --user u:other",
            "user revoke-role u r --user root:secret",
            "get b --user u:other",
            "auth disable --user root:secret",
            "user revoke-role u r",
            "user delete u",
            "user delete u",
            "role delete r",
            "role delete r",
            "user list",
            "role list",
        ],
    },
    Family {
        name: "maintenance",
        steps: &[
            "put a 1",
            "put b 2",
            "alarm list",
            "alarm disarm",
            "endpoint health",
            "endpoint hashkv",
            "defrag",
            "snapshot save DIR/snapshot",
            "snapshot status DIR/snapshot",
            "snapshot restore DIR/snapshot --data-dir DIR/restored",
            "move-leader OTHER",
            "move-leader 1",
            "downgrade validate 3.4.0",
            "downgrade validate nothing",
            "downgrade cancel",
            "check datascale --load s",
        ],
    },
    Family {
        name: "mirror",
        steps: &[
            "put y/a 1",
            "put y/b 2",
            "0> make-mirror --prefix y/ --dest-prefix copy/ ELSEWHERE",
            "get copy/ --prefix",
        ],
    },
];

/// What etcd says of a lease that etcdctl has just revoked, or of another side's cluster, differs by numbers and
/// names; texts do not.
const NUMBERS: [&str; 10] = [
    "lease",
    "endpoint hashkv",
    "snapshot",
    "move-leader",
    "check",
    "defrag",
    "downgrade",
    "endpoint health",
    "lock",
    "elect",
];

#[test]
fn every_family_looks_the_same() {
    let test = "the families of etcdctl's commands";
    let Some(etcd) = programs::etcd(test) else { return };
    for Family { name, steps } in &FAMILIES {
        let Some(cluster) = Cluster::quorate(test) else { return };
        let mut ours = Side::new(cluster, etcd.program("etcdctl"));
        let mut peer = Side::new(Cluster::etcd(etcd.clone()), etcd.program("etcdctl"));
        for step in *steps {
            let expected = peer.run(step);
            let found = ours.run(step);
            assert_eq!(found, expected, "{name}: etcdctl {step} (left: Quorate)");
        }
    }
}

/// etcdctl and the cluster that it talks to.
struct Side {
    cluster: Cluster,
    program: PathBuf,
    lease: String,
}

/// What a command came to.
#[derive(Debug, PartialEq)]
struct Outcome {
    code: Option<i32>,
    out: Vec<String>,
    /// The lines that begin with `Error`: the others are a log with addresses and times.
    error: Vec<String>,
}

impl Side {
    fn new(cluster: Cluster, program: PathBuf) -> Self {
        Self { cluster, program, lease: "0".to_owned() }
    }

    fn run(&mut self, step: &str) -> Outcome {
        let (lines, step) = match step.split_once("> ") {
            Some((lines, step)) => (lines.parse::<usize>().ok(), step),
            None => (None, step),
        };
        let (step, typed) = step.split_once(" < ").unwrap_or((step, ""));
        let args: Vec<String> = step.split(' ').map(|word| self.word(word)).collect();
        // One that leads is asked where only that can answer.
        let asked = if step.starts_with("move-leader") { self.cluster.leader() } else { 0 };
        let mut command = Command::new(&self.program);
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.cluster.nodes[asked].client]);
        command.args(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("etcdctl starts");
        let mut stdin = child.stdin.take().expect("it was piped");
        // A command that does not read what is typed may have ended.
        let _ = writeln!(stdin, "{typed}");
        drop(stdin);
        let (code, out, error) = match lines {
            Some(lines) => self.follow(child, lines),
            None => {
                let output = child.wait_with_output().expect("etcdctl ends");
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                (output.status.code(), text(&output.stdout), text(&output.stderr))
            }
        };
        if step.starts_with("lease grant")
            && let Some(id) = out.split(' ').nth(1)
        {
            id.clone_into(&mut self.lease);
        }
        let masked = NUMBERS.iter().any(|command| step.starts_with(command));
        let show = |text: &str| -> Vec<String> {
            // Bars of progress are drawn over by the next one.
            let lines = text.lines().filter(|line| !line.starts_with('\r'));
            lines.map(|line| self.neutral(line, masked)).collect()
        };
        let error: String = error
            .lines()
            .filter(|line| line.starts_with("Error"))
            .map(|line| format!("{line}\n"))
            .collect();
        let mut out = show(&out);
        if step.starts_with("member list") {
            // Members come in the order of their ids.
            out.sort();
        }
        Outcome { code, out, error: show(&error) }
    }

    /// Reads so many lines of a command that does not end by itself, then ends it. With none, it is ended when
    /// its work can be seen.
    fn follow(&self, mut child: Child, lines: usize) -> (Option<i32>, String, String) {
        if lines == 0 {
            quorate_tests::wait::until(
                "the mirror has both keys",
                std::time::Duration::from_secs(60),
                || {
                    let mut get = Command::new(&self.program);
                    get.env("ETCDCTL_API", "3")
                        .args(["--endpoints", &self.cluster.nodes[2].client]);
                    let output = get.args(["get", "copy/", "--prefix", "--keys-only"]).output();
                    let text = output.map_err(|error| error.to_string())?.stdout;
                    let text = String::from_utf8_lossy(&text);
                    if text.contains("copy/b") { Ok(()) } else { Err(text.into_owned()) }
                },
            );
        }
        let stdout = child.stdout.take().expect("it was piped");
        let read: Vec<String> =
            BufReader::new(stdout).lines().take(lines).map_while(Result::ok).collect();
        // It may have ended by itself, with an error.
        let _ = child.kill();
        let output = child.wait_with_output().expect("it was killed");
        (None, read.join("\n"), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// What stands for a word of a step.
    fn word(&self, word: &str) -> String {
        let dir = self.cluster.dir().display().to_string();
        match word {
            "LEASE" => self.lease.clone(),
            "OTHER" => {
                let leader = self.cluster.leader();
                let other = &self.cluster.nodes[(leader + 1) % 3];
                let status = quorate_tests::client::status(&other.client).expect("it answers");
                format!("{:x}", status.header.expect("a header").member_id)
            }
            "ELSEWHERE" => self.cluster.nodes[2].client.clone(),
            word => word.replace("DIR", &dir),
        }
    }

    /// A line without what names this cluster, and without its figures if they are its own.
    fn neutral(&self, line: &str, masked: bool) -> String {
        let mut line = line.replace(&self.cluster.dir().display().to_string(), "DIR");
        for node in &self.cluster.nodes {
            for scheme in ["http://", "quic://", ""] {
                line = line.replace(&format!("{scheme}{}", node.client), "CLIENT");
                line = line.replace(&format!("{scheme}{}", node.peer), "PEER");
            }
        }
        let is_id =
            |word: &str| word.len() >= 8 && word.chars().all(|letter| letter.is_ascii_hexdigit());
        // Elections come as they come.
        let masked = masked || line.starts_with("\"RaftTerm\"");
        let words = line.split_inclusive(|letter: char| !letter.is_ascii_alphanumeric());
        let words = words.map(|word| {
            let bare = word.trim_end_matches(|letter: char| !letter.is_ascii_alphanumeric());
            let rest = &word[bare.len()..];
            let figure = bare.chars().next().is_some_and(|first| first.is_ascii_digit());
            match is_id(bare) || masked && figure {
                true => format!("N{rest}"),
                false => word.to_owned(),
            }
        });
        words.collect()
    }
}
