//! TLS from the outside: certificates that `quorate cert` makes, a node that is started with them, and
//! the commands and clients that reach it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use quorate_tests::cluster::quorate;
use quorate_tests::process::Process;
use quorate_tests::{http, ports, programs, wait};
use tempfile::TempDir;

/// How long a node may take to serve.
const BOUND: Duration = Duration::from_secs(60);

/// Exit code and all that was said.
fn said(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Certificates in a directory.
struct Certificates(PathBuf);

impl Certificates {
    fn make(dir: &Path, client: &str) -> Self {
        let cert = |args: &[&str]| {
            let (is_ok, text) = said(quorate().arg("cert").args(args).arg("--dir").arg(dir));
            assert!(is_ok, "{args:?}: {text}");
        };
        cert(&["ca"]);
        cert(&["node", "--name", "n1", "--host", "localhost", "--host", "127.0.0.1"]);
        cert(&["client", "--name", client]);
        Self(dir.to_owned())
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// The flags of a client, as `quorate` and `etcdctl` both have them.
    fn client(&self, name: &str) -> [String; 6] {
        let (cert, key) = (format!("{name}.crt"), format!("{name}.key"));
        ["--cacert", "ca.crt", "--cert", &cert, "--key", &key].map(|word| match word {
            flag if flag.starts_with("--") => flag.to_owned(),
            file => self.path(file),
        })
    }
}

#[test]
fn a_node_with_certificates_serves_clients_with_certificates() {
    let dir = TempDir::with_prefix("quorate-test-").expect("a temporary directory");
    let ours = Certificates::make(&dir.path().join("ours"), "alice");
    let strange = Certificates::make(&dir.path().join("strange"), "mallory");
    let port = ports::free_run(3);
    let at = |offset: u16| format!("127.0.0.1:{}", port + offset);
    let mut command = quorate();
    command.args(["serve", "--name", "n1", "--data-dir"]).arg(dir.path().join("data"));
    for (flag, value) in [
        ("--listen-client", at(0)),
        ("--listen-peer", at(1)),
        ("--listen-metrics", at(2)),
        ("--cert", ours.path("n1.crt")),
        ("--key", ours.path("n1.key")),
        ("--ca", ours.path("ca.crt")),
        ("--cert-file", ours.path("n1.crt")),
        ("--key-file", ours.path("n1.key")),
        ("--trusted-ca-file", ours.path("ca.crt")),
    ] {
        command.arg(flag).arg(value);
    }
    command.arg("--client-cert-auth");
    let mut node = Process::start("n1", &mut command, &dir.path().join("n1.log"));
    wait::until("the node is ready", BOUND, || {
        assert!(node.ended().is_none(), "it has ended:\n{}", node.log());
        match http::get(&at(2), "/readyz") {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });

    let status = |tls: &[String]| said(quorate().args(["status", "--endpoints", &at(0)]).args(tls));
    let (is_ok, text) = status(&ours.client("alice"));
    assert!(is_ok && text.contains("n1"), "{text}");
    let members =
        said(quorate().args(["member", "list", "--endpoints", &at(0)]).args(ours.client("alice")));
    assert!(members.0 && members.1.contains(&format!("https://{}", at(0))), "{}", members.1);
    assert!(!status(&ours.client("alice")[..2]).0, "no certificate");
    assert!(!status(&strange.client("mallory")).0, "another authority");
    assert!(!status(&[]).0, "no TLS");
    http::get(&at(0), "/health").expect_err("no TLS");

    let file = dir.path().join("backup");
    let backup = |tls: &[String]| {
        said(quorate().args(["backup", "--endpoints", &at(0)]).args(tls).arg("--out").arg(&file))
    };
    let (alice, mallory) = (ours.client("alice"), strange.client("mallory"));
    let refused: [(&[String], &str); 4] = [
        (&alice[..2], "no certificate"),
        (&alice[2..], "a certificate, and no authority to know the node by"),
        (&mallory, "another authority"),
        (&[], "no TLS"),
    ];
    for (tls, why) in refused {
        let (is_ok, text) = backup(tls);
        assert!(!is_ok && !file.exists(), "{why}: {text}");
    }
    let (is_ok, text) = backup(&alice);
    assert!(is_ok && text.contains("revision 1, 0 keys"), "{text}");
    let mut restore = quorate();
    restore.args(["restore", "--name", "m1", "--initial-cluster", "m1=127.0.0.1:1"]);
    restore.arg("--data-dir").arg(dir.path().join("restored")).arg("--from").arg(&file);
    let (is_ok, text) = said(&mut restore);
    assert!(is_ok, "{text}");

    if let Some(etcd) = programs::etcd("a_node_with_certificates_serves_clients_with_certificates")
    {
        let etcdctl = |tls: &[String], args: &[&str]| {
            let mut command = Command::new(etcd.program("etcdctl"));
            command.env("ETCDCTL_API", "3").arg(format!("--endpoints=https://{}", at(0)));
            said(command.args(["--dial-timeout=2s", "--command-timeout=5s"]).args(tls).args(args))
        };
        let alice = ours.client("alice");
        assert_eq!(etcdctl(&alice, &["put", "k", "v"]), (true, "OK\n".to_owned()));
        assert_eq!(etcdctl(&alice, &["get", "k"]), (true, "k\nv\n".to_owned()));
        assert!(!etcdctl(&alice[..2], &["get", "k"]).0, "no certificate");
    }
    let ended = node.terminate(BOUND);
    assert!(ended.success(), "{ended}:\n{}", node.log());
}

#[test]
fn a_node_with_half_of_its_certificates_does_not_start() {
    let dir = TempDir::with_prefix("quorate-test-").expect("a temporary directory");
    let ours = Certificates::make(dir.path(), "alice");
    let data = dir.path().join("data");
    let serve = |flags: &[(&str, &str)]| {
        let mut command = quorate();
        command.args(["serve", "--name", "n1", "--data-dir"]).arg(&data);
        for (flag, file) in [("--cert", "n1.crt"), ("--key", "n1.key"), ("--ca", "ca.crt")] {
            command.arg(flag).arg(ours.path(file));
        }
        for (flag, file) in flags {
            command.arg(flag).arg(ours.path(file));
        }
        let port = ports::free_run(3);
        for (at, flag) in (port..).zip(["--listen-client", "--listen-peer", "--listen-metrics"]) {
            command.arg(flag).arg(format!("127.0.0.1:{at}"));
        }
        let (is_ok, text) = said(&mut command);
        assert!(!is_ok && !data.exists(), "nothing is touched: {text}");
        text
    };
    let text = serve(&[("--cert-file", "n1.crt")]);
    assert!(text.contains("\"cert-file\" needs \"key-file\""), "{text}");
    let text = serve(&[("--cert-file", "n1.crt"), ("--key-file", "alice.key")]);
    assert!(text.contains("\"key-file\"") && text.contains("alice.key"), "{text}");
    let text = serve(&[("--cert-file", "nothing.crt"), ("--key-file", "n1.key")]);
    assert!(text.contains("\"cert-file\"") && text.contains("nothing.crt"), "{text}");
}
