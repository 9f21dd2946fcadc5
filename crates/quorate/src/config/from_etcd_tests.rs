//! `docs/from-etcd.md` is true.

use std::collections::{BTreeMap, BTreeSet};

use super::Settings;

/// Keys of other commands' settings and of none: the file's own flag.
const CONFIG: &str = "config";

fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/from-etcd.md");
    std::fs::read_to_string(path).unwrap()
}

/// The first two cells of each row that begins with a flag.
fn rows(page: &str) -> Vec<(String, String)> {
    let flags = page.lines().filter_map(|line| line.strip_prefix("| `--"));
    let row = |line: &str| {
        let (flag, rest) = line.split_once("` |").unwrap();
        (flag.to_owned(), rest.split('|').next().unwrap().trim().to_owned())
    };
    flags.map(row).collect()
}

#[test]
fn every_flag_of_etcds_has_its_row_and_every_row_is_true() {
    let page = page();
    let (etcds, ours) = page.split_once("## Settings that etcd does not have").unwrap();
    let keys: BTreeSet<&str> = Settings::KEYS.iter().copied().chain([CONFIG]).collect();
    let mut named = BTreeMap::new();
    for (flag, here) in rows(etcds) {
        let is_ours = keys.contains(flag.as_str());
        let key = match here.strip_prefix("renamed `--") {
            Some(name) => {
                assert!(!is_ours, "--{flag} is no new name");
                Some(name.trim_end_matches('`').to_owned())
            }
            None if here == "same" => Some(flag.clone()),
            None => {
                assert!(here == "no" || here == "not yet", "--{flag}: what is {here:?}?");
                assert!(!is_ours, "--{flag} is there, and the page says {here:?}");
                None
            }
        };
        if let Some(key) = key {
            assert!(keys.contains(key.as_str()), "--{flag}: there is no --{key}");
            let before = named.insert(key.clone(), flag.clone());
            assert_eq!(before, None, "--{key} stands for two flags");
        }
    }
    for (flag, _) in rows(ours) {
        let before = named.insert(flag.clone(), flag.clone());
        assert_eq!(before, None, "--{flag} is etcd's");
    }
    let named: BTreeSet<&str> = named.keys().map(String::as_str).collect();
    assert_eq!(named, keys, "every setting has a row, and every row a setting");
}

#[test]
fn no_flag_has_two_rows() {
    let page = page();
    let rows = rows(&page);
    let flags: BTreeSet<_> = rows.iter().map(|(flag, _)| flag).collect();
    assert_eq!(flags.len(), rows.len());
}
