//! Who may depend on whom.

use std::fs;
use std::path::Path;

use toml::{Table, Value};

/// What every crate may use of our own. `quorate-types` is below everything but `api` and what stands on
/// `api` alone.
const OWN: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("raft", &["types"]),
    ("raft-script", &["raft", "types"]),
    ("group", &["raft", "types"]),
    ("wal", &["types"]),
    ("transport", &["types"]),
    ("store", &["types"]),
    ("placement", &["types"]),
    ("node", &["group", "raft", "wal", "transport", "store", "placement", "types"]),
    ("api", &[]),
    ("gateway", &["api", "types"]),
    ("quorate", &["api", "gateway", "node", "sim", "types"]),
    ("load", &["api"]),
    ("sim", &["group", "store", "placement", "raft", "wal", "types"]),
    ("benches", &["node", "raft", "types", "wal"]),
    ("tests", &["api"]),
];

/// Libraries that only some crates may use, tests of the crate included: each is what those crates are
/// there to hide from the others.
const LIBRARIES: &[(&str, &[&str], &str)] = &[
    ("rocksdb", &["wal", "store"], "disks belong to the log and the state engine"),
    (
        "tokio",
        &["transport", "node", "gateway", "quorate", "load", "tests", "benches"],
        "what decides is driven, and runs nothing itself",
    ),
    ("kameo", &["node"], "actors are the node's shell"),
    ("quinn", &["transport"], "the network between nodes is the transport's"),
    ("crossbeam-channel", &["wal", "node"], "threads meet in the log and in the node"),
    ("tonic", &["api", "gateway", "quorate", "load", "tests"], "gRPC ends at the gateway"),
    ("h2", &["load"], "a server's HTTP/2 is tonic's"),
    ("hyper", &["gateway", "quorate"], "HTTP is spoken at the front door and by the exporter"),
];

/// The package fields that are set once, for the workspace.
const INHERITED: [&str; 5] = ["version", "edition", "rust-version", "license", "publish"];

/// Every breach in the manifests below `root`.
pub(crate) fn findings(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for (name, directory) in super::members(root) {
        let path = directory.join("Cargo.toml");
        let manifest = fs::read_to_string(&path).unwrap_or_default();
        let manifest: Table = match manifest.parse() {
            Ok(manifest) => manifest,
            Err(error) => {
                found.push(format!("{}: {error}", path.display()));
                continue;
            }
        };
        found.extend(crate_findings(&name, &manifest));
    }
    found
}

/// Every breach in the manifest of crate `name`.
fn crate_findings(name: &str, manifest: &Table) -> Vec<String> {
    let mut found = Vec::new();
    let Some((_, allowed)) = OWN.iter().find(|(crate_name, _)| *crate_name == name) else {
        return vec![format!(
            "{name}: a crate that the design does not know: draw its arrows first"
        )];
    };
    for (dependency, value) in dependencies(manifest) {
        if value.get("workspace") != Some(&Value::Boolean(true)) {
            found.push(format!(
                "{name}: {dependency} must be {{ workspace = true }}: versions stand once, in the root"
            ));
        }
        if let Some(own) = dependency.strip_prefix("quorate-")
            && !allowed.contains(&own)
        {
            found.push(format!("{name}: may not know {own}"));
        }
        for (library, crates, why) in LIBRARIES {
            if dependency == *library && !crates.contains(&name) {
                found.push(format!("{name}: may not use {library}: {why}"));
            }
        }
    }
    if manifest.get("lints").and_then(|lints| lints.get("workspace")) != Some(&Value::Boolean(true))
    {
        found.push(format!("{name}: must have the workspace's lints"));
    }
    for field in INHERITED {
        let value = manifest.get("package").and_then(|package| package.get(field));
        if value.and_then(|value| value.get("workspace")) != Some(&Value::Boolean(true)) {
            found.push(format!("{name}: {field} must be inherited from the workspace"));
        }
    }
    found
}

/// All dependencies of a manifest: ordinary ones, those of its tests and of its build, on any target.
fn dependencies(manifest: &Table) -> Vec<(&String, &Value)> {
    let mut all = Vec::new();
    for (key, value) in manifest {
        let Some(table) = value.as_table() else { continue };
        match key.as_str() {
            "dependencies" | "dev-dependencies" | "build-dependencies" => all.extend(table),
            "target" => {
                all.extend(table.values().filter_map(Value::as_table).flat_map(dependencies));
            }
            _ => {}
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, dependencies: &str) -> Vec<String> {
        let inherited = INHERITED.map(|field| format!("{field}.workspace = true\n")).concat();
        let manifest = format!(
            "[package]\n{inherited}[lints]\nworkspace = true\n[dependencies]\n{dependencies}"
        );
        crate_findings(name, &manifest.parse().expect("TOML"))
    }

    #[test]
    fn a_drawn_arrow_passes_and_another_does_not() {
        assert_eq!(of("group", "quorate-raft.workspace = true"), Vec::<String>::new());
        assert_eq!(of("raft", "quorate-group.workspace = true"), ["raft: may not know group"]);
        assert_eq!(of("tests", "quorate-node.workspace = true"), ["tests: may not know node"]);
    }

    #[test]
    fn a_library_stays_where_it_belongs() {
        assert_eq!(of("wal", "rocksdb = { workspace = true, optional = true }").len(), 0);
        assert_eq!(of("node", "rocksdb.workspace = true").len(), 1);
        assert_eq!(
            of("raft", "[target.'cfg(unix)'.dev-dependencies]\ntokio.workspace = true").len(),
            1
        );
    }

    #[test]
    fn versions_and_lints_are_the_workspace_s() {
        assert_eq!(of("raft", "bytes = \"1\"").len(), 1);
        let bare = crate_findings("raft", &"[package]\nversion = \"1\"".parse().expect("TOML"));
        assert_eq!(bare.len(), 1 + INHERITED.len());
    }

    #[test]
    fn an_unknown_crate_is_a_finding() {
        assert_eq!(of("stdx", "").len(), 1);
    }
}
