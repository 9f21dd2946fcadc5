//! A data directory belongs to one node, and says so.

use super::*;

fn identity(node_name: &str) -> Identity {
    Identity {
        cluster_name: "c".into(),
        cluster_token: "t".into(),
        node_name: node_name.into(),
        node: node_id("c", "t", node_name),
        incarnation: Incarnation(7),
        cluster_digest: [3; 32],
        founders: BTreeMap::from([(NodeId(1), Incarnation(2))]),
        restored: Some([4; 32]),
    }
}

#[test]
fn an_identity_outlives_the_process() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let find = || DataDir::open(dir.path()).and_then(|data| data.identity(("c", "t", "n1")));
    assert_eq!(find().expect("an empty directory"), None);
    DataDir::open(dir.path()).and_then(|data| data.store(&identity("n1"))).expect("stored");
    assert_eq!(find().expect("found again"), Some(identity("n1")));
}

#[test]
fn a_directory_has_one_user_at_a_time() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let _first = DataDir::open(dir.path()).expect("free");
    assert!(matches!(DataDir::open(dir.path()), Err(DataDirError::InUse(_))));
}

#[test]
fn the_directory_of_another_node_or_cluster_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let data = DataDir::open(dir.path()).expect("free");
    data.store(&identity("n1")).expect("stored");
    for wanted in [("c", "t", "n2"), ("d", "t", "n1"), ("c", "u", "n1")] {
        assert!(matches!(data.identity(wanted), Err(DataDirError::Foreign { .. })));
    }
}

#[test]
fn data_without_an_identity_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let data = DataDir::open(dir.path()).expect("free");
    fs::create_dir(data.log_path()).expect("made");
    let refused = data.identity(("c", "t", "n1"));
    assert!(matches!(refused, Err(DataDirError::Unidentified(_))));
}

#[test]
fn a_damaged_identity_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let data = DataDir::open(dir.path()).expect("free");
    data.store(&identity("n1")).expect("stored");
    let path = dir.path().join("identity");
    let good = fs::read(&path).expect("read");
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&path, &bad).expect("written");
        let refused = data.identity(("c", "t", "n1"));
        assert!(matches!(refused, Err(DataDirError::Unreadable { .. })), "flip at {at}");
    }
    fs::write(&path, &good[..5]).expect("written");
    assert!(matches!(DataDir::read_identity(dir.path()), Err(DataDirError::Unreadable { .. })));
}

#[test]
fn ids_differ_by_every_name() {
    let ids = [node_id("c", "t", "n"), node_id("ct", "", "n"), node_id("c", "tn", "")];
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
}

#[test]
fn a_copy_of_the_map_is_found_again_and_a_damaged_one_is_none() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let data = DataDir::open(dir.path()).expect("free");
    assert_eq!(data.map().expect("readable"), None);
    let node = quorate_placement::Node {
        id: NodeId(1),
        name: "n1".into(),
        peer_address: "h1:2380".into(),
        ..quorate_placement::Node::default()
    };
    let map = PlacementMap::first([node]).expect("a map");
    data.store_map(&map).expect("stored");
    assert_eq!(data.map().expect("readable"), Some(map));
    let path = dir.path().join("map");
    let mut bytes = fs::read(&path).expect("read");
    bytes[12] ^= 1;
    fs::write(&path, bytes).expect("written");
    assert_eq!(data.map().expect("readable"), None);
}
