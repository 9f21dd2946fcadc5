//! Leases, users and roles on their way: in backups of a cluster where users count, and in snapshots that go from
//! Quorate to an etcd, from an etcd to Quorate, and back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use quorate_api::etcdserverpb::AuthenticateRequest;
use quorate_tests::client::{self, Client};
use quorate_tests::cluster::Cluster;
use quorate_tests::process::Process;
use quorate_tests::programs::{self, Etcd};
use quorate_tests::{http, ports, wait};

/// How long anything may take here.
const BOUND: Duration = Duration::from_secs(60);

const ROOT: &str = "root:open sesame";
const ALICE: &str = "alice:in wonderland";

/// The stock command line against one server.
struct Ctl<'p> {
    programs: &'p Etcd,
    endpoint: String,
}

impl Ctl<'_> {
    /// Whether it worked, and all that was said.
    fn run(&self, user: &str, args: &[&str]) -> (bool, String) {
        let mut command = Command::new(self.programs.program("etcdctl"));
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoint]);
        command.args(["--dial-timeout=30s", "--command-timeout=30s"]);
        if !user.is_empty() {
            command.args(["--user", user]);
        }
        let output = command.args(args).output().expect("etcdctl runs");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    fn must(&self, user: &str, args: &[&str]) -> String {
        let (is_ok, said) = self.run(user, args);
        assert!(is_ok, "{}: {user} {args:?}: {said}", self.endpoint);
        said
    }

    fn must_not(&self, user: &str, args: &[&str], why: &str) {
        let (is_ok, said) = self.run(user, args);
        assert!(!is_ok && said.contains(why), "{}: {user} {args:?}: {said}", self.endpoint);
    }

    /// etcdctl asks for no token without a password; others may.
    fn must_not_enter_without_password(&self, name: &str) {
        let request = AuthenticateRequest { name: name.to_owned(), password: String::new() };
        let status = client::runtime().block_on(async {
            Client::new(&self.endpoint).auth.authenticate(request).await.expect_err(name)
        });
        assert!(status.message().contains("authentication failed"), "{name}: {status:?}");
    }

    /// A lease of a key, two users, and a role; returns the lease's id as it is written.
    fn set_up(&self) -> String {
        let granted = self.must("", &["lease", "grant", "6000"]);
        let lease = granted.split(' ').nth(1).expect("an id").to_owned();
        self.must("", &["put", "app/leased", "v", "--lease", &lease]);
        self.must("", &["put", "other", "v"]);
        self.must("", &["user", "add", ROOT]);
        self.must("", &["user", "grant-role", "root", "root"]);
        self.must("", &["role", "add", "app"]);
        self.must("", &["role", "grant-permission", "app", "readwrite", "--prefix=true", "app/"]);
        self.must("", &["role", "grant-permission", "app", "read", "one"]);
        self.must("", &["user", "add", ALICE]);
        self.must("", &["user", "grant-role", "alice", "app"]);
        self.must("", &["user", "add", "certified", "--no-password"]);
        lease
    }

    /// What `user`, who may ask, sees of leases, users and roles.
    fn seen(&self, user: &str, lease: &str) -> Vec<String> {
        let lease = self.must(user, &["lease", "timetolive", lease, "--keys"]);
        // Its time runs.
        let remaining = lease.find("remaining(").and_then(|at| lease[at..].split(')').next());
        let mut seen = vec![lease.replace(remaining.expect("a time"), "remaining(N")];
        for args in [
            &["lease", "list"][..],
            &["user", "list"],
            &["user", "get", "alice"],
            &["user", "get", "root"],
            &["user", "get", "certified"],
            &["role", "list"],
            &["role", "get", "app"],
            &["get", "", "--prefix"],
        ] {
            seen.push(self.must(user, args));
        }
        seen
    }

    fn save(&self, user: &str, file: &Path) {
        self.must(user, &["snapshot", "save", &file.display().to_string()]);
    }
}

/// One etcd.
struct Member<'p> {
    ctl: Ctl<'p>,
    _process: Process,
}

impl<'p> Member<'p> {
    /// An etcd with its data below `dir`: what is in `snapshot`, or nothing.
    fn start(programs: &'p Etcd, dir: &Path, name: &str, snapshot: Option<&Path>) -> Self {
        let data: PathBuf = dir.join(name);
        let (client, peer) = (ports::free(), ports::free());
        let endpoint = format!("127.0.0.1:{client}");
        let (client, peer) = (format!("http://{endpoint}"), format!("http://127.0.0.1:{peer}"));
        let cluster = format!("{name}={peer}");
        let of_peers =
            ["--initial-cluster", &cluster, "--initial-advertise-peer-urls", &peer, "--name", name];
        if let Some(snapshot) = snapshot {
            let mut restore = Command::new(programs.program("etcdutl"));
            restore.args(["snapshot", "restore"]).arg(snapshot).args(of_peers);
            let output = restore.arg("--data-dir").arg(&data).output().expect("etcdutl runs");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
        }
        let mut command = Command::new(programs.program("etcd"));
        command.args(of_peers).arg("--data-dir").arg(&data).args(["--log-level", "error"]);
        command.args(["--listen-peer-urls", &peer, "--listen-client-urls", &client]);
        command.args(["--advertise-client-urls", &client]);
        let mut process = Process::start(name, &mut command, &dir.join(format!("{name}.log")));
        wait::until(&format!("{name} serves"), BOUND, || {
            assert!(process.ended().is_none(), "it has ended:\n{}", process.log());
            match http::get(&endpoint, "/health") {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        Self { ctl: Ctl { programs, endpoint }, _process: process }
    }
}

fn quorate<'p>(programs: &'p Etcd, cluster: &Cluster) -> Ctl<'p> {
    Ctl { programs, endpoint: cluster.nodes[0].client.clone() }
}

/// A node of Quorate that begins with `file`; what the command said.
fn restored(file: &Path) -> (Cluster, String) {
    let mut cluster = Cluster::prepare_sized(1);
    let (code, said) = cluster.restore(0, file, &[]);
    assert_eq!(code, Some(0), "{said}");
    cluster.start_all();
    (cluster, said)
}

#[test]
fn where_users_count_only_root_gets_a_backup() {
    let Some(programs) = programs::etcd("where_users_count_only_root_gets_a_backup") else {
        return;
    };
    let mut cluster = Cluster::prepare_sized(1);
    cluster.start_all();
    let ctl = quorate(&programs, &cluster);
    let lease = ctl.set_up();
    ctl.must("", &["auth", "enable"]);
    let expected = ctl.seen(ROOT, &lease);
    let file = cluster.dir().join("backup");
    let (name, password) = ROOT.split_once(':').expect("a password");
    let refused: [(&[&str], &str); 8] = [
        (&[], "user name is empty"),
        (&["--user", "root:guessed"], "authentication failed"),
        (&["--user", "root", "--password", "guessed"], "authentication failed"),
        (&["--user", ROOT, "--password", password], "authentication failed"),
        (&["--user", name], "authentication failed"),
        (&["--user", "nobody:x"], "authentication failed"),
        (&["--user", ALICE], "permission denied"),
        (&["--password", password], "needs --user"),
    ];
    for (args, why) in refused {
        let (code, said) = cluster.backup(0, &file, args);
        assert_eq!(code, Some(1), "{args:?}: {said}");
        assert!(said.contains(why) && !said.contains("sesame"), "{args:?}: {said}");
        assert!(!file.exists(), "{args:?}");
    }
    let left = fs::read_dir(cluster.dir()).expect("its directory");
    let left = left.filter_map(Result::ok).map(|entry| entry.file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("backup")).collect();
    assert!(left.is_empty(), "parts of backups are left: {left:?}");

    let (code, said) = cluster.backup(0, &file, &["--user", name, "--password", password]);
    assert_eq!(code, Some(0), "{said}");
    let again = cluster.dir().join("again");
    let (code, said) = cluster.backup(0, &again, &["--user", ROOT]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("1 leases, 3 users, 1 roles"), "{said}");

    let (new, _) = restored(&file);
    let ctl = quorate(&programs, &new);
    ctl.must_not("", &["get", "app/leased"], "user name is empty");
    assert_eq!(ctl.seen(ROOT, &lease), expected);
    ctl.must(ALICE, &["put", "app/new", "v"]);
    ctl.must_not(ALICE, &["put", "other", "v"], "permission denied");
}

#[test]
fn leases_users_and_roles_go_to_an_etcd_and_nobody_gets_in_whom_it_cannot_check() {
    let test = "leases_users_and_roles_go_to_an_etcd_and_nobody_gets_in_whom_it_cannot_check";
    let Some(programs) = programs::etcd(test) else { return };
    let mut cluster = Cluster::prepare_sized(1);
    cluster.start_all();
    let ctl = quorate(&programs, &cluster);
    let lease = ctl.set_up();
    let expected = ctl.seen("", &lease);
    let file = cluster.dir().join("off.db");
    ctl.save("", &file);
    let etcd = Member::start(&programs, cluster.dir(), "off", Some(&file));
    assert_eq!(etcd.ctl.seen("", &lease), expected);
    // The lease lives there: it can be ended, and takes its key along.
    etcd.ctl.must("", &["lease", "revoke", &lease]);
    assert_eq!(etcd.ctl.must("", &["get", "app/leased"]), "");
    // With a password of etcd's own root is let in.
    let mut change = Command::new(programs.program("etcdctl"));
    change.env("ETCDCTL_API", "3").args(["--endpoints", &etcd.ctl.endpoint]);
    change.args(["user", "passwd", "root", "--interactive=false"]);
    change.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
    let mut change = change.spawn().expect("etcdctl runs");
    let mut typed = change.stdin.take().expect("it was piped");
    std::io::Write::write_all(&mut typed, b"of-etcds\n").expect("it reads");
    drop(typed);
    assert!(change.wait().expect("it ends").success());
    etcd.ctl.must("", &["auth", "enable"]);
    etcd.ctl.must("root:of-etcds", &["get", "other"]);
    etcd.ctl.must_not(ALICE, &["get", "app/leased"], "authentication failed");
    drop(etcd);

    ctl.must("", &["auth", "enable"]);
    let file = cluster.dir().join("on.db");
    let refused = cluster.dir().join("refused.db");
    let path = refused.to_str().expect("temporary paths are text");
    ctl.must_not("", &["snapshot", "save", path], "user name is empty");
    assert!(!refused.exists());
    ctl.save(ROOT, &file);
    let etcd = Member::start(&programs, cluster.dir(), "on", Some(&file));
    etcd.ctl.must_not("", &["get", "app/leased"], "user name is empty");
    etcd.ctl.must_not("", &["user", "list"], "user name is empty");
    for user in [ROOT, ALICE] {
        etcd.ctl.must_not(user, &["get", "app/leased"], "authentication failed");
    }
    for name in ["root", "alice", "certified"] {
        etcd.ctl.must_not_enter_without_password(name);
    }

    // What etcd cannot check, Quorate can.
    let (back, said) = restored(&file);
    assert!(!said.contains("left out"), "{said}");
    let ctl = quorate(&programs, &back);
    ctl.must_not("", &["get", "app/leased"], "user name is empty");
    assert_eq!(ctl.seen(ROOT, &lease), expected);
    ctl.must(ALICE, &["put", "app/new", "v"]);
    ctl.must_not(ALICE, &["put", "other", "v"], "permission denied");
}

#[test]
fn leases_users_and_roles_of_an_etcd_come_with_their_passwords_and_go_back() {
    let test = "leases_users_and_roles_of_an_etcd_come_with_their_passwords_and_go_back";
    let Some(programs) = programs::etcd(test) else { return };
    let dir = tempfile::TempDir::with_prefix("quorate-test-").expect("a temporary directory");
    let etcd = Member::start(&programs, dir.path(), "old", None);
    let lease = etcd.ctl.set_up();
    etcd.ctl.must("", &["auth", "enable"]);
    let expected = etcd.ctl.seen(ROOT, &lease);
    let file = dir.path().join("etcd.db");
    etcd.ctl.save(ROOT, &file);
    drop(etcd);

    let (mut cluster, said) = restored(&file);
    assert!(said.contains("3 users") && !said.contains("left out"), "{said}");
    let ctl = quorate(&programs, &cluster);
    ctl.must_not("", &["get", "app/leased"], "user name is empty");
    ctl.must_not("root:guessed", &["get", "app/leased"], "authentication failed");
    for name in ["root", "certified"] {
        ctl.must_not_enter_without_password(name);
    }
    assert_eq!(ctl.seen(ROOT, &lease), expected);
    ctl.must(ALICE, &["put", "app/new", "v"]);
    ctl.must(ALICE, &["get", "one"]);
    ctl.must_not(ALICE, &["put", "one", "v"], "permission denied");
    ctl.must_not(ALICE, &["put", "other", "v"], "permission denied");
    ctl.must(ROOT, &["del", "app/new"]);
    // Tokens were given a secret; it is there after a restart.
    cluster.kill(0);
    cluster.start_all();
    let ctl = quorate(&programs, &cluster);
    assert_eq!(ctl.seen(ROOT, &lease), expected);

    let file = dir.path().join("back.db");
    ctl.save(ROOT, &file);
    let etcd = Member::start(&programs, dir.path(), "new", Some(&file));
    etcd.ctl.must_not("", &["get", "app/leased"], "user name is empty");
    assert_eq!(etcd.ctl.seen(ROOT, &lease), expected);
    etcd.ctl.must_not(ALICE, &["put", "other", "v"], "permission denied");
    etcd.ctl.must(ALICE, &["put", "app/new", "v"]);
}
