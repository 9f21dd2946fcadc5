//! Every message that a wrong setting gets, and the order of the layers.

use std::ffi::OsString;
use std::path::Path;

use super::*;
use crate::config::file::{self, FileLayer};
use crate::config::settings::{self, EnvLayer};

fn file(text: &str) -> Result<FileLayer, ConfigError> {
    file::parse(Path::new("quorate.toml"), text)
}

fn env(vars: &[(&str, &str)]) -> Result<EnvLayer, ConfigError> {
    settings::from_env(vars.iter().map(|(name, value)| (name.into(), OsString::from(value))))
}

/// The layer that flags would make.
fn flags(pairs: &[(&str, &str)]) -> Settings {
    let mut settings = Settings::default();
    for (key, text) in pairs {
        settings.set_text(key, text).expect(key).expect(text);
    }
    settings
}

/// What is needed beside the settings under test.
const TLS: [(&str, &str); 3] = [("cert", "c.crt"), ("key", "c.key"), ("ca", "ca.crt")];

fn checked(pairs: &[(&str, &str)]) -> Result<ServeConfig, String> {
    let flags = flags(&[&TLS, pairs].concat());
    ServeConfig::check(&Layers { flags, ..Layers::default() }).map_err(|error| error.to_string())
}

#[test]
fn a_wrong_file_is_refused_with_the_key_the_line_and_what_was_expected() {
    let table = [
        (
            "listen-clinet = \"127.0.0.1:1\"",
            "quorate.toml:1: unknown key \"listen-clinet\" (did you mean \"listen-client\"?)",
        ),
        (
            "name = \"a\"\n\n# a comment\nheart_beat_interval = 3\n",
            "quorate.toml:4: unknown key \"heart_beat_interval\" (did you mean \"heartbeat-interval\"?)",
        ),
        ("colour = \"blue\"", "quorate.toml:1: unknown key \"colour\""),
        ("[server]\nname = \"a\"", "quorate.toml:1: unknown key \"server\""),
        (
            "name = \"a\"\ndata-dir = \"d\"\nheartbeat-interval = \"100\"",
            "quorate.toml:3: \"heartbeat-interval\" must be a whole number of milliseconds, found a string (\"100\")",
        ),
        (
            "heartbeat-interval = 1.5",
            "quorate.toml:1: \"heartbeat-interval\" must be a whole number of milliseconds, found a fraction (1.5)",
        ),
        (
            "heartbeat-interval = -1",
            "quorate.toml:1: \"heartbeat-interval\" must be a whole number of milliseconds, found -1",
        ),
        (
            "max-request-bytes = true",
            "quorate.toml:1: \"max-request-bytes\" must be a whole number of bytes, found true",
        ),
        (
            "max-txn-ops = [1]",
            "quorate.toml:1: \"max-txn-ops\" must be a whole number, found an array",
        ),
        (
            "name = 7",
            "quorate.toml:1: \"name\" must be 1 to 64 letters, digits, dots, hyphens and underscores that begin with a letter or digit, found a whole number (7)",
        ),
        (
            "name = \"-node\"",
            "quorate.toml:1: \"name\" must be 1 to 64 letters, digits, dots, hyphens and underscores that begin with a letter or digit, found \"-node\"",
        ),
        (
            "listen-client = \"localhost:2379\"",
            "quorate.toml:1: \"listen-client\" must be an IP address and a port such as 127.0.0.1:2379, found \"localhost:2379\"",
        ),
        (
            "advertise-peer = \"http://a:1\"",
            "quorate.toml:1: \"advertise-peer\" must be host:port without a scheme, such as db1.example.com:2380, found \"http://a:1\"",
        ),
        (
            "advertise-client = \"0.0.0.0:2379\"",
            "quorate.toml:1: \"advertise-client\" must be host:port without a scheme, such as db1.example.com:2380, found \"0.0.0.0:2379\"",
        ),
        (
            "initial-cluster = \"a=h:1,b\"",
            "quorate.toml:1: \"initial-cluster\" must be a list name=host:port,..., found \"b\"",
        ),
        (
            "initial-cluster = \"a=h:1,a=h:2\"",
            "quorate.toml:1: \"initial-cluster\" must be a list name=host:port,..., found the name \"a\" twice",
        ),
        (
            "initial-cluster = \"a=h:1,b=h:1\"",
            "quorate.toml:1: \"initial-cluster\" must be a list name=host:port,..., found the address h:1 twice",
        ),
        (
            "initial-cluster = \"a=h\"",
            "quorate.toml:1: \"initial-cluster\" must be a list name=host:port,..., found \"h\" for a: use host:port without a scheme, such as db1.example.com:2380",
        ),
        (
            "initial-cluster = \"a/b=h:1\"",
            "quorate.toml:1: \"initial-cluster\" must be a list name=host:port,..., found the name \"a/b\": use 1 to 64 letters, digits, dots, hyphens and underscores that begin with a letter or digit",
        ),
        (
            "initial-cluster = \"\"",
            "quorate.toml:1: \"initial-cluster\" must be a list name=host:port,..., found no member",
        ),
        (
            "name = \"a\"\n[initial-cluster]\na = 1",
            "quorate.toml:2: \"initial-cluster\" must be a list name=host:port,..., found a whole number (1) at \"a\"",
        ),
        (
            "initial-cluster-state = \"old\"",
            "quorate.toml:1: \"initial-cluster-state\" must be \"new\" or \"existing\", found \"old\"",
        ),
        (
            "initial-cluster-token = \"\"",
            "quorate.toml:1: \"initial-cluster-token\" must be a string that is not empty, found \"\"",
        ),
        (
            "labels = \"region\"",
            "quorate.toml:1: \"labels\" must be a list key=value,... of short words, found \"region\"",
        ),
        (
            "labels = \"region=a b\"",
            "quorate.toml:1: \"labels\" must be a list key=value,... of short words, found \"region=a b\"",
        ),
        (
            "labels = \"a=1,a=2\"",
            "quorate.toml:1: \"labels\" must be a list key=value,... of short words, found \"a\" twice",
        ),
        (
            "grpc-keepalive-timeout = \"20\"",
            "quorate.toml:1: \"grpc-keepalive-timeout\" must be a length of time such as \"20s\" or \"1m30s\", found \"20\"",
        ),
        (
            "grpc-keepalive-timeout = 20",
            "quorate.toml:1: \"grpc-keepalive-timeout\" must be a length of time such as \"20s\" or \"1m30s\", found a whole number (20)",
        ),
        ("cert = 1979-05-27", "quorate.toml:1: \"cert\" must be a path, found a date"),
        ("cert = \"\"", "quorate.toml:1: \"cert\" must be a path, found \"\""),
        (
            "log-format = \"xml\"",
            "quorate.toml:1: \"log-format\" must be \"human\" or \"json\", found \"xml\"",
        ),
        (
            "log-level = \"loud=very\"",
            "quorate.toml:1: \"log-level\" must be a level (error, warn, info, debug, trace) or a list target=level,..., found \"loud=very\"",
        ),
    ];
    for (text, expected) in table {
        assert_eq!(file(text).expect_err(text).to_string(), expected);
    }
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_the_line() {
    for (text, line) in [("name = ", 1), ("name = \"a\"\nlabels", 2), ("a = 1\na = 2", 2)] {
        let error = file(text).expect_err(text).to_string();
        assert!(error.starts_with(&format!("quorate.toml:{line}: not TOML: ")), "{error}");
        assert!(!error.contains('\n'), "one line: {error}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = file::read(Path::new("/nonexistent/quorate.toml")).unwrap_err().to_string();
    assert!(error.starts_with("/nonexistent/quorate.toml: "), "{error}");
}

#[test]
fn a_wrong_variable_is_refused_by_its_name_and_an_unknown_one_is_only_reported() {
    let error = env(&[("QUORATE_ELECTION_TIMEOUT", "1s")]).unwrap_err().to_string();
    let expected = "QUORATE_ELECTION_TIMEOUT: must be a whole number of milliseconds, found \"1s\"";
    assert_eq!(error, expected);

    let layer = env(&[
        ("QUORATE_LISTEN_CLEINT", "127.0.0.1:1"),
        ("QUORATE_SERVICE_HOST_AND_MORE", "10.0.0.1"),
        ("QUORATE_NAME", ""),
        ("QUORATE_CONFIG", "/etc/quorate.toml"),
        ("HOME", "/root"),
    ])
    .unwrap();
    assert_eq!(
        layer.warnings,
        [
            "unknown environment variable QUORATE_LISTEN_CLEINT (did you mean QUORATE_LISTEN_CLIENT?)",
            "unknown environment variable QUORATE_SERVICE_HOST_AND_MORE",
        ]
    );
    assert!(layer.settings.name.is_none(), "an empty variable says nothing");
    assert_eq!(layer.config.as_deref(), Some(Path::new("/etc/quorate.toml")));
}

#[test]
fn a_flag_goes_before_a_variable_before_the_file_before_the_default() {
    let file = file(
        "name = \"file\"\ncluster-name = \"file\"\nheartbeat-interval = 40\n\
         labels = { region = \"eu\", zone = \"eu-1a\" }\n",
    )
    .unwrap();
    let env = env(&[("QUORATE_NAME", "env"), ("QUORATE_CLUSTER_NAME", "env")]).unwrap().settings;
    let flags = flags(&[&TLS[..], &[("name", "flag")]].concat());
    let layers = Layers { flags, env, file };
    let config = ServeConfig::check(&layers).unwrap();
    assert_eq!(config.name, "flag");
    assert_eq!(config.cluster_name, "env");
    assert_eq!(config.heartbeat, Duration::from_millis(40));
    assert_eq!(config.election, Duration::from_secs(1));
    assert_eq!(config.labels["zone"], "eu-1a");
    assert_eq!(layers.origin("name").as_deref(), Some("--name"));
    assert_eq!(layers.origin("cluster-name").as_deref(), Some("QUORATE_CLUSTER_NAME"));
    assert_eq!(layers.origin("heartbeat-interval").as_deref(), Some("quorate.toml:3"));
    assert_eq!(layers.origin("election-timeout"), None);
}

#[test]
fn the_defaults_are_those_of_the_help() {
    let config = checked(&[]).unwrap();
    assert_eq!(config.name, "default");
    assert_eq!(config.data_dir, Path::new("default.quorate"));
    assert_eq!(config.listen_client.to_string(), "127.0.0.1:2379");
    assert_eq!(config.listen_peer.to_string(), "127.0.0.1:2380");
    assert_eq!(config.listen_metrics.to_string(), "127.0.0.1:2381");
    assert_eq!(config.advertise_client.as_str(), "127.0.0.1:2379");
    assert_eq!(config.initial_cluster["default"].as_str(), "127.0.0.1:2380");
    assert_eq!(config.cluster_state, ClusterState::New);
    assert_eq!(
        (config.cluster_name, config.cluster_token),
        ("quorate".into(), "quorate-cluster".into())
    );
    assert_eq!(config.heartbeat, Duration::from_millis(100));
    assert_eq!(config.election, Duration::from_millis(1000));
    assert_eq!((config.max_txn_ops, config.max_request_bytes), (128, 1_572_864));
    assert_eq!((config.quota_backend_bytes, config.snapshot_count), (None, 100_000));
    assert_eq!(config.snapshot_bytes_per_second, 32 << 20);
    assert_eq!(config.sleep_after, Duration::from_secs(5));
    assert_eq!(config.watch_progress_interval, Duration::from_secs(600));
    assert_eq!(config.keepalive.min_time, Duration::from_secs(5));
    assert_eq!(config.keepalive.interval, Some(Duration::from_secs(7200)));
    assert_eq!(config.keepalive.timeout, Duration::from_secs(20));
    assert_eq!((config.engine_threads, config.gateway_threads, config.append_lanes), (1, 0, 4));
}

#[test]
fn settings_that_do_not_fit_together_are_refused_with_where_they_were_made() {
    let table: &[(&[(&str, &str)], &str)] = &[
        (
            &[("name", "c"), ("initial-cluster", "a=h:1,b=h:2")],
            "--name: \"name\" is \"c\", but \"initial-cluster\" names only a, b",
        ),
        (
            &[("initial-cluster", "a=h:1")],
            "\"name\" is \"default\", but \"initial-cluster\" names only a",
        ),
        (
            &[("name", "a"), ("initial-cluster", "a=h:1"), ("advertise-peer", "h:9")],
            "--advertise-peer: \"advertise-peer\" is h:9, but \"initial-cluster\" has a=h:1",
        ),
        (
            &[("listen-client", "0.0.0.0:2379")],
            "\"advertise-client\" must be set, since \"listen-client\" is 0.0.0.0:2379",
        ),
        (
            &[("listen-peer", "[::]:2380")],
            "\"advertise-peer\" must be set, since \"listen-peer\" is [::]:2380",
        ),
        (
            &[("listen-client", "127.0.0.1:0")],
            "\"advertise-client\" must be set, since \"listen-client\" is 127.0.0.1:0",
        ),
        (
            &[("listen-client", "127.0.0.1:2380")],
            "--listen-client: \"listen-client\" and \"listen-peer\" are both 127.0.0.1:2380",
        ),
        (
            &[("listen-metrics", "127.0.0.1:2379")],
            "\"listen-client\" and \"listen-metrics\" are both 127.0.0.1:2379",
        ),
        (
            &[("heartbeat-interval", "0")],
            "--heartbeat-interval: \"heartbeat-interval\" must be at least 1 ms",
        ),
        (
            &[("heartbeat-interval", "201")],
            "\"election-timeout\" is 1000 ms and must be at least 5 times \"heartbeat-interval\" (5 x 201 ms)",
        ),
        (
            &[("election-timeout", "499")],
            "--election-timeout: \"election-timeout\" is 499 ms and must be at least 5 times \"heartbeat-interval\" (5 x 100 ms)",
        ),
        (
            &[("election-timeout", "50001")],
            "--election-timeout: \"election-timeout\" must be at most 50000 ms, found 50001",
        ),
        (
            &[("snapshot-bytes-per-second", "1048575")],
            "--snapshot-bytes-per-second: \"snapshot-bytes-per-second\" must be between 1048576 and \
             9223372036854775807, found 1048575",
        ),
        (
            &[("max-txn-ops", "0")],
            "--max-txn-ops: \"max-txn-ops\" must be between 1 and 10000, found 0",
        ),
        (
            &[("max-request-bytes", "12582913")],
            "--max-request-bytes: \"max-request-bytes\" must be between 1 and 12582912, found 12582913",
        ),
        (
            &[("snapshot-count", "0")],
            "--snapshot-count: \"snapshot-count\" must be between 1 and 4294967295, found 0",
        ),
        (
            &[("engine-threads", "65")],
            "--engine-threads: \"engine-threads\" must be between 1 and 64, found 65",
        ),
        (
            &[("gateway-threads", "65")],
            "--gateway-threads: \"gateway-threads\" must be between 0 and 64, found 65",
        ),
        (
            &[("append-lanes", "17")],
            "--append-lanes: \"append-lanes\" must be between 1 and 16, found 17",
        ),
        (
            &[("grpc-keepalive-timeout", "0")],
            "--grpc-keepalive-timeout: \"grpc-keepalive-timeout\" must be more than 0",
        ),
        (
            &[("watch-progress-notify-interval", "0")],
            "--watch-progress-notify-interval: \"watch-progress-notify-interval\" must be more than 0",
        ),
    ];
    for (pairs, expected) in table {
        assert_eq!(checked(pairs).expect_err(expected), *expected);
    }
    for key in ["cert", "key", "ca"] {
        let rest: Vec<_> = TLS.into_iter().filter(|(other, _)| *other != key).collect();
        let layers = Layers { flags: flags(&rest), ..Layers::default() };
        let error = ServeConfig::check(&layers).unwrap_err().to_string();
        let expected = format!("{key:?} must be set: nodes know each other by certificates; ");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn what_may_be_switched_off_is_off_at_zero() {
    let config =
        checked(&[("grpc-keepalive-interval", "0"), ("quota-backend-bytes", "0")]).unwrap();
    assert_eq!((config.keepalive.interval, config.quota_backend_bytes), (None, None));
    let config = checked(&[("quota-backend-bytes", "8589934592")]).unwrap();
    assert_eq!(config.quota_backend_bytes, Some(8 << 30));
}

#[test]
fn lengths_of_time_are_read_as_go_reads_them() {
    let table = [
        ("0", Some(0)),
        ("20s", Some(20_000)),
        ("1m30s", Some(90_000)),
        ("1.5h", Some(5_400_000)),
        ("2h45m", Some(9_900_000)),
        ("500ms", Some(500)),
        ("2000us", Some(2)),
        ("", None),
        ("5", None),
        ("s", None),
        ("1.2.3s", None),
        ("-5s", None),
        ("5 s", None),
        ("5d", None),
        ("99999999999999999999h", None),
    ];
    for (text, expected_ms) in table {
        let read = Span::from_text(text).ok().map(|span| span.0);
        assert_eq!(read, expected_ms.map(Duration::from_millis), "{text:?}");
    }
}

#[test]
fn members_and_labels_may_be_tables_too() {
    let layer = file("name = \"a\"\n[initial-cluster]\na = \"h1:1\"\nb = \"[::1]:2\"\n").unwrap();
    let flags = flags(&TLS);
    let config = ServeConfig::check(&Layers { flags, file: layer, ..Layers::default() }).unwrap();
    assert_eq!(config.initial_cluster["b"].as_str(), "[::1]:2");
    assert_eq!(config.advertise_peer.as_str(), "h1:1");
}

#[test]
fn a_node_that_joins_asks_members_and_has_no_part_in_how_the_cluster_began() {
    let joins = |more: &[(&str, &str)]| {
        checked(&[&[("name", "n4"), ("join", "n1=h1:1,n2=h2:2")], more].concat())
    };
    let config = joins(&[]).expect("sound");
    assert_eq!(config.cluster_state, ClusterState::Existing);
    assert_eq!(config.initial_cluster.keys().collect::<Vec<_>>(), ["n1", "n2"]);
    assert_eq!(config.advertise_peer.as_str(), "127.0.0.1:2380");
    let config = joins(&[("advertise-peer", "h4:4"), ("initial-cluster-state", "existing")]);
    assert_eq!(config.expect("sound").advertise_peer.as_str(), "h4:4");
    let table = [
        (
            ("initial-cluster", "n4=h4:4"),
            "--join: \"join\" and \"initial-cluster\" are for different nodes: set one",
        ),
        (
            ("initial-cluster-state", "new"),
            "--join: \"join\" is set, so \"initial-cluster-state\" cannot be \"new\"",
        ),
        (
            ("listen-peer", "0.0.0.0:2380"),
            "\"advertise-peer\" must be set, since \"listen-peer\" is 0.0.0.0:2380",
        ),
    ];
    for (wrong, expected) in table {
        assert_eq!(joins(&[wrong]).expect_err(expected), expected);
    }
}

#[test]
fn variables_of_etcds_are_named_and_not_read() {
    let layer = env(&[
        ("ETCD_NAME", "n1"),
        ("ETCD_LISTEN_CLIENT_URLS", "http://127.0.0.1:2379"),
        ("ETCD_SERVICE_HOST", "10.0.0.1"),
        ("ETCDCTL_API", "3"),
        ("ETCD_CERT_FILE", ""),
    ]);
    let layer = layer.unwrap();
    assert_eq!(
        layer.warnings,
        [
            "ETCD_LISTEN_CLIENT_URLS is etcd's and is not read: set QUORATE_LISTEN_CLIENT",
            "ETCD_NAME is etcd's and is not read: set QUORATE_NAME",
        ]
    );
    assert_eq!(layer.settings.name, None);
}
