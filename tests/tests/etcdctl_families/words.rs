//! What may differ between two clusters that do the same: ids, and the figures named here. All else has to be equal.

/// Fields, as `-w fields` writes them, that are a cluster's own: who it is, how its elections went, how it counts the
/// entries of its log and how it lays out its files.
const OWN: [&str; 9] = [
    "ClusterID",
    "MemberID",
    "ID",
    "Leader",
    "RaftTerm",
    "RaftIndex",
    "RaftAppliedIndex",
    "DBSize",
    "DBSizeInUse",
];

/// How much later than its grant a lease may be asked for the rest of its time, in seconds.
const LATE: u64 = 120;

/// The line without the figures of this side.
pub(super) fn without_figures(step: &str, line: &str) -> String {
    if let Some((field, _)) = line.split_once(" :")
        && OWN.contains(&field.trim_matches('"'))
    {
        return format!("{field} : N");
    }
    if step.starts_with("snapshot status") {
        // The hash of a file, its revision, its keys and its size: etcd keeps more in it than the keys.
        let mut columns: Vec<&str> = line.split(", ").collect();
        for column in [0, 2, 3] {
            if let Some(column) = columns.get_mut(column) {
                *column = "N";
            }
        }
        return columns.join(", ");
    }
    if let Some((begin, _)) = line.split_once("took = ") {
        return format!("{begin}took = N");
    }
    if let Some((begin, _)) = line.split_once("memory used : ") {
        return format!("{begin}memory used : N");
    }
    if let Some((begin, rest)) = line.split_once("remaining(")
        && let Some((seconds, end)) = rest.split_once("s)")
        && let Some(granted) = begin.split_once("TTL(").and_then(|(_, rest)| rest.split_once("s)"))
        && let (Ok(seconds), Ok(granted)) = (seconds.parse::<u64>(), granted.0.parse::<u64>())
        && (granted.saturating_sub(LATE)..=granted).contains(&seconds)
    {
        return format!("{begin}remaining(N){end}");
    }
    if let Some((name, members)) = line.split_once("ETCD_INITIAL_CLUSTER=") {
        // Members come in the order of their ids.
        let mut members: Vec<_> = members.trim_matches('"').split(',').collect();
        members.sort_unstable();
        return format!("{name}ETCD_INITIAL_CLUSTER=\"{}\"", members.join(","));
    }
    line.to_owned()
}

/// The line with `N` for each id.
pub(super) fn without_ids(step: &str, line: &str) -> String {
    if step.starts_with("endpoint hashkv") {
        // Of the same history it is the same, and looks like an id.
        return line.to_owned();
    }
    // Ids of members may be short.
    if let Some(changed) = line.strip_prefix("Member ") {
        let words = changed.split_ascii_whitespace().skip(1);
        return words
            .fold("Member N".to_owned(), |line, word| line + " " + &without_ids(step, word));
    }
    if let Some((_, member)) = line.split_once(", ")
        && ["started", "unstarted"].iter().any(|state| member.starts_with(state))
    {
        return format!("N, {member}");
    }
    let words = line.split_inclusive(|letter: char| !letter.is_ascii_alphanumeric());
    let words = words.map(|word| {
        let bare = word.trim_end_matches(|letter: char| !letter.is_ascii_alphanumeric());
        let is_id = bare.len() >= 8 && bare.chars().all(|letter| letter.is_ascii_hexdigit());
        if is_id { format!("N{}", &word[bare.len()..]) } else { word.to_owned() }
    });
    words.collect()
}

#[test]
fn what_is_not_named_stays() {
    let shown = |step: &str, line: &str| without_ids(step, &without_figures(step, line));
    let status = "snapshot status DIR/snapshot";
    assert_eq!(shown(status, "d09eae2, 3, 9, 20 kB"), shown(status, "1d09eae2, 3, 7, 33 kB"));
    assert_ne!(shown(status, "d09eae2, 3, 9, 20 kB"), shown(status, "d09eae2, 4, 9, 20 kB"));
    assert_ne!(
        shown("endpoint hashkv", "CLIENT, 1234567890"),
        shown("endpoint hashkv", "CLIENT, 0")
    );
    let lease = |granted: u64, remaining: u64| {
        let line =
            format!("lease 694d77aa9e38260f granted with TTL({granted}s), remaining({remaining}s)");
        shown("lease timetolive LEASE", &line)
    };
    assert_eq!(lease(600, 600), lease(600, 598));
    for wrong in [lease(600, 601), lease(600, 0), lease(60, 59)] {
        assert_ne!(wrong, lease(600, 600));
    }
    let field = |line| shown("endpoint status -w fields", line);
    assert_eq!(field("\"RaftIndex\" : 8"), field("\"RaftIndex\" : 12"));
    assert_ne!(field("\"Revision\" : 8"), field("\"Revision\" : 12"));
}
