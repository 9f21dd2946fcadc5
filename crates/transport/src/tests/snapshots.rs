//! Snapshots: whole, resumed, refused, given up, and by peers that misbehave.

use std::io;
use std::sync::atomic::AtomicUsize;

use tokio::task::JoinHandle;

use super::*;
use crate::close;
use crate::link::{Shape, Shaped};
use crate::snapshot::SNAPSHOT_HEADER_BYTES_MAX;
use crate::{SnapshotError, SnapshotReceiver, SnapshotSource, Unfinished};

/// A content whose bytes tell where they lie.
struct Pattern {
    total: u64,
    /// Bytes that were read so far.
    read: Arc<AtomicUsize>,
    /// How many bytes there are in truth.
    present: u64,
}

impl Pattern {
    fn new(total: u64) -> Self {
        Self { total, read: Arc::default(), present: total }
    }

    fn bytes(from: u64, to: u64) -> Bytes {
        (from..to).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect::<Vec<_>>().into()
    }
}

impl SnapshotSource for Pattern {
    fn total_bytes(&self) -> u64 {
        self.total
    }

    async fn read(&mut self, offset: u64) -> io::Result<Bytes> {
        if offset >= self.present {
            return Err(io::Error::other("the disk failed"));
        }
        let piece = Self::bytes(offset, self.present.min(offset + (256 << 10)));
        self.read.fetch_add(piece.len(), Ordering::Relaxed);
        Ok(piece)
    }
}

type Sent = JoinHandle<Result<u64, SnapshotError>>;

fn send(node: &Node, content: Pattern) -> Sent {
    let transport = node.transport.clone();
    let header = Bytes::from_static(b"header");
    tokio::spawn(async move { transport.send_snapshot(NodeId(2), header, content).await })
}

async fn ended(sent: Sent) -> Result<u64, SnapshotError> {
    tokio::time::timeout(PATIENCE, sent).await.expect("still under way").unwrap()
}

async fn receive(receiver: &mut SnapshotReceiver) -> Result<Bytes, Unfinished> {
    let mut content = Vec::new();
    while let Some(piece) = receiver.next().await? {
        content.extend_from_slice(&piece);
    }
    Ok(content.into())
}

fn with_limits(ca: &Ca, id: u64, change: impl FnOnce(&mut Limits)) -> Recipe {
    let mut recipe = Recipe::new(ca, id);
    change(&mut recipe.config.limits);
    recipe
}

async fn connect(one: Recipe, two: Recipe) -> (Node, Node) {
    let (mut one, mut two) = (one.open().await, two.open().await);
    one.dial(&two);
    two.dial(&one);
    one.up(2).await;
    two.up(1).await;
    (one, two)
}

/// Both still talk to each other.
async fn unharmed(one: &Node, two: &mut Node) {
    one.transport.send(NodeId(2), vec![beat(1, 2, 99)]);
    assert_eq!(two.collect(1).await, [beat(1, 2, 99)]);
}

fn outcomes(node: &Node, direction: &str, outcome: &str) -> u64 {
    node.figures.counter(&format!("quorate_transport_snapshots_total{{{direction},{outcome}}}"))
}

#[tokio::test]
async fn a_snapshot_arrives_whole_and_its_sender_hears_that_it_was_stored() {
    const TOTAL: u64 = (5 << 20) + 17;
    let (one, mut two) = pair(&authority()).await;
    let sent = send(&one, Pattern::new(TOTAL));
    let offer = two.offer().await;
    assert_eq!((offer.from(), &offer.header()[..]), (NodeId(1), &b"header"[..]));
    assert_eq!(offer.total_bytes(), TOTAL);
    let mut receiver = offer.accept(0).await.unwrap();
    assert!(receive(&mut receiver).await.unwrap() == Pattern::bytes(0, TOTAL));
    assert!(!sent.is_finished());
    receiver.confirm().await.unwrap();
    assert_eq!(ended(sent).await, Ok(TOTAL));
    for (node, direction) in [(&one, "sent"), (&two, "received")] {
        assert_eq!(outcomes(node, direction, "done"), 1);
        let key = |what| format!("quorate_transport_{what}{{{direction}}}");
        assert_eq!(node.figures.counter(&key("snapshot_bytes_total")), TOTAL);
        assert_eq!(node.figures.gauge(&key("active_snapshots")), 0.0);
    }
}

#[tokio::test]
async fn the_receiver_says_where_to_begin() {
    const TOTAL: u64 = 1 << 20;
    let (one, mut two) = pair(&authority()).await;
    for (offset, expected) in [(700_001, TOTAL - 700_001), (TOTAL, 0)] {
        let sent = send(&one, Pattern::new(TOTAL));
        let mut receiver = two.offer().await.accept(offset).await.unwrap();
        assert!(receive(&mut receiver).await.unwrap() == Pattern::bytes(offset, TOTAL));
        receiver.confirm().await.unwrap();
        assert_eq!(ended(sent).await, Ok(expected));
    }
    let sent = send(&one, Pattern::new(TOTAL));
    let beyond = two.offer().await.accept(TOTAL + 1).await;
    assert!(matches!(beyond, Err(Unfinished(_))));
    assert!(matches!(ended(sent).await, Err(SnapshotError::Lost(_))));
}

#[tokio::test]
async fn refusals_and_failures_tell_their_reason() {
    let (one, mut two) = pair(&authority()).await;
    let sent = send(&one, Pattern::new(10));
    two.offer().await.refuse("its range overlaps").await;
    assert_eq!(ended(sent).await, Err(SnapshotError::Refused("its range overlaps".into())));

    let sent = send(&one, Pattern::new(64 << 20));
    let mut receiver = two.offer().await.accept(0).await.unwrap();
    receiver.next().await.unwrap();
    receiver.fail("no space").await;
    assert_eq!(ended(sent).await, Err(SnapshotError::Failed("no space".into())));

    let sent = send(&one, Pattern::new(10));
    drop(two.offer().await);
    assert!(matches!(ended(sent).await, Err(SnapshotError::Lost(_))));
    assert_eq!((outcomes(&one, "sent", "refused"), outcomes(&one, "sent", "failed")), (1, 2));
    assert_eq!(
        (outcomes(&two, "received", "refused"), outcomes(&two, "received", "failed")),
        (1, 2)
    );
    unharmed(&one, &mut two).await;
}

#[tokio::test]
async fn a_receiver_that_does_not_pull_holds_its_sender_back_and_nobody_else() {
    let ca = authority();
    let window = |limits: &mut Limits| limits.stream_window_bytes = 1 << 20;
    let (one, mut two) = connect(with_limits(&ca, 1, window), with_limits(&ca, 2, window)).await;
    let content = Pattern::new(64 << 20);
    let read = content.read.clone();
    let sent = send(&one, content);
    let mut receiver = two.offer().await.accept(0).await.unwrap();
    receiver.next().await.unwrap();
    // As many exchanges as it takes to fill the window many times, were it not held back.
    for index in 1..=40 {
        one.transport.send(NodeId(2), vec![append(1, 2, 7, index, 256 << 10), beat(1, 2, index)]);
        two.collect(2).await;
    }
    let read_bytes = read.load(Ordering::Relaxed);
    assert!(read_bytes < 8 << 20, "{read_bytes} bytes were read");
    assert!(!sent.is_finished());
    sent.abort();
}

#[tokio::test]
async fn one_too_many_is_refused_as_busy_on_either_side() {
    let ca = authority();
    let few = |limits: &mut Limits| (limits.snapshots_max, limits.snapshots_per_peer_max) = (1, 1);
    let (one, mut two) = connect(with_limits(&ca, 1, few), Recipe::new(&ca, 2)).await;
    let first = send(&one, Pattern::new(10));
    let offer = two.offer().await;
    assert_eq!(ended(send(&one, Pattern::new(10))).await, Err(SnapshotError::BusyHere));
    offer.refuse("").await;
    ended(first).await.unwrap_err();
    assert_eq!(outcomes(&one, "sent", "busy"), 1);

    let (one, mut two) = connect(Recipe::new(&ca, 1), with_limits(&ca, 2, few)).await;
    let first = send(&one, Pattern::new(10));
    let mut receiver = two.offer().await.accept(0).await.unwrap();
    assert_eq!(ended(send(&one, Pattern::new(10))).await, Err(SnapshotError::BusyThere));
    assert_eq!(receive(&mut receiver).await.unwrap(), Pattern::bytes(0, 10));
    receiver.confirm().await.unwrap();
    assert_eq!(ended(first).await, Ok(10));
    // The place is free again.
    let again = send(&one, Pattern::new(10));
    two.offer().await.refuse("").await;
    assert_eq!(ended(again).await, Err(SnapshotError::Refused(String::new())));
}

#[tokio::test]
async fn snapshots_come_and_go_on_one_connection() {
    let (one, mut two) = pair(&authority()).await;
    for round in 0..60 {
        let sent = send(&one, Pattern::new(round));
        let mut receiver = two.offer().await.accept(0).await.unwrap();
        assert_eq!(receive(&mut receiver).await.unwrap(), Pattern::bytes(0, round));
        receiver.confirm().await.unwrap();
        assert_eq!(ended(sent).await, Ok(round));
    }
    unharmed(&one, &mut two).await;
}

#[tokio::test]
async fn a_sender_that_gives_up_or_fails_is_noticed() {
    let (one, mut two) = pair(&authority()).await;
    let sent = send(&one, Pattern::new(64 << 20));
    let mut receiver = two.offer().await.accept(0).await.unwrap();
    receiver.next().await.unwrap();
    sent.abort();
    assert!(matches!(receive(&mut receiver).await, Err(Unfinished(_))));

    let failing = Pattern { present: 100_000, ..Pattern::new(64 << 20) };
    let sent = send(&one, failing);
    let mut receiver = two.offer().await.accept(0).await.unwrap();
    assert!(matches!(receive(&mut receiver).await, Err(Unfinished(_))));
    assert_eq!(ended(sent).await, Err(SnapshotError::Source("the disk failed".into())));
    unharmed(&one, &mut two).await;
}

#[tokio::test]
async fn a_lost_connection_ends_it_on_both_sides() {
    let (one, mut two) = pair(&authority()).await;
    assert_eq!(
        one.transport.send_snapshot(NodeId(9), Bytes::new(), Pattern::new(1)).await,
        Err(SnapshotError::NotConnected)
    );
    let sent = send(&one, Pattern::new(64 << 20));
    let mut receiver = two.offer().await.accept(0).await.unwrap();
    receiver.next().await.unwrap();
    one.transport.remove_peer(NodeId(2));
    assert!(matches!(receive(&mut receiver).await, Err(Unfinished(_))));
    assert!(matches!(ended(sent).await, Err(SnapshotError::Lost(_))));
}

#[tokio::test]
async fn a_peer_that_never_answers_or_never_pulls_is_given_up() {
    let ca = authority();
    let hasty = |limits: &mut Limits| {
        limits.snapshot_stall_timeout = Duration::from_millis(200);
        limits.snapshot_confirm_timeout = Duration::from_millis(200);
        limits.stream_window_bytes = 64 << 10;
    };
    let (one, mut two) = connect(with_limits(&ca, 1, hasty), with_limits(&ca, 2, hasty)).await;
    let unanswered = send(&one, Pattern::new(10));
    let _offer = two.offer().await;
    assert_eq!(ended(unanswered).await, Err(SnapshotError::Stalled));

    let unpulled = send(&one, Pattern::new(64 << 20));
    let _receiver = two.offer().await.accept(0).await.unwrap();
    assert_eq!(ended(unpulled).await, Err(SnapshotError::Stalled));
}

#[tokio::test]
async fn a_peer_that_never_confirms_is_given_up() {
    let ca = authority();
    let hasty = |limits: &mut Limits| limits.snapshot_confirm_timeout = Duration::from_millis(200);
    let (one, mut two) = connect(with_limits(&ca, 1, hasty), Recipe::new(&ca, 2)).await;
    let sent = send(&one, Pattern::new(10));
    let mut receiver = two.offer().await.accept(0).await.unwrap();
    receive(&mut receiver).await.unwrap();
    assert_eq!(ended(sent).await, Err(SnapshotError::Stalled));
}

#[tokio::test]
async fn a_cut_link_holds_a_snapshot_until_it_heals() {
    let ca = authority();
    let link = Arc::new(Shaped::new(1));
    let mut recipe = Recipe::new(&ca, 1);
    recipe.link = link.clone();
    let (one, mut two) = connect(recipe, Recipe::new(&ca, 2)).await;
    link.set(NodeId(1), NodeId(2), Shape { cut: true, ..Shape::default() });
    let sent = send(&one, Pattern::new(1 << 20));
    let mut receiver = two.offer().await.accept(0).await.unwrap();
    let first = tokio::time::timeout(Duration::from_millis(200), receiver.next()).await;
    assert!(first.is_err(), "it came through a cut");
    link.heal();
    assert!(receive(&mut receiver).await.unwrap() == Pattern::bytes(0, 1 << 20));
    receiver.confirm().await.unwrap();
    assert_eq!(ended(sent).await, Ok(1 << 20));
}

#[tokio::test]
async fn a_header_too_large_is_never_sent() {
    let (one, _two) = pair(&authority()).await;
    let header = Bytes::from(vec![0; SNAPSHOT_HEADER_BYTES_MAX + 1]);
    let sent = one.transport.send_snapshot(NodeId(2), header, Pattern::new(1)).await;
    assert_eq!(sent, Err(SnapshotError::HeaderTooLarge(SNAPSHOT_HEADER_BYTES_MAX + 1)));
}

/// A node, and a bare member that announces snapshots to it.
async fn victim(change: impl FnOnce(&mut Limits)) -> (Node, Bare) {
    let ca = authority();
    let node = with_limits(&ca, 1, change).open().await;
    (node, Bare::new(&tls_of(&ca, CLUSTER, "n3"), 3))
}

/// An announcement as a peer would write it.
fn announced(header: &[u8], total_bytes: u64) -> Vec<u8> {
    let mut body = vec![8, 1, 0x12];
    prost::encode_length_delimiter(header.len(), &mut body).unwrap();
    body.extend_from_slice(header);
    body.push(0x18);
    prost::encoding::encode_varint(total_bytes, &mut body);
    let length = u32::try_from(body.len()).unwrap();
    [&StreamKind::Snapshot.preface(0)[..], &length.to_le_bytes(), &body].concat()
}

#[tokio::test]
async fn another_size_than_was_announced_is_an_error() {
    let (mut node, bare) = victim(|_| {}).await;
    let connection = bare.greet(&node).await.unwrap();
    for (content, what) in [(&b"short"[..], "early"), (&b"longer than ten bytes"[..], "larger")] {
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        send.write_all(&announced(b"h", 10)).await.unwrap();
        let mut receiver = node.offer().await.accept(0).await.unwrap();
        send.write_all(content).await.unwrap();
        let _ = send.finish();
        let Unfinished(why) = receive(&mut receiver).await.unwrap_err();
        assert!(why.contains(what), "{why}");
    }
    assert!(connection.close_reason().is_none());
}

#[tokio::test]
async fn an_announced_size_reserves_nothing_and_a_dripping_sender_loses_its_place() {
    let (mut node, bare) = victim(|limits| {
        limits.snapshot_stall_timeout = Duration::from_millis(200);
        limits.snapshots_per_peer_max = 1;
    })
    .await;
    let connection = bare.greet(&node).await.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&announced(b"h", u64::MAX)).await.unwrap();
    let offer = node.offer().await;
    assert_eq!(offer.total_bytes(), u64::MAX);
    let mut receiver = offer.accept(0).await.unwrap();
    let drip = tokio::spawn(async move {
        while send.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let slow = tokio::time::timeout(PATIENCE, receive(&mut receiver)).await.expect("still waits");
    assert_eq!(slow, Err(Unfinished("the sender was too slow".into())));
    drop(receiver);
    drip.await.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&announced(b"next", 1)).await.unwrap();
    assert_eq!(&node.offer().await.header()[..], b"next");
}

#[tokio::test]
async fn malformed_and_oversized_announcements_close_their_connection() {
    let (node, bare) = victim(|_| {}).await;
    let mut rng = fastrand::Rng::with_seed(3);
    let preface = StreamKind::Snapshot.preface(0);
    for round in 0..40 {
        let mut garbage = vec![0; rng.usize(1..200)];
        rng.fill(&mut garbage);
        // No field of ours has this number and kind.
        garbage[0] = 0x0f;
        let length = if round % 4 == 0 { u32::MAX } else { garbage.len() as u32 };
        let connection = bare.greet(&node).await.unwrap();
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        let bytes = [&preface[..], &length.to_le_bytes(), &garbage].concat();
        let _ = send.write_all(&bytes).await;
        let code = if round % 4 == 0 { close::TOO_LARGE } else { close::MALFORMED };
        assert_eq!(code_of(&closed(&connection).await).0, u64::from(code));
    }
    // One way only, there is no such stream.
    let connection = bare.greet(&node).await.unwrap();
    let mut send = connection.open_uni().await.unwrap();
    send.write_all(&preface).await.unwrap();
    assert_eq!(code_of(&closed(&connection).await).0, u64::from(close::MALFORMED));
}

#[tokio::test]
async fn a_flood_of_announcements_closes_the_connection() {
    let (mut node, bare) = victim(|_| {}).await;
    let connection = bare.greet(&node).await.unwrap();
    let flood = async {
        loop {
            let Ok((mut send, _recv)) = connection.open_bi().await else { break };
            if send.write_all(&announced(b"h", 1)).await.is_err() {
                break;
            }
            let _ = send.reset(0u32.into());
        }
    };
    let offers = async {
        loop {
            drop(node.offer().await);
        }
    };
    let stopped = async {
        tokio::select! {
            () = flood => {}
            () = offers => {}
        }
    };
    tokio::time::timeout(PATIENCE, stopped).await.expect("not stopped");
    assert_eq!(code_of(&closed(&connection).await).0, u64::from(close::MALFORMED));
}
